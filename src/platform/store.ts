/**
 * What must survive a crash: functions and their versions, in one SQLite file. WAL with synchronous FULL, so a commit that
 * returned is on disk. The database is the truth about files: code and image directories that it does not
 * name belong to nobody, and are swept when a server starts.
 *
 * It is read once, at start; requests never touch it.
 */
import { chmodSync } from "node:fs";
import { join } from "node:path";
import Database from "libsql";
import { errorText, ThawError } from "../base/errors.js";
import type { Image } from "../engine/types.js";
import type { ImageState } from "./types.js";

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
];

/** What a version is configured to, as stored. */
export interface StoredConfig {
  readonly runtime: string;
  readonly handler: string;
  readonly memoryMb: number;
  readonly timeoutMs: number;
  readonly env: Readonly<Record<string, string>>;
  readonly tmpMb: number;
  readonly description: string;
  readonly maxInstances?: number | undefined;
  readonly provisioned?: number | undefined;
}

/** One version of one function. Plain data. */
export interface StoredVersion {
  readonly functionName: string;
  readonly version: string;
  readonly revisionId: string;
  readonly modifiedMs: number;
  readonly config: StoredConfig;
  readonly codeHex: string;
  readonly codeBytes: number;
}

/** The part of a version that changes by itself. `dir` is a name inside the images directory. */
export interface StoredImage {
  readonly state: Exclude<ImageState, "none">;
  readonly reason?: string | undefined;
  readonly dir?: string | undefined;
  readonly summary?: ImageSummary | undefined;
}

/** What is shown of an image. */
export type ImageSummary = Pick<Image, "id" | "generation" | "heat" | "bytesOnDisk" | "report">;

interface Row {
  function_name: string;
  version: string;
  revision_id: string;
  modified_ms: number;
  config: string;
  code_hex: string;
  code_bytes: number;
  image_state: StoredImage["state"];
  image_reason: string | null;
  image_dir: string | null;
  image_summary: string | null;
}

/** The database. Every method is one transaction, durable when it returns; DATABASE_FAILED when it cannot be. */
export class Store {
  readonly #database: Database.Database;
  #open = true;

  private constructor(database: Database.Database) {
    this.#database = database;
  }

  /** Opens or creates `thaw.db` in `dataDir`, and brings its schema up to date. */
  static open(dataDir: string): Store {
    const path = join(dataDir, "thaw.db");
    return guarded(`The database ${path} could not be opened`, () => {
      const database = new Database(path);
      // Environments of functions may hold secrets.
      chmodSync(path, 0o600);
      database.pragma("journal_mode=WAL");
      database.pragma("synchronous=FULL");
      database.pragma("foreign_keys=ON");
      migrate(database, path);
      return new Store(database);
    });
  }

  /** Every version with its image. */
  all(): { version: StoredVersion; image: StoredImage }[] {
    return guarded("The functions could not be read from the database", () => {
      const rows = this.#database.prepare("SELECT * FROM versions ORDER BY function_name, version").all() as Row[];
      return rows.map((row) => ({
        version: {
          functionName: row.function_name,
          version: row.version,
          revisionId: row.revision_id,
          modifiedMs: row.modified_ms,
          config: JSON.parse(row.config) as StoredConfig,
          codeHex: row.code_hex,
          codeBytes: row.code_bytes,
        },
        image: {
          state: row.image_state,
          reason: row.image_reason ?? undefined,
          dir: row.image_dir ?? undefined,
          ...(row.image_summary === null ? {} : { summary: JSON.parse(row.image_summary) as ImageSummary }),
        },
      }));
    });
  }

  /** Creates or replaces a version; its image is pending. */
  put(version: StoredVersion): void {
    guarded(`Function "${version.functionName}" could not be recorded`, () => {
      this.#database.transaction(() => {
        this.#database
          .prepare("INSERT INTO functions (name, created_ms) VALUES (?, ?) ON CONFLICT (name) DO NOTHING")
          .run(version.functionName, version.modifiedMs);
        this.#database
          .prepare(
            `INSERT OR REPLACE INTO versions (function_name, version, revision_id, modified_ms, config, code_hex, code_bytes,
               image_state, image_reason, image_dir) VALUES (?, ?, ?, ?, ?, ?, ?, 'pending', NULL, NULL)`,
          )
          .run(
            version.functionName,
            version.version,
            version.revisionId,
            version.modifiedMs,
            JSON.stringify(version.config),
            version.codeHex,
            version.codeBytes,
          );
      })();
    });
  }

  /**
   * Records the image of one revision. False when that revision is not the current one any more: the image then belongs to
   * nobody.
   */
  putImage(version: StoredVersion, image: StoredImage): boolean {
    return guarded(`The image of function "${version.functionName}" could not be recorded`, () => {
      const { changes } = this.#database
        .prepare(
          `UPDATE versions SET image_state = ?, image_reason = ?, image_dir = ?, image_summary = ?
           WHERE function_name = ? AND version = ? AND revision_id = ?`,
        )
        .run(
          image.state,
          image.reason ?? null,
          image.dir ?? null,
          image.summary === undefined ? null : JSON.stringify(image.summary),
          version.functionName,
          version.version,
          version.revisionId,
        );
      return changes > 0;
    });
  }

  /** Removes a function with all its versions. */
  remove(functionName: string): void {
    guarded(`Function "${functionName}" could not be removed from the database`, () => {
      this.#database.transaction(() => {
        this.#database.prepare("DELETE FROM versions WHERE function_name = ?").run(functionName);
        this.#database.prepare("DELETE FROM functions WHERE name = ?").run(functionName);
      })();
    });
  }

  /** Idempotent. */
  close(): void {
    if (!this.#open) return;
    this.#open = false;
    this.#database.close();
  }
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
    database.transaction(() => {
      database.exec(MIGRATIONS[version] ?? "");
      database.pragma(`user_version = ${version + 1}`);
    })();
  }
}

function guarded<T>(what: string, operation: () => T): T {
  try {
    return operation();
  } catch (error) {
    if (error instanceof ThawError) throw error;
    const code = (error as { code?: string }).code;
    const full = code === "SQLITE_FULL";
    throw new ThawError(full ? "RESOURCE_EXHAUSTED" : "DATABASE_FAILED", {
      what,
      why: full ? "the disk is full" : errorText(error),
      fix: full ? "Free some space in the data directory's file system and try again" : databaseFix(code),
      cause: error,
    });
  }
}

function databaseFix(code: string | undefined): string {
  if (code === "SQLITE_NOTADB" || code === "SQLITE_CORRUPT")
    return "Restore it from a backup, or start with another data directory";
  if (code === "SQLITE_BUSY") return "Close the other program that has it open";
  return "Check that the data directory can be written and its disk is healthy";
}
