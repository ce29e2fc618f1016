/**
 * Times from each function's own past (Shahrad et al., "Serverless in the Wild", ATC'20, §4.2). What the paper unloads we hibernate: the
 * next request rarely comes before the head of the distribution of idle times, and rarely after its tail.
 *
 *     end of request ──▶ hibernate ───────▶ wake ════ warm ════▶ hibernate ───────▶ dispose
 *                        at once       0.9 · head             1.1 · tail       + keepHibernated
 *
 * When the head is so short that hibernating would not pay, it stays warm until the tail. While the histogram is not representative
 * (few samples, or no shape: a low coefficient of variation over the bins) or too many idle times are out of its bounds, the fixed
 * times hold. The paper predicts the latter by a time series; they are long enough here for the disk.
 */
import type { IdleFacts } from "./idle-times.js";
import { fixedPolicy, type IdlePolicy, type IdleStep, type IdleTimesOptions, KEEP_HIBERNATED_MS } from "./policy.js";

/** The paper's: 5th and 99th percentile, 10 % of margin at both ends, and a coefficient of variation of at least 2. */
const HEAD = 0.05;
const TAIL = 0.99;
const MARGIN = 0.1;
const VARIATION_MIN = 2;
const SAMPLES_MIN = 10;
const OUT_OF_BOUNDS_MAX = 0.5;
/** A head below this is as good as none: writing the memory out and reading it back would be most of that time. */
const HEAD_MS_MIN = 5_000;
/** A plan holds until there are so many more idle times. */
const NEWS_MIN = 0.05;
/** The client that comes twice in a row finds it warm. */
const SOON_MS = 1_000;

/** See above; `options` are the fixed times that it falls back to. */
export function histogramPolicy(options: IdleTimesOptions = {}): IdlePolicy {
  const fixed = fixedPolicy(options);
  const { keepHibernatedMs = KEEP_HIBERNATED_MS, keepAliveMs = Number.POSITIVE_INFINITY } = options;
  const planOf = (idle: IdleFacts): readonly IdleStep[] => {
    const head = idle.percentile(HEAD);
    const tail = idle.percentile(TAIL);
    if (head === undefined || tail === undefined || !isRepresentative(idle)) return fixed.decide(idle);
    const tailMs = tail.toMs * (1 + MARGIN);
    const disposeMs = Math.min(keepAliveMs, tailMs + keepHibernatedMs);
    const steps: IdleStep[] = [];
    if (head.fromMs >= HEAD_MS_MIN) {
      steps.push({ afterMs: SOON_MS, action: "hibernate" }, { afterMs: head.fromMs * (1 - MARGIN), action: "wake" });
    }
    steps.push({ afterMs: tailMs, action: "hibernate" });
    return [...steps.filter(({ afterMs }) => afterMs < disposeMs), { afterMs: disposeMs, action: "dispose" }];
  };
  const plans = new WeakMap<IdleFacts, { readonly count: number; readonly plan: readonly IdleStep[] }>();
  return {
    name: "histogram",
    decide(idle) {
      const known = plans.get(idle);
      // A few more idle times move no percentile.
      if (known !== undefined && idle.count <= known.count * (1 + NEWS_MIN)) return known.plan;
      const plan = planOf(idle);
      plans.set(idle, { count: idle.count, plan });
      return plan;
    },
  };
}

function isRepresentative({ count, outOfBounds, bins }: IdleFacts): boolean {
  if (count < SAMPLES_MIN || outOfBounds > count * OUT_OF_BOUNDS_MAX) return false;
  const mean = (count - outOfBounds) / bins.length;
  let squares = 0;
  for (const bin of bins) squares += (bin - mean) ** 2;
  return Math.sqrt(squares / bins.length) >= VARIATION_MIN * mean;
}
