import { describe, expect, it } from "vitest";
import { nextTurn } from "../base/turns.js";
import type { Program } from "../image/index.js";
import type { Keeper } from "./keeper.js";
import { Programs } from "./programs.js";

/** A keeper that has files by number. */
function keeperOf(): { keeper: Keeper; files: Set<number> } {
  const files = new Set<number>();
  let next = 1;
  const keeper = {
    fileBytes: () => {
      files.add(next);
      return next++;
    },
    closeFile: (file: number) => {
      files.delete(file);
    },
  };
  return { keeper: keeper as unknown as Keeper, files };
}

const compiler = (said: string[], name: string) => (): Program => {
  said.push(name);
  return { bytes: Buffer.alloc(8), labels: [name] };
};

describe("the programs of an image", () => {
  it("are compiled when they are asked for first, and once", () => {
    const said: string[] = [];
    const programs = new Programs(keeperOf().keeper, 0);
    const one = programs.get("one", compiler(said, "one"));
    expect(programs.get("one", compiler(said, "again"))).toBe(one);
    expect(said).toEqual(["one"]);
  });

  describe("that are outdated", () => {
    function outdated(): { programs: Programs; said: string[]; files: Set<number>; renewing: Promise<void> } {
      const { keeper, files } = keeperOf();
      const said: string[] = [];
      const programs = new Programs(keeper, 0);
      for (const name of ["old 1", "kept", "old 2"]) programs.get(name, compiler(said, name));
      said.length = 0;
      return { programs, said, files, renewing: programs.renew((name) => name.startsWith("old")) };
    }

    it("are gone at once, and compiled anew one in a turn of the event loop", async () => {
      const { programs, said, files, renewing } = outdated();
      expect([programs.has("old 1"), programs.has("kept"), programs.has("old 2")]).toEqual([false, true, false]);
      expect(files.size).toBe(1);
      await nextTurn();
      expect(said).toEqual(["old 1"]);
      await renewing;
      expect(said).toEqual(["old 1", "old 2"]);
      expect(files.size).toBe(3);
    });

    it("are compiled by the start that needs one before its turn has come, and not again", async () => {
      const { programs, said, files, renewing } = outdated();
      programs.get("old 2", compiler(said, "by a start"));
      await renewing;
      expect(said).toEqual(["by a start", "old 1"]);
      expect(files.size).toBe(3);
    });

    it("are left alone once the image is closed: no file of theirs stays", async () => {
      const { programs, said, files, renewing } = outdated();
      programs.close();
      await renewing;
      expect(said).toEqual([]);
      expect(files.size).toBe(0);
    });
  });
});
