/**
 * Whether the bytes on disk are those that were written. The manifest is checked whenever it is read; the page space, which is large, at
 * first use, and again when its file has changed since (docs/design/image.md).
 */
import { ThawError } from "../base/errors.js";
import {
  baseIdentity,
  basePath,
  checkBase,
  checkPages,
  imageFiles,
  inodeOf,
  pagesIdentity,
  type StoredImage,
} from "../image/index.js";
import type { Keeper } from "./keeper.js";
import { parseReply } from "./native.js";

/** Page spaces of bases that a server found whole; by keeper, because they are found anew by each server. */
const wholeBases = new WeakMap<Keeper, Set<string>>();

/** Of one open image. */
export class ImageCheck {
  private readonly pages: string;
  /** Of the file that was opened. */
  private readonly inode: string;
  private verified: string | undefined;
  private verifying: Promise<void> | undefined;
  private rewriting = false;

  constructor(
    private readonly keeper: Keeper,
    private readonly extractor: string,
    private readonly stored: StoredImage,
    private readonly dir: string,
    private readonly isBase: boolean,
  ) {
    this.pages = imageFiles(dir).pages;
    this.inode = inodeOf(pagesIdentity(this.pages));
  }

  /** The pages were written by this server a moment ago. */
  trust(): void {
    this.verified = this.identity();
  }

  /** Undefined when nothing changed since it was found whole. Rejects with IMAGE_DAMAGED. */
  verify(): Promise<void> | undefined {
    if (this.rewriting || this.isWhole()) return undefined;
    this.verifying ??= this.again().finally(() => {
      this.verifying = undefined;
    });
    return this.verifying;
  }

  /** Runs `task`, which may write bytes of the page space again that are there: what was found whole still is. Not run on anything else. */
  async rewritten(task: () => Promise<void>): Promise<void> {
    if (this.rewriting || !this.isWhole()) return;
    this.rewriting = true;
    try {
      await task();
    } finally {
      this.verified = this.identity();
      this.rewriting = false;
    }
  }

  private isWhole(): boolean {
    return this.verified !== undefined && this.verified === this.identity();
  }

  private identity(): string {
    // Links to a base's pages change their change time.
    if (this.isBase) return baseIdentity(this.pages);
    const own = pagesIdentity(this.pages);
    return this.stored.manifest.base === undefined ? own : `${own} ${baseIdentity(basePath(this.dir))}`;
  }

  /** Reads and checks all of it, whatever was known. IMAGE_DAMAGED. */
  async again(): Promise<void> {
    const before = this.identity();
    // What is mapped is the file that was opened; another one under its name, even a whole one, says nothing about that.
    const why = before.startsWith("missing")
      ? "it is missing"
      : inodeOf(before) === this.inode
        ? undefined
        : "another file took its place since it was opened";
    if (why !== undefined)
      throw new ThawError("IMAGE_DAMAGED", {
        what: `the image file ${this.pages} cannot be used`,
        why,
        fix: "the function boots and is frozen anew",
      });
    checkPages(this.stored.manifest, await this.digestOf(this.pages), this.dir);
    if (this.stored.manifest.base !== undefined) await this.verifyBase();
    this.verified = before;
  }

  /** Once for all images that share it. */
  private async verifyBase(): Promise<void> {
    const whole = wholeBases.get(this.keeper) ?? new Set();
    wholeBases.set(this.keeper, whole);
    const base = basePath(this.dir);
    const identity = baseIdentity(base);
    if (whole.has(identity)) return;
    checkBase(this.stored.manifest, await this.digestOf(base), this.dir);
    whole.add(identity);
  }

  private async digestOf(path: string): Promise<{ digest: string; bytes: string }> {
    const { stdout } = await this.keeper.helper([this.extractor, "verify", path]);
    const reply = parseReply(stdout);
    if (reply.ok) return { digest: String(reply.digest), bytes: String(reply.bytes) };
    throw new ThawError("IMAGE_DAMAGED", {
      what: `the pages of image ${this.stored.manifest.id} cannot be read`,
      why: String(reply.why),
      fix: "the function boots and is frozen anew",
    });
  }
}
