/** What the laboratory calls a cold disk: files leave the page cache, and what stays is found. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, truncateSync, writeFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { blockedUs, evict, fetchAll, mappedFilesOf, readBandwidth, residentPages } from "../src/lab/page-cache.js";

/** Not the system's temporary directory, which may have no disk below it. */
const dir = mkdtempSync("/var/tmp/thaw-page-cache-");
afterAll(() => rmSync(dir, { recursive: true, force: true }));

const PAGES = 64;
function makeFile(name: string): string {
  const path = join(dir, name);
  writeFileSync(path, Buffer.alloc(PAGES * 4096, name));
  return path;
}

/** A process that maps a file and has touched all of it, until it is told to end. */
async function mapIt(path: string) {
  const code = `import mmap,sys\nf=open(sys.argv[1],"rb")\nm=mmap.mmap(f.fileno(),0,prot=mmap.PROT_READ)\nx=sum(m[i] for i in range(0,len(m),4096))\nprint("mapped",flush=True)\nsys.stdin.read()`;
  const child = spawn("python3", ["-c", code, path], { stdio: ["pipe", "pipe", "inherit"] });
  await once(child.stdout, "data");
  return {
    pid: Number(readFileSync(`/proc/${child.pid}/stat`, "utf8").split(" ")[0]),
    async end() {
      const exited = once(child, "exit");
      child.stdin.end();
      await exited;
    },
  };
}

describe("the page cache", () => {
  it("holds what was just written, and nothing after it was dropped, dirty pages too", async () => {
    const files = [makeFile("one"), makeFile("two")];
    expect(await residentPages(files)).toEqual([PAGES, PAGES]);
    await evict(files);
    expect(await residentPages(files)).toEqual([0, 0]);
    readFileSync(files[0] as string);
    expect(await residentPages(files)).toEqual([PAGES, 0]);
  });

  it("does not let go of what a process maps, and that is an error with the file's name", async () => {
    const path = makeFile("mapped");
    const process = await mapIt(path);
    try {
      await expect(evict([path])).rejects.toThrow(`not a cold disk: pages stay in the page cache: ${PAGES} of ${path}`);
      await evict([path], PAGES);
    } finally {
      await process.end();
    }
    await evict([path]);
  });

  it("is reached through a process for a file that has no name any more", async () => {
    const path = makeFile("removed");
    const process = await mapIt(path);
    try {
      rmSync(path);
      const found = mappedFilesOf(process.pid, [dir]);
      expect(found.length).toBe(1);
      expect(await residentPages(found)).toEqual([PAGES]);
    } finally {
      await process.end();
    }
  });

  it("is filled with what a sparse file holds, and not with its holes", async () => {
    const path = join(dir, "sparse");
    writeFileSync(path, "");
    truncateSync(path, 2 ** 40);
    const fd = openSync(path, "r+");
    writeSync(fd, Buffer.alloc(8192, 1), 0, 8192, 2 ** 39);
    closeSync(fd);
    await evict([path]);
    await fetchAll([path]);
    const [pages = 0] = await residentPages([path]);
    expect(pages).toBeGreaterThanOrEqual(2);
    expect(pages).toBeLessThan(4096);
  });

  it("says which file is not there", async () => {
    await expect(residentPages([join(dir, "absent")])).rejects.toThrow(`cannot open ${join(dir, "absent")}: No such file`);
  });
});

describe("the device", () => {
  it("has a bandwidth with and without the page cache", async () => {
    const path = join(dir, "large");
    writeFileSync(path, Buffer.alloc(8 << 20, 7));
    const { directBytesPerSecond, bufferedBytesPerSecond } = await readBandwidth(path);
    expect(directBytesPerSecond).toBeGreaterThan(1e6);
    expect(bufferedBytesPerSecond).toBeGreaterThan(1e6);
  });

  it("keeps a process waiting for as long as the kernel says, and no process that does not exist", async () => {
    expect(await blockedUs(process.pid)).toBeGreaterThanOrEqual(0);
    await expect(blockedUs(4_194_303)).rejects.toThrow("No such process");
  });
});
