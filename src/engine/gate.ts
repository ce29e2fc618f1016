/**
 * The gate before an instance. Requests go through it one at a time, and it can be held shut between two of them: what must be done
 * then, such as the stop of a live freeze, is done while nothing runs and nobody is turned away.
 */
export class Gate {
  #shut: Promise<void> | undefined;
  readonly #whenIdle: (() => void)[] = [];
  #working: Promise<void> | undefined;

  /** Pending while a request has to wait; what waits for it looks again when it resolves. */
  get shut(): Promise<void> | undefined {
    return this.#shut;
  }

  /** Requests wait until `done`, which never rejects. */
  shutUntil(done: Promise<void>): void {
    const shut = Promise.all([this.#shut, done]).then(() => {
      if (this.#shut === shut) this.#shut = undefined;
    });
    this.#shut = shut;
  }

  /** Shuts it, at once or when the request that runs has been answered. Resolves with what opens it again. */
  hold(busy: boolean): Promise<() => void> {
    return new Promise((resolve) => {
      const shut = (): void => {
        let open = (): void => {};
        this.shutUntil(
          new Promise((opened) => {
            open = opened;
          }),
        );
        resolve(open);
      };
      if (busy) this.#whenIdle.push(shut);
      else shut();
    });
  }

  /** The request that ran has been answered, or never will be. Before whoever sent it can send the next. */
  idle(): void {
    for (const shut of this.#whenIdle.splice(0)) shut();
  }

  /** Whether something is done by {@link Gate.alone}. */
  get working(): boolean {
    return this.#working !== undefined;
  }

  /** Resolves when neither a request has to wait nor anything is done by {@link Gate.alone}; undefined when that is so. */
  get quiet(): Promise<void> | undefined {
    return both(this.#shut, this.#working);
  }

  /** Does one thing after the other; requests may pass meanwhile. */
  async alone<T>(work: () => Promise<T>): Promise<T> {
    while (this.#working !== undefined) await this.#working;
    const done = work();
    const working = done.then(
      () => undefined,
      () => undefined,
    );
    this.#working = working;
    void working.then(() => {
      this.#working = undefined;
    });
    return done;
  }
}

/** Waits for what there is. */
export function both(first: Promise<void> | undefined, second: Promise<void> | undefined): Promise<void> | undefined {
  return first === undefined || second === undefined ? (first ?? second) : Promise.all([first, second]).then(() => undefined);
}
