/**
 * Memory that is taken back though nobody asked for it. With DAMON (Linux 5.16) a kernel looks which pages rest, and a scheme may page them out: then the
 * page cache forgets the image of a function that was not called for so long, and its next start reads the working set from disk. With free page
 * reporting (Linux 5.7) a virtual machine tells its host which memory is free, and the host takes it: who uses it next waits until the host has made it anew.
 */
import type { Machine } from "./doctor-machine.js";

const KDAMONDS = "/sys/kernel/mm/damon/admin/kdamonds";
const MODULE = "/sys/module/damon_reclaim/parameters";
/** More of each kind are not looked at. */
const LOOKED_AT = 8;
const VIRTIO = "/sys/bus/virtio/devices";
const VIRTIO_LOOKED_AT = 32;
/** Of the virtio specification, 5.5: the memory balloon's number, and the bit of its feature VIRTIO_BALLOON_F_PAGE_REPORTING. */
const BALLOON = 5;
const REPORTING_BIT = 5;

/** Seconds that a page may rest before it is paged out, where something does that; the least of all schemes. */
export async function restingSeconds({ read }: Pick<Machine, "read">): Promise<number | undefined> {
  const word = async (path: string): Promise<string | undefined> => (await read(path))?.trim();
  const found: number[] = [];
  if ((await word(`${MODULE}/enabled`)) === "Y") found.push(Number(await word(`${MODULE}/min_age`)) / 1e6);
  for (let daemon = 0; daemon < LOOKED_AT; daemon++) {
    const state = await word(`${KDAMONDS}/${daemon}/state`);
    if (state === undefined) break;
    if (state !== "on") continue;
    for (let context = 0; context < LOOKED_AT; context++) {
      const dir = `${KDAMONDS}/${daemon}/contexts/${context}`;
      const roundUs = await word(`${dir}/monitoring_attrs/intervals/aggr_us`);
      if (roundUs === undefined) break;
      for (let scheme = 0; scheme < LOOKED_AT; scheme++) {
        const action = await word(`${dir}/schemes/${scheme}/action`);
        if (action === undefined) break;
        if (action !== "pageout") continue;
        found.push((Number(roundUs) / 1e6) * Number(await word(`${dir}/schemes/${scheme}/access_pattern/age/min`)));
      }
    }
  }
  return found.length === 0 ? undefined : Math.min(...found);
}

/** Whether free memory is given back to a host, by a virtio balloon. */
export async function givesBackFreeMemory({ read }: Pick<Machine, "read">): Promise<boolean> {
  for (let device = 0; device < VIRTIO_LOOKED_AT; device++) {
    const dir = `${VIRTIO}/virtio${device}`;
    if (Number(await read(`${dir}/device`)) !== BALLOON) continue;
    if ((await read(`${dir}/features`))?.[REPORTING_BIT] === "1") return true;
  }
  return false;
}
