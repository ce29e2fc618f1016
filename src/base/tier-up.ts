/** How soon V8 compiles the code of this process: a server's own, and that of the laboratory, whose engines are measured as they run in a server. */
import { setFlagsFromString } from "node:v8";

/**
 * V8 before Maglev (Node 20) interprets a function until it has run 132 KB of bytecode, which a server whose functions are
 * called now and then reaches after some 2,500 requests; until then each of them takes 0.3 to 1 ms more than it must.
 * With these, some 80 requests suffice; what they bring is measured in docs/design/gateway.md. With Maglev (Node 22 and
 * later) fewer invocations changed nothing beyond noise.
 */
const FLAGS_BEFORE_MAGLEV = ["--interrupt-budget=1000", "--no-lazy-feedback-allocation"];
const MAGLEV_SINCE = 12;

/** Has V8 compile soon what runs in this process from now on: best what has run a few times, because compiling what never ran before delays it. */
export function tierUpEarly(v8Version = process.versions.v8, setFlag: (flag: string) => void = setFlagsFromString): void {
  if (Number.parseInt(v8Version, 10) >= MAGLEV_SINCE) return;
  for (const flag of FLAGS_BEFORE_MAGLEV) setFlag(flag);
}
