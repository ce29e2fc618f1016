/** Data directories of tests lie on a disk: in memory no page can be dropped, and none comes from a disk. */
import { tmpdir } from "node:os";
import { scratchDir } from "../../src/lab/environment.js";

/** The runner calls this before the first test. */
export default function setup(): void {
  const dir = scratchDir();
  if (dir !== tmpdir()) process.env["TMPDIR"] = dir;
}
