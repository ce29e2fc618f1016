/** Which mount a directory lies on. */

export interface Mount {
  readonly point: string;
  readonly type: string;
  readonly options: readonly string[];
}

/** The mount that covers `dir` (an absolute path without links), from the text of /proc/self/mounts. */
export function mountOf(dir: string, mounts: string): Mount | undefined {
  let best: Mount | undefined;
  for (const line of mounts.split("\n")) {
    const [, escaped, type, options] = line.split(" ");
    if (escaped === undefined || type === undefined || options === undefined) continue;
    const point = escaped.replace(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8)));
    const covers = point === "/" || dir === point || dir.startsWith(`${point}/`);
    // Of two mounts on one point the later one is on top.
    if (covers && point.length >= (best?.point.length ?? 0)) best = { point, type, options: options.split(",") };
  }
  return best;
}
