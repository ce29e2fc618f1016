/** What is under way when its engine is closed, its image removed or its instance ended is told so, and nothing is left of it. */
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { call, LANGUAGES, useWorld } from "./support/world.js";

const world = useWorld();

/** The code of an error, or how it was answered. */
const told = (work: Promise<unknown>): Promise<unknown> =>
  work.then(
    () => "done",
    (error: unknown) => (error as { code?: unknown }).code ?? error,
  );

describe.each(LANGUAGES)("a %s instance that ended", (language) => {
  it("is told of as that by whoever looks at it", async () => {
    const instance = await world.boot(language);
    await instance.dispose();
    expect(await told(instance.memory())).toBe("INSTANCE_EXITED");
    expect(await told(instance.pages())).toBe("INSTANCE_EXITED");
    expect(await told(instance.hibernate())).toBe("INSTANCE_EXITED");
    expect(await told(instance.freeze())).toBe("INSTANCE_EXITED");
  });
});

describe("a freeze that shall end its instance", () => {
  it("ends it also where it is refused because the pager has its pages", async () => {
    const image = await world.imageAfter("node", "counter.next");
    const clone = await world.engine.thaw(image, { loader: "reap" });
    expect(await told(clone.freeze())).toBe("FREEZE_REFUSED");
    expect(clone.alive).toBe(true);
    expect(await told(clone.freeze({ then: "end" }))).toBe("FREEZE_REFUSED");
    expect(clone.alive).toBe(false);
    await world.engine.removeImage(image);
  });
});

describe("an image that is removed", () => {
  it("is not there any more for whoever is about to open it, and not damaged", async () => {
    const image = await world.imageAfter("node", "counter.next");
    await world.reopen();
    const { engine } = world;
    engine.rememberImage(image);
    const asked = [engine.thaw(image), engine.inspect(image), engine.prepareImage(image)].map(told);
    await engine.removeImage(image);
    expect(await Promise.all(asked)).toEqual(["IMAGE_NOT_READY", "IMAGE_NOT_READY", "IMAGE_NOT_READY"]);
  });

  it("is not there any more for whoever checks all of it", async () => {
    const image = await world.imageAfter("node", "counter.next");
    const { engine } = world;
    for (let tries = 0; tries < 5; tries++) expect(await told(engine.inspect(image))).toBe("done");
    const asked = told(engine.inspect(image));
    await engine.removeImage(image);
    expect(["done", "IMAGE_NOT_READY"]).toContain(await asked);
  });
});

describe("an engine that is closed", () => {
  it("tells so whatever it was asked for by then", async () => {
    const { engine } = world;
    const image = await world.imageAfter("node", "counter.next");
    const code = (name: string, source: string): { codeDir: string } => {
      const codeDir = join(world.dataDir, name);
      mkdirSync(codeDir);
      writeFileSync(join(codeDir, "index.js"), source);
      return { codeDir };
    };
    const [busy, frozen, slept] = await Promise.all([
      world.boot("node", code("busy", "exports.handler = () => new Promise(() => setInterval(() => {}, 1000));\n")),
      world.boot("node"),
      world.boot("node"),
    ]);
    await call(slept, "counter.next");
    const asked = [
      world.boot("node", code("endless", "for (;;);\n")),
      busy.invoke("{}"),
      frozen.freeze(),
      slept.hibernate(),
      engine.thaw(image, { husk: "fresh" }),
      engine.inspect(image),
    ].map(told);
    await engine.close();
    for (const answer of await Promise.all(asked)) expect(["done", "SHUTTING_DOWN"]).toContain(answer);
    expect([await asked[0], await asked[1]]).toEqual(["SHUTTING_DOWN", "SHUTTING_DOWN"]);
    expect(await told(engine.boot(busy.spec))).toBe("SHUTTING_DOWN");
    expect(await told(busy.invoke("{}"))).toBe("SHUTTING_DOWN");
    await world.open();
  });
});
