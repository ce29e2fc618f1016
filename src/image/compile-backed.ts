/**
 * Shared memory of a file that each clone has of its own: in `/tmp` by its name, or by a descriptor of it (a memfd, a file that was removed). The
 * clone's file has the bytes; what is written through the mapping is in the file, and the other way round, as before the freeze.
 */
import { AT_FDCWD, MAP_FIXED, MAP_SHARED, O_CLOEXEC, O_RDWR, SYS } from "../linux/syscalls.js";
import type { Region } from "./facts.js";
import type { Argument, ProgramBuilder } from "./program.js";

/** Through a descriptor that may write where the mapping may: then it may become writable later, whatever it is now. */
function map(program: ProgramBuilder, region: Region, label: string, fd: Argument): void {
  const bytes = region.end - region.start;
  program.call(label, SYS.mmap, [region.start, bytes, region.prot, MAP_SHARED | MAP_FIXED, fd, region.offset ?? 0n]);
}

/** Of files that have a name: behind the contents of /tmp, and before locks, which the process would lose when it closes the file. */
export function mapNamed(program: ProgramBuilder, regions: readonly Region[]): void {
  for (const region of regions) {
    if (region.kind !== "backed" || region.path === undefined) continue;
    const fd = program.slot();
    const access = region.writes === 1 ? O_RDWR : 0;
    program.call(`open ${region.path}`, SYS.openat, [AT_FDCWD, program.text(region.path), access | O_CLOEXEC, 0], {
      result: fd,
    });
    map(program, region, `map ${region.path}`, fd);
    program.call(`close ${region.path}`, SYS.close, [fd]);
    program.release(fd);
  }
}

/** Of files that have a descriptor: behind those. */
export function mapOpened(program: ProgramBuilder, regions: readonly Region[]): void {
  for (const region of regions)
    if (region.kind === "backed" && region.fd !== undefined)
      map(program, region, `map the file of descriptor ${region.fd}`, region.fd);
}
