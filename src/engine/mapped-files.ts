/**
 * Files that instances map, such as interpreters, opened in the keeper once for all who read ahead from them. The last of these has them
 * closed: a removed image would keep its disk space otherwise.
 *
 * Which file lies where was told while the process stood still; it runs when that is opened, and may have put another file there, which would be
 * read ahead for, and kept open by, all who map the one that was told. So the keeper opens no file but that.
 */
import type { Keeper } from "./keeper.js";

/** See above. */
export class MappedFiles {
  readonly #files = new Map<string, { readonly id: Promise<number>; readonly users: Set<object> }>();
  readonly #gone = new WeakSet<object>();

  constructor(private readonly keeper: Keeper) {}

  /** `file`: device and inode; `mapping`: addresses of one in process `pid`. Undefined when it is gone, or `user` is. */
  async open(user: object, pid: number, file: string, mapping: string): Promise<number | undefined> {
    if (this.#gone.has(user)) return undefined;
    let entry = this.#files.get(file);
    if (entry === undefined) {
      const opened = { id: this.keeper.openMapped(pid, mapping, file), users: new Set<object>() };
      entry = opened;
      this.#files.set(file, opened);
      opened.id.catch(() => this.#files.get(file) === opened && this.#files.delete(file));
    }
    entry.users.add(user);
    return entry.id.catch(() => undefined);
  }

  /** `user` opens no more, and needs nothing of what it opened. */
  release(user: object): void {
    this.#gone.add(user);
    for (const [file, { id, users }] of this.#files) {
      if (!users.delete(user) || users.size > 0) continue;
      this.#files.delete(file);
      id.then(
        (opened) => this.keeper.closeFile(opened),
        () => undefined,
      );
    }
  }
}
