/** Files without a name that were made by memfd_create(2): their names for whoever looks at them, and their seals. */
import { SYS } from "../linux/syscalls.js";
import type { Descriptor } from "./facts.js";
import type { Argument, ProgramBuilder } from "./program.js";

const F_ADD_SEALS = 1033;
const F_SEAL_EXEC = 0x20;
const MFD_CLOEXEC = 1;
const MFD_ALLOW_SEALING = 2;
const MFD_NOEXEC_SEAL = 8;

type File = Extract<Descriptor, { kind: "file" }>;

/** The kernel tells its name as `/memfd:NAME (deleted)`. */
export function memfdArguments(program: ProgramBuilder, { path, mode, seals }: File, cloexec: boolean): readonly Argument[] {
  const name = path.replace(/^\/memfd:/, "").replace(/ \(deleted\)$/, "");
  return [program.text(name), (cloexec ? MFD_CLOEXEC : 0) | sealing(mode, seals)];
}

/** One without the member was made without MFD_ALLOW_SEALING. */
function sealing(mode: number, seals: number | undefined): number {
  if (seals === undefined) return 0;
  return (seals & F_SEAL_EXEC) !== 0 && (mode & 0o111) === 0 ? MFD_NOEXEC_SEAL : MFD_ALLOW_SEALING;
}

/** Behind its contents, which the seals may be against. */
export function seal(program: ProgramBuilder, label: string, { fd, seals = 0 }: File): void {
  if (seals !== 0) program.call(`${label}: seals`, SYS.fcntl, [fd, F_ADD_SEALS, seals]);
}
