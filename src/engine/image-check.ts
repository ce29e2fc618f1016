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
  type Identity,
  imageFiles,
  pagesIdentity,
  type StoredImage,
  sameIdentity,
} from "../image/index.js";
import type { Keeper } from "./keeper.js";
import { parseReply } from "./native.js";

/** Page spaces of bases that a server found whole; by keeper, because they are found anew by each server. */
const wholeBases = new WeakMap<Keeper, Identity[]>();

/** Of the page space, and of the base's where there is one. */
interface Seen {
  readonly own: Identity;
  readonly base: Identity;
}

/** Of one open image. */
export class ImageCheck {
  private readonly pages: string;
  /** Of the file that was opened. */
  private readonly inode: bigint | undefined;
  private verified: Seen | undefined;
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
    this.inode = pagesIdentity(this.pages)?.inode;
  }

  /** The pages were written by this server a moment ago. */
  trust(): void {
    this.verified = this.look();
  }

  /** It was whole when it was looked at last. */
  get foundWhole(): boolean {
    return this.verified !== undefined;
  }

  /** Undefined when nothing changed since it was found whole. Rejects with IMAGE_DAMAGED. */
  verify(): Promise<void> | undefined {
    if (this.rewriting || this.isWhole()) return undefined;
    this.verifying ??= this.again().finally(() => {
      this.verifying = undefined;
    });
    return this.verifying;
  }

  /**
   * Runs `task`, which may write bytes of the page space again that are there: what was found whole still is, and starts go on meanwhile. Not run on anything
   * else. What somebody else wrote at that time would look like the task's work, so all of it is checked behind it.
   */
  async rewritten(task: () => Promise<void>): Promise<void> {
    if (this.rewriting || !this.isWhole()) return;
    this.rewriting = true;
    try {
      await task();
    } finally {
      // What is wrong with it the next start finds out again, and tells.
      await this.again().catch(() => undefined);
      this.rewriting = false;
    }
  }

  private isWhole(): boolean {
    const { verified } = this;
    if (verified === undefined) return false;
    const now = this.look();
    return sameIdentity(verified.own, now.own) && sameIdentity(verified.base, now.base);
  }

  private look(): Seen {
    // Links to a base's pages change their change time.
    const own = this.isBase ? baseIdentity(this.pages) : pagesIdentity(this.pages);
    return { own, base: this.stored.manifest.base === undefined ? undefined : baseIdentity(basePath(this.dir)) };
  }

  /** Reads and checks all of it, whatever was known. IMAGE_DAMAGED. */
  async again(): Promise<void> {
    const before = this.look();
    // What is mapped is the file that was opened; another one under its name, even a whole one, says nothing about that.
    const why =
      before.own === undefined
        ? "it is missing"
        : before.own.inode === this.inode
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
    const whole = wholeBases.get(this.keeper) ?? [];
    wholeBases.set(this.keeper, whole);
    const base = basePath(this.dir);
    const identity = baseIdentity(base);
    if (whole.some((one) => sameIdentity(one, identity))) return;
    checkBase(this.stored.manifest, await this.digestOf(base), this.dir);
    whole.push(identity);
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
