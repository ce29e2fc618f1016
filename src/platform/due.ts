/**
 * One timer for any number of things that are due at some time: a binary heap, each thing in it at most once. Ten thousand idle
 * instances are ten thousand places in an array; the machine is woken only for the one that is due next.
 */

import { TIMER_MS_MAX } from "../base/clock.js";

/** What the queue keeps in its things; nobody else writes it. */
export interface Due {
  /** By `performance.now()`. */
  dueMs: number;
  /** Place in the heap; -1: not in it. */
  dueIndex: number;
}

/** Things that are due close to each other are handled together. */
const COARSE_MS = 5;

/** See above. */
export class DueQueue<T extends Due> {
  readonly #heap: T[] = [];
  #timer: NodeJS.Timeout | undefined;
  #armedForMs = Number.POSITIVE_INFINITY;

  constructor(private readonly onDue: (item: T) => void) {}

  get size(): number {
    return this.#heap.length;
  }

  /** Makes `item` due at `atMs`, instead of when it was due before. */
  set(item: T, atMs: number): void {
    item.dueMs = atMs;
    if (item.dueIndex < 0) {
      item.dueIndex = this.#heap.length;
      this.#heap.push(item);
    }
    this.#up(item);
    this.#down(item);
    this.#arm();
  }

  /** Idempotent. */
  remove(item: T): void {
    const index = item.dueIndex;
    if (index < 0) return;
    item.dueIndex = -1;
    const last = this.#heap.pop();
    if (last === undefined || last === item) return;
    this.#place(last, index);
    this.#up(last);
    this.#down(last);
  }

  /** Nothing is due any more. */
  close(): void {
    clearTimeout(this.#timer);
    for (const item of this.#heap.splice(0)) item.dueIndex = -1;
  }

  #run(): void {
    this.#armedForMs = Number.POSITIVE_INFINITY;
    // Taken out before any is handled: one that makes itself due again at once must not keep the others waiting.
    const due: T[] = [];
    const now = performance.now();
    for (let top = this.#heap[0]; top !== undefined && top.dueMs <= now; top = this.#heap[0]) {
      this.remove(top);
      due.push(top);
    }
    for (const item of due) this.onDue(item);
    this.#arm();
  }

  #arm(): void {
    const top = this.#heap[0];
    if (top === undefined || top.dueMs >= this.#armedForMs) return;
    clearTimeout(this.#timer);
    this.#armedForMs = top.dueMs;
    const waitMs = Math.min(TIMER_MS_MAX, Math.max(COARSE_MS, Math.ceil(top.dueMs - performance.now())));
    this.#timer = setTimeout(() => this.#run(), waitMs).unref();
  }

  #place(item: T, index: number): void {
    item.dueIndex = index;
    this.#heap[index] = item;
  }

  #up(item: T): void {
    for (let index = item.dueIndex; index > 0; ) {
      const above = (index - 1) >> 1;
      const parent = this.#heap[above];
      if (parent === undefined || parent.dueMs <= item.dueMs) return;
      this.#place(parent, index);
      this.#place(item, above);
      index = above;
    }
  }

  #down(item: T): void {
    for (let index = item.dueIndex; ; ) {
      const left = this.#heap[2 * index + 1];
      const right = this.#heap[2 * index + 2];
      const child = right !== undefined && left !== undefined && right.dueMs < left.dueMs ? right : left;
      if (child === undefined || child.dueMs >= item.dueMs) return;
      const below = child.dueIndex;
      this.#place(child, index);
      this.#place(item, below);
      index = below;
    }
  }
}
