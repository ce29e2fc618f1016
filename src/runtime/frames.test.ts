import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { ThawError } from "../base/errors.js";
import { encodeFrame, FRAME_BODY_BYTES_MAX, FRAME_MAGIC, FrameParser, type FunctionFrame, PAYLOAD_BYTES_MAX } from "./frames.js";

/** A frame as a function would write it. */
function frame(header: unknown, body: Buffer | string = ""): Buffer {
  const head = typeof header === "string" ? Buffer.from(header) : Buffer.from(JSON.stringify(header));
  const bytes = Buffer.from(body as string);
  const prefix = Buffer.alloc(12);
  prefix.writeUInt32LE(FRAME_MAGIC, 0);
  prefix.writeUInt32LE(head.length, 4);
  prefix.writeUInt32LE(bytes.length, 8);
  return Buffer.concat([prefix, head, bytes]);
}

const RESULT = { type: "result", requestId: "r", handlerMs: 1.5, maxMemoryMb: 40 };

function failureOf(bytes: Buffer): ThawError {
  try {
    new FrameParser().push(bytes);
  } catch (error) {
    if (error instanceof ThawError) return error;
    throw error;
  }
  throw new Error("nothing was refused");
}

describe("frames from the function", () => {
  it("come out as they went in, wherever the chunks are cut", () => {
    const bodies = fc.array(fc.uint8Array({ maxLength: 300 }), { minLength: 1, maxLength: 5 });
    fc.assert(
      fc.property(bodies, fc.array(fc.integer({ min: 1, max: 97 }), { minLength: 1 }), (contents, cuts) => {
        const stream = Buffer.concat(contents.map((content) => frame(RESULT, Buffer.from(content))));
        const parser = new FrameParser();
        const out: FunctionFrame[] = [];
        for (let at = 0, i = 0; at < stream.length; i++) {
          const size = cuts[i % cuts.length] ?? 1;
          out.push(...parser.push(stream.subarray(at, at + size)));
          at += size;
        }
        parser.finish();
        expect(out.map((one) => [...one.body])).toEqual(contents.map((content) => [...content]));
        for (const one of out) expect(one.header).toEqual(RESULT);
      }),
    );
  });

  it("share the chunk's memory when they lie in one chunk", () => {
    const chunk = frame(RESULT, "123");
    const [one] = new FrameParser().push(chunk);
    expect(one?.body.buffer).toBe(chunk.buffer);
  });

  it("carry 6 MB in many chunks", () => {
    const body = Buffer.alloc(PAYLOAD_BYTES_MAX, "x");
    const bytes = frame(RESULT, body);
    const parser = new FrameParser();
    const out: FunctionFrame[] = [];
    for (let at = 0; at < bytes.length; at += 65536) out.push(...parser.push(bytes.subarray(at, at + 65536)));
    expect(out).toHaveLength(1);
    expect(out[0]?.body.equals(body)).toBe(true);
  });

  it("are refused at their first wrong byte, and the message quotes what came instead", () => {
    const error = failureOf(Buffer.from("hello\n"));
    expect(error.code).toBe("PROTOCOL_VIOLATION");
    expect(error.message).toBe(
      "The function wrote something to descriptor 3 that is not a reply. " +
        '"hello\\n" came where a frame must begin. ' +
        "Descriptor 3 belongs to the runtime: the function's code, its libraries and its child processes must leave it alone",
    );
    expect(failureOf(Buffer.from("T\u0000")).why).toBe("the bytes 5400 came where a frame must begin");
  });

  it.each([
    ["a header that is not JSON", frame("{no"), 'the header of a frame is not JSON but "{no"'],
    ["a header that is an array", frame("[1]"), 'the header of a frame is not an object but "[1]"'],
    ["an unknown type", frame({ type: "invoke" }), 'it sent a frame of unknown type: "{\\"type\\":\\"invoke\\"}"'],
    ["no request id", frame({ type: "result" }), 'the member "requestId" of a result frame is not a short text'],
    ["a negative time", frame({ ...RESULT, handlerMs: -1 }), 'the member "handlerMs" of a result frame is not a positive number'],
    [
      "a time that is a text",
      frame({ type: "prepared", hygieneMs: "1" }),
      'the member "hygieneMs" of a prepared frame is not a positive number',
    ],
    ...(
      [
        ["a text", "hot", "is not an object"],
        ["no tiers", { functions: 1 }, "has no tiers"],
        ["a list of tiers", { functions: 1, tiers: [1] }, "has no tiers"],
        ["more in tiers than there are", { functions: 1, tiers: { plain: 2 } }, "has more functions in tiers than functions"],
        ["a part of a function", { functions: 1.5, tiers: {} }, '"functions" in'],
        ["fewer than none", { functions: 1, tiers: { plain: -1 } }, '"plain" in'],
        ["bytes that are a text", { functions: 0, tiers: {}, codeBytes: "1" }, '"codeBytes" in'],
        ["odd names", { functions: 1, tiers: { "\u001b[2J": 1 } }, "has more than 8 tiers, or names them oddly"],
        [
          "many tiers",
          { functions: 1, tiers: Object.fromEntries([..."abcdefghi"].map((name) => [name, 0])) },
          "has more than 8 tiers, or names them oddly",
        ],
      ] as const
    ).map(([name, heat, why]): [string, Buffer, string] => [
      `heat: ${name}`,
      frame({ type: "prepared", hygieneMs: 1, heat }),
      why.endsWith(" in") ? `${why} the heat of a prepared frame is not a count` : `the heat of a prepared frame ${why}`,
    ]),
    ...(
      [
        ["a text", "all"],
        ["too many", Array.from({ length: 65 }, () => [4096, 8])],
      ] as const
    ).map(([name, seeds]): [string, Buffer, string] => [
      `seeds: ${name}`,
      frame({ type: "prepared", hygieneMs: 1, seeds }),
      "the seeds of a prepared frame are not a list of at most 64",
    ]),
    ...(
      [
        ["no pair", [4096, 8, 8]],
        ["an address below zero", [-4096, 8]],
        ["no bytes", [4096, 0]],
        ["more bytes than a generator has", [4096, 4097]],
        ["a text for an address", ["0x1000", 8]],
      ] as const
    ).map(([name, seed]): [string, Buffer, string] => [
      `seeds: ${name}`,
      frame({ type: "prepared", hygieneMs: 1, seeds: [seed] }),
      "a seed of a prepared frame is not an address and a number of bytes",
    ]),
    ...(
      [
        ["a text", "libarrow.so"],
        ["too many", Array.from({ length: 17 }, () => "libarrow.so")],
        ["a path", ["/var/task/libarrow.so"]],
        ["no name", [""]],
        ["a number", [1]],
      ] as const
    ).map(([name, unusedAllocators]): [string, Buffer, string] => [
      `unused allocators: ${name}`,
      frame({ type: "prepared", hygieneMs: 1, unusedAllocators }),
      "the unused allocators of a prepared frame are not a list of at most 16 names of files",
    ]),
    ["an empty header", frame(""), "a frame announces a header of 0 bytes; 1 to 65536 are allowed"],
  ])("are refused with %s", (_name, bytes, why) => {
    const error = failureOf(bytes);
    expect(error.code).toBe("PROTOCOL_VIOLATION");
    expect(error.why).toBe(why);
  });

  it("are refused before memory is taken when they announce too much", () => {
    const bytes = frame(RESULT);
    bytes.writeUInt32LE(FRAME_BODY_BYTES_MAX + 1, 8);
    const error = failureOf(bytes.subarray(0, 12));
    expect(error.code).toBe("RESPONSE_TOO_LARGE");
    expect(error.why).toBe(`a frame announces ${FRAME_BODY_BYTES_MAX + 1} bytes and ${PAYLOAD_BYTES_MAX} are allowed`);
  });

  it("never crash the parser, whatever bytes come and whichever bit flips", () => {
    const whole = frame(RESULT, '{"a":1}');
    const parse = (bytes: Buffer): void => {
      const parser = new FrameParser();
      try {
        parser.push(bytes);
        parser.finish();
      } catch (error) {
        expect(error).toBeInstanceOf(ThawError);
      }
    };
    fc.assert(fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => parse(Buffer.from(bytes))));
    for (let bit = 0; bit < whole.length * 8; bit++) {
      const copy = Buffer.from(whole);
      copy[bit >> 3] = (copy[bit >> 3] ?? 0) ^ (1 << (bit & 7));
      parse(copy);
    }
    for (let length = 1; length < whole.length; length++) {
      const parser = new FrameParser();
      expect(parser.push(whole.subarray(0, length))).toEqual([]);
      expect(() => parser.finish()).toThrow(`it ended in the middle of a frame, after ${length} bytes`);
    }
  });

  it("drop members that nobody knows", () => {
    const [one] = new FrameParser().push(frame({ ...RESULT, extra: 1 }));
    expect(one?.header).toEqual(RESULT);
  });

  it("stay refused after the first violation", () => {
    const parser = new FrameParser();
    expect(() => parser.push(Buffer.from("nonsense"))).toThrow(ThawError);
    expect(() => parser.push(frame(RESULT))).toThrow("nonsense");
  });
});

describe("frames to the function", () => {
  it("keep a large body as the buffer that it was", () => {
    const body = Buffer.alloc(1_000_000);
    const parts = encodeFrame({ type: "prepare" }, body);
    expect(parts).toHaveLength(2);
    expect(parts[1]).toBe(body);
  });

  it("refuse a header beyond 64 KiB", () => {
    const clientContext = "x".repeat(70_000);
    const header = {
      type: "invoke",
      requestId: "r",
      deadlineMs: 0,
      functionName: "f",
      functionVersion: "1",
      memoryMb: 1,
      invokedArn: "",
      clientContext,
    } as const;
    expect(() => encodeFrame(header)).toThrow("The request's context is too large");
  });
});
