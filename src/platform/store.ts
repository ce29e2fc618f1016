/**
 * What must survive a crash: functions and their versions, in one database (database.ts), which is the truth about files: code and image
 * directories that it does not name belong to nobody, and are swept when a server starts.
 *
 * It is read once, at start; requests never touch it.
 */
import { join } from "node:path";
import type Database from "libsql";
import type { Image } from "../engine/types.js";
import { checkRow, IMAGE_ROW, parseColumn, VERSION_ROW } from "./damaged-rows.js";
import { guarded, inTransaction, openDatabase, WriteAheadLog } from "./database.js";
import { Reserve } from "./reserve.js";
import type { HeatStatus, ImageEntry, ImageState, WarmUp } from "./types.js";

/** Its name in the data directory. */
export const DATABASE_FILE = "thaw.db";
const RESERVE_FILE = "thaw.reserve";

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

/**
 * The database. Every method that writes is one transaction, which outlives the server when it returns, and the machine once {@link Store.flush} has resolved. Functions
 * that come and go wait for that; an image or a state that is lost with the machine is made anew. DATABASE_FAILED when it cannot be.
 */
export class Store {
  readonly #database: Database.Database;
  readonly #log: WriteAheadLog;
  readonly #reserve: Reserve;
  #open = true;

  private constructor(database: Database.Database, log: WriteAheadLog, reserve: Reserve) {
    this.#database = database;
    this.#log = log;
    this.#reserve = reserve;
    reserve.take();
  }

  /** Opens or creates `thaw.db` in `dataDir`, and brings its schema up to date. */
  static open(dataDir: string): Store {
    const path = join(dataDir, DATABASE_FILE);
    return guarded(
      `The database ${path} could not be opened`,
      () => new Store(openDatabase(path), new WriteAheadLog(path), new Reserve(join(dataDir, RESERVE_FILE))),
    );
  }

  /** Random, and its own as long as it lives. */
  get identity(): string {
    return guarded("The database could not be read", () => {
      const [row] = this.#database.prepare("SELECT name FROM identity").all() as { name: string }[];
      return row?.name ?? "";
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

  /** Replaces what was learned. Rows of a revision that is not the current one any more are left out. */
  putLearned(rows: readonly LearnedRow[]): void {
    guarded("What was learned of functions could not be recorded", () => {
      inTransaction(this.#database, () => {
        const put = this.#database.prepare(
          `INSERT OR REPLACE INTO learned (function_name, what, revision_id, state)
           SELECT function_name, ?, revision_id, ? FROM versions WHERE function_name = ? AND version = ? AND revision_id = ?`,
        );
        for (const { version, what, state } of rows) {
          put.run(what, state, version.functionName, version.version, version.revisionId);
        }
      });
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

  /** Resolves when all that was written is on disk. */
  flush(): Promise<void> {
    return this.#log.flush();
  }

  /** Idempotent. */
  async close(): Promise<void> {
    if (!this.#open) return;
    this.#open = false;
    // Statements keep it open until they are collected: whoever copies thaw.db alone in between has all of it.
    try {
      this.#database.pragma("wal_checkpoint(TRUNCATE)");
    } catch {
      // A full disk, say: what is not in it is in its log, which the next server reads.
    }
    this.#database.close();
    await this.#log.close();
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
