import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { structBytes, writeStruct } from "../linux/abi.js";
import { FrameReader, type KeeperMessage } from "./keeper-frames.js";

function frame(type: number, id: number, tag: number, payload: Uint8Array): Buffer {
  const head = Buffer.alloc(structBytes("message"));
  writeStruct(head, 0, "message", { bytes: payload.length, type, flags: 3, id, reserved: tag });
  return Buffer.concat([head, payload]);
}

describe("the keeper's stream", () => {
  it("gives the same messages however it is cut into chunks", () => {
    const message = fc.record({ type: fc.nat(0xffff), id: fc.nat(), tag: fc.nat(), payload: fc.uint8Array({ maxLength: 200 }) });
    fc.assert(
      fc.property(
        fc.array(message, { maxLength: 8 }),
        fc.array(fc.integer({ min: 1, max: 90 }), { minLength: 1 }),
        (messages, cuts) => {
          const got: KeeperMessage[] = [];
          const reader = new FrameReader((one) => got.push(one));
          const stream = Buffer.concat(messages.map(({ type, id, tag, payload }) => frame(type, id, tag, payload)));
          for (let at = 0, turn = 0; at < stream.length; turn++) {
            const next = at + (cuts[turn % cuts.length] ?? 1);
            reader.push(stream.subarray(at, next));
            at = next;
          }
          expect(got.map(({ type, id, tag, payload }) => ({ type, id, tag, payload: [...payload] }))).toEqual(
            messages.map((one) => ({ ...one, payload: [...one.payload] })),
          );
        },
      ),
    );
  });

  it("does not copy a message that lies whole in its chunk", () => {
    let got: KeeperMessage | undefined;
    const chunk = frame(70, 1, 0, Buffer.from("hello"));
    new FrameReader((one) => (got = one)).push(chunk);
    expect(got?.payload.buffer).toBe(chunk.buffer);
    expect(got?.payload.toString()).toBe("hello");
  });
});
