import { it } from "vitest";
import { mkdirSync, writeFileSync, mkdtempSync } from "node:fs";
import { useWorld } from "./support/world.js";
const world = useWorld();
it("x", async () => {
  const dir = mkdtempSync("/tmp/thaw-test-code-"); (await import("node:fs")).chmodSync(dir, 0o755);
  writeFileSync(dir + "/index.js", "exports.handler = async (e) => { if (e.exit !== undefined) process.exit(e.exit); if (e.kill) process.kill(process.pid, e.kill); return 1; }");
  for (const e of [{exit: 3}, {exit: 0}, {kill: "SIGSEGV"}, {kill:"SIGKILL"}, {kill:"SIGTERM"}]) for (const kind of ["boot","thaw"]) {
    let i = await world.engine.boot({...world.spec("node"), codeDir: dir});
    if (kind === "thaw") { const im = await i.freeze({then:"end"}); i = await world.engine.thaw(im); }
    const r = await i.invoke(JSON.stringify(e));
    console.log(kind, JSON.stringify(e), r.platformError, r.payload.toString(), r.alive);
    await i.dispose();
  }
});
