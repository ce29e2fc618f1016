/**
 * What cannot be frozen is refused by name. The instance goes on as if nothing had been, nothing is left where images are kept,
 * and once the function has let go of the thing, it can be frozen.
 */
import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { call, type Language, useWorld } from "./support/world.js";

const world = useWorld();
const CLOSE_IT = "close it before the handler returns, or in a before-snapshot hook";

const SOCKET_BYTES_MAX = Number(readFileSync("/proc/sys/net/core/wmem_max", "utf8"));
const WATCHES = /^it watches files, or has not read what it saw of them \(inotify, descriptor \d+\)$/;

const REFUSED: readonly (readonly [Language, string, RegExp])[] = [
  ["node", "child", /^it has a live child process \(sleep\)$/],
  ["node", "grandchild", /^it has a live child process \(sleep\)$/],
  ["node", "tcp", /^it listens on TCP 127\.0\.0\.1:\d+ \(descriptor \d+\)$/],
  ["node", "unix", /^it listens on a unix socket \(descriptor \d+\)$/],
  ["node", "watch", WATCHES],
  ["python", "fifo", /^it holds a named pipe open \(\/tmp\/fifo\)$/],
  ["python", "fifo_in_tmp", /^\/tmp\/fifo is neither a file, a directory nor a link$/],
  ["node", "tmp", /^\/tmp\/huge: more than 64 MiB of temporary files$/],
  ["python", "shared_twice", /^it maps shared, writable memory \(\/dev\/zero \(deleted\), 64 KiB\), which it maps twice$/],
  ["python", "shared_read", /^it maps shared, writable memory \(\/dev\/shm\/read \(deleted\), 8 KiB\), which it maps twice$/],
  ["python", "shared_large", /^it maps shared, writable memory \(\/dev\/zero \(deleted\), 17408 KiB\), more than 16 MiB of it$/],
  [
    "python",
    "shared_sealed",
    /^it maps shared, writable memory \(\/memfd:sealed \(deleted\), 8 KiB\), which none of its descriptors lets a clone map to write$/,
  ],
  [
    "python",
    "shared_removed",
    /^it maps shared, writable memory \(\/tmp\/removed \(deleted\), 8 KiB\), which none of its descriptors lets a clone map to write$/,
  ],
  ["python", "shared_memory", /^it (has a live child process \(python3.*\)|holds POSIX shared memory \(\/dev\/shm\/psm_\w+\))$/],
  ["python", "posix_timer", /^it holds a POSIX timer \(timer_create\)$/],
  ["python", "pending_signal", /^signal 10 \(SIGUSR1\) is pending$/],
  ["python", "pending_in_thread", /^signal 12 \(SIGUSR2\) is pending in one of its threads$/],
  ["python", "zombie", /^it has a child process that ended and was not waited for \(true\)$/],
  ["python", "datagrams", /^unread datagrams lie in a unix socket \(descriptor \d+\)$/],
  ["python", "datagrams_left", /^unread datagrams lie in a unix socket \(descriptor \d+\)$/],
  ["python", "packets_left", /^unread datagrams lie in a unix socket \(descriptor \d+\)$/],
  ["python", "packets_in_pipe", /^it holds a pipe of packets \(O_DIRECT\) \(descriptor \d+\)$/],
  ["python", "hidden_memory", /^it holds POSIX shared memory \(\/dev\/shm\/\.hidden\)$/],
  ["python", "sysv_memory", /^it holds System V shared memory \(1\)$/],
  ["python", "sysv_semaphores", /^it holds System V semaphores \(1\)$/],
  ["python", "sysv_queues", /^it holds System V message queues \(1\)$/],
  ["python", "message_queue", /^it holds a POSIX message queue \(\/queue, descriptor \d+\)$/],
  // Where the kernel lets so much lie there: 4 MiB are usual since Linux 6.17.
  ...(SOCKET_BYTES_MAX < 2 ** 20
    ? []
    : ([["python", "megabytes", /^more than 1024 KiB lie unread in a unix socket \(descriptor \d+\)$/]] as const)),
  ["python", "udp_datagrams", /^unread datagrams lie in a UDP socket on 127\.0\.0\.1:\d+ \(descriptor \d+\)$/],
  ["python", "bound", /^it holds a unix socket that is bound to a name \(descriptor \d+\)$/],
  ["python", "netlink", /^it holds a socket of address family 16 \(descriptor \d+\)$/],
  ["python", "pidfd", /^it holds (anon_inode:\[pidfd\]|pidfd:\[\d+\]) \(descriptor \d+\)$/],
  ["python", "inotify_in_epoll", WATCHES],
  ["python", "removed_directory", /^its working directory was removed \(\/tmp\/removed \(deleted\)\)$/],
  [
    "python",
    "second_name",
    /^it holds a file open under a name that was removed, while it has another \(\/tmp\/first \(deleted\)\)$/,
  ],
  ["python", "not_utf8", /^the name of a file is not UTF-8 \(\/tmp\/\ufffd\ufffd\)$/],
  ["python", "packets", /^it holds a pipe of packets \(O_DIRECT\) \(descriptor \d+\)$/],
  ["python", "out_of_band", /^bytes out of band lie unread in a unix socket \(descriptor \d+\)$/],
  ["python", "looks_ahead", /^it looks ahead in a unix socket by an offset \(SO_PEEK_OFF, descriptor \d+\)$/],
  ["python", "every_descriptor", /^writes to its memory cannot be noted \(userfaultfd: Too many open files\)$/],
  ["python", "attributes", /^what there is to tell of its mappings, descriptors and temporary files takes more than 64 MiB$/],
  ["python", "threads", /^it has more than 256 threads$/],
];

describe("a function that holds what cannot be frozen", () => {
  it.each(REFUSED)("is told so, and goes on (%s, %s)", async (language, kind, why) => {
    const instance = await world.boot(language);
    const names = world.imageNames();
    await call(instance, "counter.next");
    await call(instance, "refused.hold", kind);
    for (let attempt = 0; attempt < 2; attempt++) {
      await expect(instance.freeze()).rejects.toMatchObject({
        code: "FREEZE_REFUSED",
        what: `function "fixtures-${language}" could not be frozen`,
        why: expect.stringMatching(why),
        fix: CLOSE_IT,
      });
      expect(world.imageNames()).toEqual(names);
      expect(instance.alive).toBe(true);
      expect(await call(instance, "counter.next")).toBe(2 + attempt);
    }
    await call(instance, language === "node" ? "refused.letGo" : "refused.let_go");
    const image = await instance.freeze({ then: "end" });
    await world.thawed(image, async (clone) => expect(await call(clone, "counter.next")).toBe(4));
    await world.engine.removeImage(image);
    expect(world.imageNames()).toEqual(names);
  });

  it("is told so when it is too many descriptors", async () => {
    const instance = await world.boot("python");
    const names = world.imageNames();
    await call(instance, "refused.hold", "descriptors");
    await expect(instance.freeze()).rejects.toMatchObject({
      code: "FREEZE_REFUSED",
      message: expect.stringMatching(/^9\d\d descriptors are open\. at most 900 are restored\. close what is not needed$/),
    });
    expect(world.imageNames()).toEqual(names);
    expect(await call(instance, "counter.next")).toBe(1);
    await call(instance, "refused.let_go");
    await instance.freeze({ then: "end" });
  });

  it("is ended all the same when that was asked for", async () => {
    const instance = await world.boot("node");
    await call(instance, "refused.hold", "tcp");
    await expect(instance.freeze({ then: "end" })).rejects.toMatchObject({ code: "FREEZE_REFUSED" });
    expect(instance.alive).toBe(false);
  });

  it("is refused as a clone, too", async () => {
    const image = await world.imageAfter("node");
    await world.thawed(image, async (clone) => {
      await call(clone, "refused.hold", "watch");
      await expect(clone.freeze()).rejects.toMatchObject({ code: "FREEZE_REFUSED", why: expect.stringContaining("inotify") });
      expect(await call(clone, "counter.next")).toBe(1);
    });
  });
});
