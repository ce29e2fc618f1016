/**
 * The SQLite file itself: opened, its schema brought up to date, written in transactions, its failures put into words. A log is written ahead, and a commit does not
 * wait for the disk, which may be busy for a tenth of a second, in which the event loop would answer nobody: who needs it there waits for {@link WriteAheadLog.flush}.
 */
import { chmodSync } from "node:fs";
import { type FileHandle, open } from "node:fs/promises";
import Database from "libsql";
import { errorText, ThawError } from "../base/errors.js";
import { resourceError } from "./resources.js";

/** Each entry brings the schema from its index to the next version. Never edit one that was released. */
const MIGRATIONS: readonly string[] = [
  `CREATE TABLE functions (
     name TEXT PRIMARY KEY NOT NULL,
     created_ms INTEGER NOT NULL
   ) STRICT, WITHOUT ROWID;
   CREATE TABLE versions (
     function_name TEXT NOT NULL REFERENCES functions (name) ON DELETE CASCADE,
     version TEXT NOT NULL,
     revision_id TEXT NOT NULL,
     modified_ms INTEGER NOT NULL,
     config TEXT NOT NULL,
     code_hex TEXT NOT NULL,
     code_bytes INTEGER NOT NULL,
     image_state TEXT NOT NULL,
     image_reason TEXT,
     image_dir TEXT,
     PRIMARY KEY (function_name, version)
   ) STRICT, WITHOUT ROWID;`,
  // What is shown of an image, so that a server with many functions need not open them all to list them.
  "ALTER TABLE versions ADD COLUMN image_summary TEXT",
  // A version has a pool of images, of growing heat; the one that it had becomes generation 0.
  `CREATE TABLE images (
     dir TEXT PRIMARY KEY NOT NULL,
     function_name TEXT NOT NULL REFERENCES functions (name) ON DELETE CASCADE,
     version TEXT NOT NULL,
     generation INTEGER NOT NULL,
     heat INTEGER NOT NULL,
     source TEXT NOT NULL,
     created_ms INTEGER NOT NULL,
     summary TEXT,
     UNIQUE (function_name, version, generation)
   ) STRICT, WITHOUT ROWID;
   INSERT INTO images (dir, function_name, version, generation, heat, source, created_ms, summary)
     SELECT image_dir, function_name, version, 0, 0, 'deploy', modified_ms, image_summary FROM versions WHERE image_dir IS NOT NULL;
   ALTER TABLE versions DROP COLUMN image_dir;
   ALTER TABLE versions DROP COLUMN image_summary;
   ALTER TABLE versions ADD COLUMN warm_up_state TEXT;
   ALTER TABLE versions ADD COLUMN warm_up_reason TEXT;`,
  // What policies have learned. No harm is done when it is lost; so it has no part in what is checked.
  `CREATE TABLE learned (
     function_name TEXT NOT NULL REFERENCES functions (name) ON DELETE CASCADE,
     what TEXT NOT NULL,
     revision_id TEXT NOT NULL,
     state TEXT NOT NULL,
     PRIMARY KEY (function_name, what)
   ) STRICT, WITHOUT ROWID;`,
  // Its own name, by which a directory knows it again (identity.ts).
  `CREATE TABLE identity (name TEXT PRIMARY KEY NOT NULL) STRICT, WITHOUT ROWID;
   INSERT INTO identity (name) VALUES (lower(hex(randomblob(16))));`,
];

/** Opens or creates the file at `path`. */
export function openDatabase(path: string): Database.Database {
  const database = new Database(path);
  // Environments of functions may hold secrets.
  chmodSync(path, 0o600);
  database.pragma("journal_mode=WAL");
  database.pragma("synchronous=NORMAL");
  database.pragma("foreign_keys=ON");
  refuseDamaged(database, path);
  migrate(database, path);
  return database;
}

/** Before anything is written to it. Costs one reading of the file, which the store does anyway. */
function refuseDamaged(database: Database.Database, path: string): void {
  const found = (database.pragma("quick_check") as { quick_check: string }[]).map((row) => row.quick_check);
  if (found.length === 1 && found[0] === "ok") return;
  throw new ThawError("DATABASE_FAILED", {
    what: `The database ${path} could not be opened`,
    why: `it is damaged: ${(found[0] ?? "it cannot be checked").replaceAll("\n", "; ")}`,
    fix: databaseFix("SQLITE_CORRUPT"),
  });
}

function migrate(database: Database.Database, path: string): void {
  const [row] = database.pragma("user_version") as { user_version: number }[];
  const current = row?.user_version ?? 0;
  if (current > MIGRATIONS.length) {
    throw new ThawError("DATABASE_FAILED", {
      what: `The database ${path} could not be opened`,
      why: `its schema has version ${current}, and this thaw knows versions up to ${MIGRATIONS.length}`,
      fix: "Use the newer thaw that wrote it, or another data directory",
    });
  }
  for (let version = current; version < MIGRATIONS.length; version++) {
    inTransaction(database, () => {
      database.exec(MIGRATIONS[version] ?? "");
      database.pragma(`user_version = ${version + 1}`);
    });
  }
}

/**
 * All of it or nothing. Every write is in one that is a writer's from its beginning, so that another program's lock is met by BEGIN: a prepared statement that meets
 * it stays unfinished, and no transaction could be committed any more. Not the library's own: of a full disk, SQLite rolls back by itself, and to roll back again is
 * an error that would hide the first.
 */
export function inTransaction<T>(database: Database.Database, operation: () => T): T {
  database.exec("BEGIN IMMEDIATE");
  try {
    const result = operation();
    database.exec("COMMIT");
    return result;
  } catch (error) {
    if (database.inTransaction) database.exec("ROLLBACK");
    throw error;
  }
}

/** Fails with DATABASE_FAILED, or RESOURCE_EXHAUSTED where the disk is full. */
export function guarded<T>(what: string, operation: () => T): T {
  try {
    return operation();
  } catch (error) {
    throw databaseError(what, error);
  }
}

/** The log that is written ahead of a database, as a file to be flushed. It is there from the database's opening to its closing. */
export class WriteAheadLog {
  readonly #path: string;
  /** Kept open: deploys that are committed shall not fail for want of a descriptor. */
  #file: Promise<FileHandle> | undefined;

  /** @param path the database's */
  constructor(path: string) {
    this.#path = `${path}-wal`;
  }

  /** Resolves when all that was committed is on disk, as with synchronous FULL, which flushes the same file. Errors as {@link guarded}. */
  async flush(): Promise<void> {
    try {
      this.#file ??= open(this.#path, "r");
      const file = await this.#file.catch((error: unknown) => {
        this.#file = undefined;
        throw error;
      });
      await file.datasync();
    } catch (error) {
      throw databaseError("What was changed just now is in force, but the disk may not have it", error);
    }
  }

  /** No lock is lost: SQLite has those of the database in other files. */
  async close(): Promise<void> {
    await this.#file?.then((file) => file.close()).catch(() => undefined);
  }
}

function databaseError(what: string, error: unknown): ThawError {
  const known = resourceError(error, what);
  if (known instanceof ThawError) return known;
  const { code } = error as { code?: string };
  const full = code === "SQLITE_FULL";
  return new ThawError(full ? "RESOURCE_EXHAUSTED" : "DATABASE_FAILED", {
    what,
    why: full ? "the disk is full" : errorText(error),
    fix: full ? "Free some space in the data directory's file system and try again" : databaseFix(code),
    cause: error,
  });
}

function databaseFix(code: string | undefined): string {
  if (code === "SQLITE_NOTADB" || code === "SQLITE_CORRUPT")
    return "Restore it from a backup, or start with another data directory";
  if (code === "SQLITE_BUSY") return "Close the other program that has it open";
  return "Check that the data directory can be written and its disk is healthy";
}
