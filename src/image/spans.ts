/**
 * Stretches of addresses that one call names, because a call for each mapping would cost twice as much. The kernel passes over what is not
 * mapped in them.
 */
import { ABI_CONSTANTS } from "../linux/abi.js";
import type { Region } from "./facts.js";

/** As long as can be, with no mapping in them but those that are `wanted`, and not the husk's own zone. */
export function spansOf(regions: readonly Region[], wanted: (region: Region) => boolean): { start: bigint; end: bigint }[] {
  const zone = { start: ABI_CONSTANTS.HUSK_ZONE_START, end: ABI_CONSTANTS.HUSK_ZONE_END, isWanted: false };
  const all = regions.map((region) => ({ start: region.start, end: region.end, isWanted: wanted(region) }));
  const spans: { start: bigint; end: bigint }[] = [];
  let open = false;
  for (const { start, end, isWanted } of [...all, zone].sort((a, b) => (a.start < b.start ? -1 : 1))) {
    const last = spans.at(-1);
    if (isWanted && open && last !== undefined) last.end = end > last.end ? end : last.end;
    else if (isWanted) spans.push({ start, end });
    open = isWanted;
  }
  return spans;
}
