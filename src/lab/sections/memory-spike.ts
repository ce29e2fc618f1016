/**
 * A spike: many distinct functions are asked in the same moment, first with nothing but their images, then with an instance of each hibernated. Through
 * the platform, from the call to the answer, on two cores: the last of them waits for all the others.
 */
import { nowUs } from "../../base/clock.js";
import { errorText } from "../../base/errors.js";
import type { StartKind } from "../../engine/types.js";
import type { Platform } from "../../platform/types.js";
import type { FailedRun } from "../interleave.js";
import type { Lab, Section } from "../lab.js";
import { checkMany, type Deployed, deployMany, functionName, withPlatform } from "../many-functions.js";
import { type Check, check, exactly, type Measurement } from "../report.js";
import { scale } from "../scale.js";
import { median, quantile } from "../statistics.js";
import { ms, type Row, significant } from "../table.js";

const ROUNDS = 3;
/** Idle instances stay as they are until the section says otherwise. */
const KEEP_MS = 3_600_000;

interface Spike {
  readonly way: string;
  readonly us: readonly number[];
  readonly kinds: Readonly<Partial<Record<StartKind, number>>>;
  readonly failures: readonly FailedRun[];
}

export const memorySpike: Section = {
  name: "memory-spike",
  about: "200 distinct functions asked at once, from images and from hibernation",
  msMax: 600_000,
  run(lab) {
    const count = scale("THAW_BENCH_SPIKE");
    const options = { maxInstances: count + 8, keepWarmMs: KEEP_MS, keepAliveMs: 2 * KEEP_MS };
    return withPlatform(lab, options, (platform) => run(lab, platform, count));
  },
};

async function run(lab: Lab, platform: Platform, wanted: number) {
  const deployed = await deployMany(lab, platform, wanted, () => (lab.deadline.passed ? "the time was over" : undefined));
  const spikes: Spike[] = [];
  for (let round = 0; round < ROUNDS; round++) {
    lab.progress(`spike ${round + 1} of ${ROUNDS}`);
    // `dispose` leaves nothing behind but the image; the spike from hibernation makes its instances itself.
    spikes.push(await spike(platform, "from images", deployed.indices, round, "thaw"));
    spikes.push(await fromHibernation(platform, deployed.indices, round));
  }
  const ways = [...new Set(spikes.map(({ way }) => way))].map((way) => {
    const all = spikes.filter((each) => each.way === way);
    return {
      way,
      us: all.flatMap(({ us }) => us),
      failures: all.flatMap(({ failures }) => failures),
      kinds: all.map(({ kinds }) => kinds),
    };
  });
  return {
    measurements: [
      deploys(deployed),
      ...ways.map(
        ({ way, us, failures }): Measurement => ({
          workload: `${deployed.indices.length} functions`,
          way,
          unit: "us",
          samples: us,
          failures,
        }),
      ),
    ],
    checks: ways.map(
      ({ way, us, failures }): Check =>
        check(
          `${deployed.indices.length} functions`,
          `spike ${way}: lost`,
          exactly(us.length === 0 ? Number.NaN : failures.length),
          "=",
          0,
          "",
        ),
    ),
    tables: [table(spikes, deployed)],
  };
}

function deploys({ indices, seconds, failures, cutShort }: Deployed): Measurement {
  return {
    workload: `${indices.length} functions`,
    way: "deploy, with image",
    unit: "per second",
    samples: [indices.length / seconds],
    failures,
    ...(cutShort === undefined ? {} : { cutShort }),
  };
}

async function fromHibernation(platform: Platform, indices: readonly number[], round: number): Promise<Spike> {
  const failures: FailedRun[] = [];
  for (const index of indices) {
    try {
      await platform.invoke(functionName(index), JSON.stringify({ seed: index }));
      await platform.hibernate(functionName(index));
    } catch (error) {
      failures.push({ round: index, error: `before the spike: ${errorText(error)}` });
    }
  }
  const measured = await spike(platform, "from hibernation", indices, round, "wake");
  return { ...measured, failures: [...failures, ...measured.failures] };
}

/** Asks all of them in one turn of the event loop. Every instance is gone afterwards. */
export async function spike(
  platform: Pick<Platform, "invoke">,
  way: string,
  indices: readonly number[],
  round: number,
  kind: StartKind,
): Promise<Spike> {
  const us: number[] = [];
  const kinds: Partial<Record<StartKind, number>> = {};
  const failures: FailedRun[] = [];
  await Promise.all(
    indices.map(async (index) => {
      const seed = round * indices.length + index;
      const began = nowUs();
      try {
        const { result, start } = await platform.invoke(functionName(index), JSON.stringify({ seed }), { dispose: true });
        const took = nowUs() - began;
        kinds[start.kind] = (kinds[start.kind] ?? 0) + 1;
        if (result.functionError !== undefined) throw new Error(result.payload.toString("utf8", 0, 300));
        checkMany(index, seed, result.payload);
        if (start.kind !== kind || start.fallback !== undefined)
          throw new Error(`meant to be a ${kind}, but was ${start.kind}: ${start.fallback ?? ""}`);
        us.push(took);
      } catch (error) {
        failures.push({ round: index, error: errorText(error) });
      }
    }),
  );
  return { way, us, kinds, failures };
}

function table(spikes: readonly Spike[], deployed: Deployed) {
  const right = (title: string) => ({ title, align: "right" as const });
  return {
    title: `A spike of ${deployed.indices.length} distinct functions`,
    subtitle: `All asked in one turn, at the platform, ms from the call to the answer; half Node, half Python; page cache as the deploys left it; deployed at ${significant(deployed.indices.length / deployed.seconds)} a second`,
    columns: [{ title: "" }, ...["p50", "p99", "last", "answered", "lost"].map(right), { title: "starts" }],
    rows: spikes.map(
      ({ way, us, kinds, failures }): Row => [
        way,
        ms(median(us)),
        ms(quantile(us, 0.99)),
        ms(quantile(us, 1)),
        String(us.length),
        failures.length === 0 ? "0" : { text: String(failures.length), tone: "bad" },
        Object.entries(kinds)
          .map(([kind, count]) => `${kind} ${count}`)
          .join(", "),
      ],
    ),
  };
}
