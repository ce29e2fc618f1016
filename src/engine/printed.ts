/**
 * What a function printed and nobody took yet. Copied: what the keeper sends is a view of the chunk that the socket read, and one byte of a function's would keep
 * all of that in memory, with what others printed at the same time.
 */

/** Beyond this it is cut. */
export const PRINTED_BYTES_MAX = 4 * 1024 * 1024;
const CUT = Buffer.from("\n[log cut at 4 MiB]\n");
const FIRST_BYTES = 1024;
const EMPTY = Buffer.alloc(0);

export class Printed {
  #buffer = EMPTY;
  #filled = 0;
  #cut = false;

  add(bytes: Buffer): void {
    if (this.#cut) return;
    const room = PRINTED_BYTES_MAX - this.#filled;
    this.#append(bytes.length <= room ? bytes : bytes.subarray(0, room));
    if (bytes.length <= room) return;
    this.#cut = true;
    this.#append(CUT);
  }

  includes(text: string): boolean {
    return this.#buffer.subarray(0, this.#filled).includes(text);
  }

  /** All of it, once. */
  take(): Buffer {
    const taken = this.#buffer.subarray(0, this.#filled);
    this.#buffer = EMPTY;
    this.#filled = 0;
    this.#cut = false;
    return taken;
  }

  #append(bytes: Buffer): void {
    const needed = this.#filled + bytes.length;
    if (needed > this.#buffer.length) {
      const larger = Buffer.allocUnsafeSlow(Math.max(needed, FIRST_BYTES, 2 * this.#buffer.length));
      this.#buffer.copy(larger, 0, 0, this.#filled);
      this.#buffer = larger;
    }
    bytes.copy(this.#buffer, this.#filled);
    this.#filled = needed;
  }
}
