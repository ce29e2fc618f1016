/** Hibernation of a fake instance: as slow as the test says, failing when it says so, given up when a request comes. */
import { assert } from "../base/errors.js";
import { PAGE_BYTES } from "../base/units.js";
import type { FakeInstance } from "./fake.js";
import type { HibernateReport, InstanceState, StartResult } from "./types.js";

/** By the timer of whoever stopped time. */
const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

export class FakeHibernation {
  state: InstanceState = "warm";
  /** On disk. */
  bytes = 0;
  #report: HibernateReport | undefined;
  #cancel: (() => void) | undefined;
  #work: Promise<HibernateReport> | undefined;

  constructor(private readonly instance: FakeInstance) {}

  hibernate(): Promise<HibernateReport> {
    if (this.#work !== undefined) return this.#work;
    if (this.state === "hibernated" && this.#report !== undefined) return Promise.resolve(this.#report);
    this.#work = this.#run().finally(() => {
      this.#work = undefined;
    });
    return this.#work;
  }

  /** Called before a request is served. */
  async requested(): Promise<void> {
    this.#cancel?.();
    await this.#work?.catch(() => undefined);
    await this.wake();
  }

  async wake(): Promise<StartResult> {
    const { instance } = this;
    const { engine, spec } = instance;
    if (this.state !== "hibernated") return instance.start;
    engine.note("wake", spec.name);
    if (engine.delayMs.wake > 0) await sleep(engine.delayMs.wake);
    engine.failIfAsked("wake");
    this.state = "woken";
    const { generation, heat } = instance.start;
    instance.start = {
      kind: "wake",
      ...(generation === undefined ? {} : { generation }),
      ...(heat === undefined ? {} : { heat }),
      us: 900,
      phases: [{ name: "prefetch", us: 100 }],
      waitUs: 0,
      prefetchedPages: 150,
    };
    return instance.start;
  }

  async #run(): Promise<HibernateReport> {
    const { instance } = this;
    const { engine, spec } = instance;
    engine.note("hibernate", spec.name);
    assert(instance.alive, `hibernation of instance ${instance.id}, which has ended`);
    const before = this.state;
    this.state = "deflating";
    const cancelled = await Promise.race([
      sleep(engine.delayMs.hibernate).then(() => false),
      new Promise<boolean>((resolve) => {
        this.#cancel = () => resolve(true);
      }),
    ]);
    this.#cancel = undefined;
    this.state = before;
    engine.failIfAsked("hibernate");
    const writtenPages = cancelled ? 0 : before === "warm" ? 300 : 20;
    this.bytes = Math.max(this.bytes, writtenPages * PAGE_BYTES);
    const residentBytes = engine.residentBytes[cancelled ? "warm" : "hibernated"];
    const times = { hygieneMs: 1, stoppedMs: 2, totalMs: 5 };
    this.#report = { ...times, writtenPages, hibernatedBytes: this.bytes, residentBytes, mappings: 200, cancelled };
    if (!cancelled && instance.alive) this.state = "hibernated";
    return this.#report;
  }
}
