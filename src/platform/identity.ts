/**
 * Which database a data directory belongs to. What a database does not name is swept (sweep.ts), so one that is new, or another's, would take every function's
 * code with it: a database has a random name of its own, which is noted beside it with what it names.
 */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { ThawError } from "../base/errors.js";
import { writeFileDurably } from "../base/fsync.js";
import { DATABASE_FILE } from "./store.js";

const FILE = "thaw.id";

/** The name of the database that was used here last; undefined where none was, or an older thaw's. */
export async function knownIdentity(dataDir: string): Promise<string | undefined> {
  try {
    return (await readFile(join(dataDir, FILE), "utf8")).trim();
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw error;
  }
}

/**
 * Notes whose directory this is. DATABASE_FAILED, with nothing changed, when it is another database's and `strange`: functions lie there, and none that this one
 * names. (One of an older thaw, from a backup, gets its name when it is opened, and knows some of them.)
 */
export async function claimDirectory(dataDir: string, identity: string, strange: boolean): Promise<void> {
  const known = await knownIdentity(dataDir);
  if (known === identity) return;
  if (known !== undefined && strange) {
    throw new ThawError("DATABASE_FAILED", {
      what: `The database ${join(dataDir, DATABASE_FILE)} cannot be used`,
      why: "it is another one than that of the functions beside it, and names none of them",
      fix: restored(dataDir),
    });
  }
  await writeFileDurably(join(dataDir, FILE), `${identity}\n`);
}

/** What to do about a database that is not there, or not this directory's. */
export function restored(dataDir: string): string {
  return `Restore it from a backup, or start with another data directory; who wants none of those functions any more removes ${join(dataDir, FILE)}`;
}
