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
import { checkRow, IMAGE_ROW, parseColumn, VERSION_ROW } from "./damaged-rows.js";
import { Reserve } from "./reserve.js";
import type { HeatStatus, ImageEntry, ImageState, WarmUp } from "./types.js";

/** Its name in the data directory. */
export const DATABASE_FILE = "thaw.db";
const RESERVE_FILE = "thaw.reserve";

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
  readonly warmUp?: Required<WarmUp> | undefined;
  readonly learn?: boolean | undefined;
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

/** The part of a version that changes by itself. */
export interface StoredState {
  readonly state: Exclude<ImageState, "none">;
  readonly reason?: string | undefined;
  /** What became of its warm-up events; undefined while that is not known. */
  readonly warmUp?: HeatStatus | undefined;
}

/** One image of a version. `dir` is a name inside the images directory. */
export interface StoredImage extends Pick<ImageEntry, "generation" | "heat" | "source" | "createdMs"> {
  readonly dir: string;
  /** Absent for one that an old thaw recorded. */
  readonly summary?: ImageSummary | undefined;
}

/** What is shown of an image. */
export type ImageSummary = Pick<Image, "id" | "bytesOnDisk" | "report" | "code">;

/** What was learned of a function, as JSON: when it is idle, or what its images are worth. The latter belongs to one revision. */
export interface StoredLearned {
  readonly what: "idle-times" | "heat";
  readonly state: string;
}

/** The same, to be written. */
export interface LearnedRow extends StoredLearned {
  readonly version: StoredVersion;
}

/** A version with all that is stored about it, its images by generation. */
export interface StoredFunction {
  readonly version: StoredVersion;
  readonly state: StoredState;
  readonly images: readonly StoredImage[];
  readonly learned: readonly StoredLearned[];
}

interface ImageRow {
  dir: string;
  function_name: string;
  version: string;
  generation: number;
  heat: number;
  source: StoredImage["source"];
  created_ms: number;
  summary: string | null;
}

interface LearnedTableRow extends StoredLearned {
  readonly function_name: string;
  readonly revision_id: string;
}

interface Row {
  function_name: string;
  version: string;
  revision_id: string;
  modified_ms: number;
  config: string;
  code_hex: string;
  code_bytes: number;
  image_state: StoredState["state"];
  image_reason: string | null;
  warm_up_state: HeatStatus["state"] | null;
  warm_up_reason: string | null;
}

/** The database. Every method is one transaction, durable when it returns unless it says otherwise; DATABASE_FAILED when it cannot be. */
export class Store {
  readonly #database: Database.Database;
  readonly #reserve: Reserve;
  #open = true;

  private constructor(database: Database.Database, reserve: Reserve) {
    this.#database = database;
    this.#reserve = reserve;
    reserve.take();
  }

  /** Opens or creates `thaw.db` in `dataDir`, and brings its schema up to date. */
  static open(dataDir: string): Store {
    const path = join(dataDir, DATABASE_FILE);
    return guarded(`The database ${path} could not be opened`, () => {
      const database = new Database(path);
      // Environments of functions may hold secrets.
      chmodSync(path, 0o600);
      database.pragma("journal_mode=WAL");
      database.pragma("synchronous=FULL");
      database.pragma("foreign_keys=ON");
      refuseDamaged(database, path);
      migrate(database, path);
      return new Store(database, new Reserve(join(dataDir, RESERVE_FILE)));
    });
  }

  /** Every version with its images. */
  all(): StoredFunction[] {
    return guarded("The functions could not be read from the database", () => {
      const rows = this.#database.prepare("SELECT * FROM versions ORDER BY function_name, version").all() as Row[];
      const images = new Map<string, StoredImage[]>();
      for (const row of this.#database.prepare("SELECT * FROM images ORDER BY generation").all() as ImageRow[]) {
        const key = `${row.function_name}:${row.version}`;
        images.set(key, [...(images.get(key) ?? []), imageOf(row)]);
      }
      const learned = new Map<string, LearnedTableRow[]>();
      for (const row of this.#database.prepare("SELECT * FROM learned").all() as LearnedTableRow[]) {
        learned.set(row.function_name, [...(learned.get(row.function_name) ?? []), row]);
      }
      return rows.map((row) => ({
        version: {
          functionName: row.function_name,
          version: row.version,
          revisionId: row.revision_id,
          modifiedMs: row.modified_ms,
          config: configOf(row),
          codeHex: row.code_hex,
          codeBytes: row.code_bytes,
        },
        state: {
          state: row.image_state,
          reason: row.image_reason ?? undefined,
          warmUp:
            row.warm_up_state === null
              ? undefined
              : { state: row.warm_up_state, ...(row.warm_up_reason === null ? {} : { reason: row.warm_up_reason }) },
        },
        images: images.get(`${row.function_name}:${row.version}`) ?? [],
        learned: (learned.get(row.function_name) ?? [])
          .filter(({ what, revision_id }) => what === "idle-times" || revision_id === row.revision_id)
          .map(({ what, state }) => ({ what, state })),
      }));
    });
  }

  /** Creates or replaces a version; it has no image then, and its image is pending. */
  put(version: StoredVersion): void {
    this.#reserve.take();
    guarded(`Function "${version.functionName}" could not be recorded`, () => {
      inTransaction(this.#database, () => {
        this.#database
          .prepare("INSERT INTO functions (name, created_ms) VALUES (?, ?) ON CONFLICT (name) DO NOTHING")
          .run(version.functionName, version.modifiedMs);
        this.#database
          .prepare("DELETE FROM images WHERE function_name = ? AND version = ?")
          .run(version.functionName, version.version);
        this.#database
          .prepare(
            `INSERT OR REPLACE INTO versions (function_name, version, revision_id, modified_ms, config, code_hex, code_bytes,
               image_state) VALUES (?, ?, ?, ?, ?, ?, ?, 'pending')`,
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
      });
    });
  }

  /** Records where the images of one revision stand. False when that revision is not the current one any more. */
  putState(version: StoredVersion, { state, reason, warmUp }: StoredState): boolean {
    return guarded(`The state of function "${version.functionName}" could not be recorded`, () =>
      inTransaction(this.#database, () => this.#update(version, state, reason, warmUp)),
    );
  }

  /**
   * Records an image of one revision, which is ready by that. False when that revision is not the current one any more: the image
   * then belongs to nobody. It takes the place of one of its generation that could not be forgotten, because the disk was full.
   */
  putImage(version: StoredVersion, image: StoredImage, warmUp?: HeatStatus): boolean {
    return guarded(`An image of function "${version.functionName}" could not be recorded`, () =>
      inTransaction(this.#database, (): boolean => {
        if (!this.#update(version, "ready", undefined, warmUp)) return false;
        this.#database
          .prepare(
            `INSERT OR REPLACE INTO images (dir, function_name, version, generation, heat, source, created_ms, summary)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?)`,
          )
          .run(
            image.dir,
            version.functionName,
            version.version,
            image.generation,
            image.heat,
            image.source,
            image.createdMs,
            image.summary === undefined ? null : JSON.stringify(image.summary),
          );
        return true;
      }),
    );
  }

  /**
   * Replaces what was learned. Rows of a revision that is not the current one any more are left out. The one thing that is not on
   * disk when it returns: nobody shall wait for the disk because of it.
   */
  putLearned(rows: readonly LearnedRow[]): void {
    guarded("What was learned of functions could not be recorded", () => {
      this.#database.pragma("synchronous=NORMAL");
      try {
        inTransaction(this.#database, () => {
          const put = this.#database.prepare(
            `INSERT OR REPLACE INTO learned (function_name, what, revision_id, state)
             SELECT function_name, ?, revision_id, ? FROM versions WHERE function_name = ? AND version = ? AND revision_id = ?`,
          );
          for (const { version, what, state } of rows) {
            put.run(what, state, version.functionName, version.version, version.revisionId);
          }
        });
      } finally {
        this.#database.pragma("synchronous=FULL");
      }
    });
  }

  /** Forgets an image. */
  removeImage(dir: string): void {
    guarded("An image could not be removed from the database", () => {
      this.#makingRoom(() => this.#database.prepare("DELETE FROM images WHERE dir = ?").run(dir));
    });
  }

  /** Removes a function with all its versions. */
  remove(functionName: string): void {
    guarded(`Function "${functionName}" could not be removed from the database`, () => {
      this.#makingRoom(() => {
        this.#database.prepare("DELETE FROM images WHERE function_name = ?").run(functionName);
        this.#database.prepare("DELETE FROM learned WHERE function_name = ?").run(functionName);
        this.#database.prepare("DELETE FROM versions WHERE function_name = ?").run(functionName);
        this.#database.prepare("DELETE FROM functions WHERE name = ?").run(functionName);
      });
    });
  }

  /** Idempotent. */
  close(): void {
    if (!this.#open) return;
    this.#open = false;
    this.#database.close();
  }

  /**
   * A transaction behind which files are removed: where the disk is full it has the room that is kept for it. Behind the checkpoint the log is written from its
   * beginning again, so that most of that room is left, and taken before anybody else takes it.
   */
  #makingRoom(operation: () => unknown): void {
    this.#reserve.take();
    try {
      inTransaction(this.#database, operation);
    } catch (error) {
      if ((error as { code?: string }).code !== "SQLITE_FULL") throw error;
      this.#reserve.giveUp();
      try {
        this.#database.pragma("wal_checkpoint(PASSIVE)");
        inTransaction(this.#database, operation);
      } finally {
        this.#reserve.take();
      }
    }
  }

  #update(version: StoredVersion, state: string, reason: string | undefined, warmUp: HeatStatus | undefined): boolean {
    const { changes } = this.#database
      .prepare(
        `UPDATE versions SET image_state = ?, image_reason = ?, warm_up_state = ?, warm_up_reason = ?
         WHERE function_name = ? AND version = ? AND revision_id = ?`,
      )
      .run(
        state,
        reason ?? null,
        warmUp?.state ?? null,
        warmUp?.reason ?? null,
        version.functionName,
        version.version,
        version.revisionId,
      );
    return changes > 0;
  }
}

function configOf(row: Row): StoredConfig {
  const config = parseColumn(row, "config");
  checkRow(VERSION_ROW, { ...row, config });
  return config as StoredConfig;
}

function imageOf(row: ImageRow): StoredImage {
  const { dir, generation, heat, source, created_ms } = row;
  const summary = row.summary === null ? null : parseColumn(row, "summary");
  checkRow(IMAGE_ROW, { ...row, summary });
  const parsed = summary === null ? {} : { summary: summary as ImageSummary };
  return { dir, generation, heat, source, createdMs: created_ms, ...parsed };
}

/** Before anything is written to it. Costs one reading of the file, which {@link Store.all} does anyway. */
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
function inTransaction<T>(database: Database.Database, operation: () => T): T {
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
