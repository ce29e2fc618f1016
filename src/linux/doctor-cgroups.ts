/** Which control groups there are: version 2 alone, or a version 1 hierarchy for each controller (also "hybrid"). */
import { CONTROLLERS, emptyMount } from "./cgroups.js";
import type { Check, Machine } from "./doctor-machine.js";

/** Where limits could be set, and what is missing there: what the engine only refuses, the doctor explains. */
export type FoundLayout =
  | { readonly version: 2; readonly mount: string; readonly missing: readonly string[] }
  | { readonly version: 1; readonly mounts: Readonly<Record<string, string>>; readonly missing: readonly string[] };

/** Reads the layout from the text of /proc/self/mounts; `readControllers` gives a version 2 mount's cgroup.controllers. */
export async function readCgroupLayout(
  mounts: string,
  readControllers: (mount: string) => Promise<string | undefined>,
): Promise<FoundLayout | undefined> {
  const v1: Record<string, string> = {};
  let v2: { mount: string; controllers: string[] } | undefined;
  for (const line of mounts.split("\n")) {
    const [, mount, type, options] = line.split(" ");
    if (mount === undefined || options === undefined) continue;
    if (type === "cgroup2") v2 ??= { mount, controllers: ((await readControllers(mount)) ?? "").trim().split(/\s+/) };
    if (type !== "cgroup") continue;
    for (const controller of CONTROLLERS) if (options.split(",").includes(controller)) v1[controller] ??= mount;
  }
  // A controller is in one hierarchy only, so the version that has most of ours is the one to use.
  const inV2 = CONTROLLERS.filter((name) => v2?.controllers.includes(name));
  const inV1 = CONTROLLERS.filter((name) => v1[name] !== undefined);
  if (v2 !== undefined && inV2.length >= inV1.length) {
    return { version: 2, mount: v2.mount, missing: CONTROLLERS.filter((name) => !inV2.includes(name)) };
  }
  if (inV1.length === 0) return undefined;
  return { version: 1, mounts: v1, missing: CONTROLLERS.filter((name) => !inV1.includes(name)) };
}

/** Whether memory, processor and processes can be limited. */
export async function checkCgroups(machine: Machine): Promise<Check> {
  const base = { name: "cgroups", required: true };
  const mounts = (await machine.read("/proc/self/mounts")) ?? "";
  const layout = await readCgroupLayout(mounts, (mount) => machine.read(`${mount}/cgroup.controllers`));
  if (layout === undefined) {
    return {
      ...base,
      ok: false,
      says: "No cgroup file system is mounted: memory, CPU and processes of functions cannot be limited.",
      fix: "mount -t cgroup2 none /sys/fs/cgroup",
    };
  }
  if (layout.missing.length > 0) {
    const where = layout.version === 2 ? `cgroup version 2 at ${layout.mount}` : "cgroup version 1";
    return {
      ...base,
      ok: false,
      says: `The ${layout.missing.join(", ")} controller is not available in ${where}.`,
      fix:
        layout.version === 2
          ? "Enable it with the kernel parameter cgroup_enable=memory where it is off; in a container, have it delegated (systemd: Delegate=yes)."
          : `Mount it: mount -t cgroup -o ${layout.missing[0]} none /sys/fs/cgroup/${layout.missing[0]}`,
    };
  }
  const places = layout.version === 2 ? [layout.mount] : Object.values(layout.mounts);
  for (const place of new Set(places)) {
    const refused = await machine.tryDirectory(place);
    if (refused === undefined) continue;
    return {
      ...base,
      ok: false,
      says: `A cgroup cannot be made in ${place}: ${refused}.`,
      fix: "Run as root, with /sys/fs/cgroup mounted read-write (docker: --privileged --cgroupns=host).",
    };
  }
  if (layout.version === 2 && (await isCrowded(machine, layout.mount))) {
    return {
      ...base,
      ok: false,
      says: `Processes live in ${layout.mount} itself, which is a container's cgroup and not the root: from there the kernel lends no controllers to cgroups below.`,
      fix: `Either ${emptyMount(layout.mount)}`,
    };
  }
  const layoutName = layout.version === 2 ? `version 2 at ${layout.mount}` : "version 1, one hierarchy for each controller";
  return { ...base, ok: true, says: `Control groups can be made (${layoutName}: ${CONTROLLERS.join(", ")}).` };
}

/** Version 2 lends controllers only from the root, which alone has no cgroup.type, or from where no process lives. */
async function isCrowded(machine: Machine, mount: string): Promise<boolean> {
  if (!(await machine.exists(`${mount}/cgroup.type`))) return false;
  const words = async (file: string): Promise<string[]> =>
    ((await machine.read(`${mount}/${file}`)) ?? "").split(/\s+/).filter((word) => word !== "");
  const lent = await words("cgroup.subtree_control");
  return (await words("cgroup.procs")).length > 0 && CONTROLLERS.some((name) => !lent.includes(name));
}
