/** How many functions one machine holds of which only the image exists: the disk they take, the time to list and to start any. */
import { type ImagesResult, imagesOnly } from "../density-images.js";
import type { Lab, Section } from "../lab.js";
import { type Check, check, exactly, type Measurement } from "../report.js";
import { scale } from "../scale.js";
import { median, quantile } from "../statistics.js";
import { megabytes, ms, significant, type Table } from "../table.js";

export const memoryImages: Section = {
  name: "memory-images",
  about: "10,000 functions as images only: disk, list, start (THAW_BENCH_FUNCTIONS)",
  msMax: 3_600_000,
  async run(lab: Lab) {
    const images = await imagesOnly(lab, scale("THAW_BENCH_FUNCTIONS"));
    return { measurements: imageMeasurements(images), checks: imageChecks(images), tables: [imagesTable(images)] };
  },
};

function imageChecks({ wanted, deployed, lost }: ImagesResult): Check[] {
  return [
    check("functions", "functions that exist as an image only", exactly(deployed.indices.length), ">=", wanted, ""),
    check(
      "functions",
      "of those that were started: failed",
      exactly(deployed.indices.length === 0 ? Number.NaN : lost.length),
      "=",
      0,
      "",
    ),
  ];
}

function imageMeasurements({ deployed, diskBytes, listUs, startUs, lost }: ImagesResult): Measurement[] {
  const { seconds, failures, cutShort } = deployed;
  const count = deployed.indices.length;
  const workload = `${count} functions`;
  return [
    {
      workload,
      way: "deploy, with image",
      unit: "per second",
      samples: [count / seconds],
      failures,
      ...(cutShort === undefined ? {} : { cutShort }),
      facts: { diskBytes },
    },
    { workload, way: "list", unit: "us", samples: listUs, failures: [] },
    { workload, way: "start of any", unit: "us", samples: startUs, failures: lost },
  ];
}

function imagesTable({ wanted, deployed, diskBytes, listUs, startUs, lost }: ImagesResult): Table {
  const { seconds } = deployed;
  const count = deployed.indices.length;
  return {
    title: `${wanted} functions as images only`,
    subtitle: "Half Node, half Python, each with code of its own; at the platform",
    columns: ["deployed", "a second", "disk MB", "kB each", "list ms", "start p50 ms", "p99", "failed"].map((title) => ({
      title,
      align: "right" as const,
    })),
    rows: [
      [
        String(count),
        significant(count / seconds),
        megabytes(diskBytes),
        significant(diskBytes / count / 1e3),
        ms(median(listUs)),
        ms(median(startUs)),
        ms(quantile(startUs, 0.99)),
        String(lost.length + deployed.failures.length),
      ],
    ],
    notes: [
      "disk: blocks of everything below images/, base images of the runtimes included; start: functions drawn at random, thawed, answered, disposed; page cache as the deploys left it.",
      ...(deployed.cutShort === undefined ? [] : [`Fewer than wanted: ${deployed.cutShort}.`]),
    ],
  };
}
