/** A package that is larger than what a server holds of bodies in memory, from the folder to the answer. */
import { randomBytes } from "node:crypto";
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { MIB } from "../src/base/units.js";
import { TestServer, temporaryDir, useServers } from "./support/server.js";

useServers();

/** Of noise, which packing does not make smaller. */
const BYTES = 128 * MIB;
/** Has the process say at its end how much memory it had at most. */
const TELL = 'process.on("exit",()=>process.stderr.write("kilobytes:"+process.resourceUsage().maxRSS))';

describe("a package of 128 MiB", () => {
  let server: TestServer;
  let folder: string;
  beforeAll(async () => {
    server = await TestServer.start(temporaryDir("large"));
    folder = join(temporaryDir("large-function"), "large");
    mkdirSync(folder);
    writeFileSync(join(folder, "noise"), randomBytes(BYTES));
    const handler = 'import { statSync } from "node:fs";\nexport const handler = async () => statSync("/var/task/noise").size;\n';
    writeFileSync(join(folder, "index.mjs"), handler);
  });

  const memoryBytes = (field: string): number =>
    1024 * Number(new RegExp(`${field}:\\s+(\\d+)`).exec(readFileSync(`/proc/${server.pid}/status`, "utf8"))?.[1]);

  it("is deployed, frozen, thawed and removed, and neither command line nor server has it in memory", async () => {
    const before = memoryBytes("VmRSS");
    const env = { NODE_OPTIONS: `--import=data:text/javascript,${encodeURIComponent(TELL)}` };
    const deployed = await server.cli(["deploy", folder, "--wait"], { env });
    expect(deployed, deployed.err).toMatchObject({
      code: 0,
      out: expect.stringMatching(/^large deployed: .* 128 MiB of code\nlarge is ready/),
    });
    expect(1024 * Number(/^kilobytes:(\d+)$/.exec(deployed.err)?.[1])).toBeLessThan(BYTES + 50 * MIB);
    expect(memoryBytes("VmHWM") - before).toBeLessThan(BYTES / 2);
    expect((await server.cli(["invoke", "large", "--prefer", "thaw"])).out).toBe(`${BYTES}\n`);
    expect((await server.cli(["rm", "large"])).code).toBe(0);
    expect(readdirSync(join(server.dataDir, "functions"))).toEqual([]);
  });
});
