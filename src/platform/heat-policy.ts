/**
 * Which image of a function to thaw, and when to take the next: the decision, apart from everything that carries it out
 * (docs/design/heat.md). A policy is replaceable by a researcher: it sees images as points, and answers as numbers.
 *
 * Requests are counted over a lineage: an image of heat 10 was taken after ten requests, and the first request to an instance thawed
 * from it is number 11.
 */

/** An image, as a policy sees it. */
export interface ImagePoint {
  readonly generation: number;
  /** Requests served before the freeze. */
  readonly heat: number;
}

/** Decides for one version of one function. New code or configuration gets a new one. */
export interface HeatDecider {
  /** The image for the next start, of at least one. Called at every thaw: no more than arithmetic. */
  choose(images: readonly ImagePoint[]): ImagePoint;
  /**
   * The request number after which an instance thawed from `from` shall be frozen; undefined: it shall not, more heat does not pay.
   * Asked when the instance starts, and again whenever images came or went: another instance may have been frozen at that point first.
   */
  freezeAt(images: readonly ImagePoint[], from: ImagePoint): number | undefined;
  /** The `request`-th request of the lineage, in an instance that was thawed from `from`, took `ms` in the handler. */
  answered(from: ImagePoint, request: number, ms: number): void;
  /** Images to give up: those that lost, or are too many. Never all. Asked after an image was added, and now and then. */
  surplus(images: readonly ImagePoint[]): readonly ImagePoint[];
  /** What it has learned, as values for JSON, some kilobytes at most: a server that starts again goes on with it. Absent: it begins anew. */
  save?(): unknown;
}

/** Makes deciders. */
export interface HeatPolicy {
  readonly name: string;
  /**
   * `random` in [0, 1), so that a replay can be repeated. `saved` comes from {@link HeatDecider.save} of a policy of this name, perhaps of
   * other options or of another thaw; throws when it cannot be used.
   */
  begin(random?: () => number, saved?: unknown): HeatDecider;
}
