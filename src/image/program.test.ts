import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { ABI_CONSTANTS as ABI, HUSK_VERSION, readStruct, readStructBig, structBytes } from "../linux/abi.js";
import { type Argument, type Program, ProgramBuilder, passed } from "./program.js";

const HEADER_BYTES = structBytes("program_header");
const OP_BYTES = structBytes("program_op");
const AT = ABI.HUSK_PROGRAM_AT;

const header = ({ bytes }: Program, field: string): number => readStruct(bytes, 0, "program_header", field);
const operation = (program: Program, index: number, field: string, element = 0): bigint =>
  readStructBig(program.bytes, header(program, "ops_at") + index * OP_BYTES, "program_op", field, element);

describe("a program", () => {
  it("begins with a header that describes it", () => {
    const builder = new ProgramBuilder();
    builder.text("/tmp/x");
    builder.call("one", 1, [2]);
    builder.stamp(3);
    const program = builder.build();
    expect(header(program, "magic")).toBe(ABI.PROGRAM_MAGIC);
    expect(header(program, "version")).toBe(HUSK_VERSION);
    expect(header(program, "op_count")).toBe(2);
    expect(header(program, "total_bytes")).toBe(program.bytes.length);
    expect(readStructBig(program.bytes, 0, "program_header", "base")).toBe(AT);
    expect(program.labels).toEqual(["one", "stamp"]);
  });

  it("tells the husk where it must lie, and addresses its data there", () => {
    const builder = new ProgramBuilder(ABI.HUSK_RESUME_AT);
    const at = builder.text("x");
    const program = builder.build();
    expect(readStructBig(program.bytes, 0, "program_header", "base")).toBe(ABI.HUSK_RESUME_AT);
    expect(program.bytes.toString("latin1", Number(at - ABI.HUSK_RESUME_AT), Number(at - ABI.HUSK_RESUME_AT) + 2)).toBe("x\0");
  });

  it("holds every piece of data where it said, aligned, apart from all others and before the operations", () => {
    const piece = fc.record({ bytes: fc.uint8Array({ maxLength: 100 }), alignment: fc.constantFrom(1, 8, 16, 64) });
    fc.assert(
      fc.property(fc.array(piece, { maxLength: 30 }), fc.nat({ max: 700 }), (pieces, operations) => {
        const builder = new ProgramBuilder();
        const places = pieces.map(({ bytes, alignment }) => builder.data(bytes, alignment));
        for (let index = 0; index < operations; index++) builder.stamp(1);
        const program = builder.build();
        const opsAt = header(program, "ops_at");
        expect(opsAt % 64).toBe(0);
        expect(program.bytes.length).toBe(opsAt + operations * OP_BYTES);
        let last = AT + BigInt(HEADER_BYTES);
        for (const [index, { bytes, alignment }] of pieces.entries()) {
          const at = places[index] ?? 0n;
          expect(at % BigInt(alignment)).toBe(0n);
          expect(at).toBeGreaterThanOrEqual(last);
          last = at + BigInt(bytes.length);
          expect(last).toBeLessThanOrEqual(AT + BigInt(opsAt));
          expect(program.bytes.subarray(Number(at - AT), Number(last - AT))).toEqual(Buffer.from(bytes));
        }
      }),
    );
  });

  it("tells what of its data is read once the process is resumed, and nothing where none is", () => {
    const place = (program: Program) => [header(program, "kept_from"), header(program, "kept_end")];
    const builder = new ProgramBuilder();
    builder.text("/a/path");
    const first = builder.keptData(Buffer.alloc(100), 64);
    builder.data(Buffer.alloc(50));
    const last = builder.keptData(Buffer.alloc(20));
    builder.text("/another");
    expect(place(builder.build())).toEqual([Number(first - AT), Number(last - AT) + 20]);
    const none = new ProgramBuilder();
    none.text("/a/path");
    expect(place(none.build())).toEqual([0, 0]);
  });

  it("encodes numbers as they are, negative ones as 64 bits, and slots with what is added to them", () => {
    const argument: fc.Arbitrary<Argument> = fc.oneof(
      fc.bigInt({ min: -(2n ** 63n), max: 2n ** 64n - 1n }),
      fc.maxSafeInteger(),
      fc.record({ slot: fc.nat({ max: 255 }), plus: fc.nat() }),
      fc.nat({ max: 63 }).map(passed),
    );
    fc.assert(
      fc.property(
        fc.array(argument, { maxLength: 6 }),
        fc.nat({ max: 600 }),
        fc.boolean(),
        fc.option(fc.nat(), { nil: undefined }),
        (args, nr, mayFail, expectation) => {
          const builder = new ProgramBuilder();
          builder.call("call", nr, args, { mayFail, ...(expectation === undefined ? {} : { expect: expectation }) });
          const program = builder.build();
          expect(operation(program, 0, "kind")).toBe(BigInt(ABI.OP_SYSCALL));
          expect(operation(program, 0, "nr")).toBe(BigInt(nr));
          expect(operation(program, 0, "result_slot")).toBe(BigInt(ABI.NO_SLOT));
          expect(operation(program, 0, "flags")).toBe(
            BigInt((mayFail ? ABI.OP_FLAG_MAY_FAIL : 0) | (expectation === undefined ? 0 : ABI.OP_FLAG_EXPECT)),
          );
          if (expectation !== undefined) expect(operation(program, 0, "expect")).toBe(BigInt(expectation));
          for (let index = 0; index < 6; index++) {
            const value = args[index] ?? 0;
            const word = operation(program, 0, "args", index);
            const isSlot = ((operation(program, 0, "slot_mask") >> BigInt(index)) & 1n) === 1n;
            expect(isSlot).toBe(typeof value === "object");
            if (typeof value === "object")
              expect([word & 0xffn, word >> 8n]).toEqual([BigInt(value.slot), BigInt(value.plus ?? 0)]);
            else expect(word).toBe(BigInt.asUintN(64, BigInt(value)));
          }
        },
      ),
    );
  });

  it("keeps passed descriptors and results in slots of their own", () => {
    expect([passed(0).slot, passed(63).slot]).toEqual([0, 63]);
    const builder = new ProgramBuilder();
    const slots = Array.from({ length: 192 }, () => builder.slot());
    expect(new Set(slots.map(({ slot }) => slot)).size).toBe(192);
    expect(Math.min(...slots.map(({ slot }) => slot))).toBe(64);
    expect(Math.max(...slots.map(({ slot }) => slot))).toBe(255);
    expect(() => builder.slot()).toThrow("bug: program has too many result slots");
    expect(() => builder.release(passed(64))).toThrow("bug: slots are released in reverse order");
    builder.release(slots.at(-1) ?? passed(0));
    expect(builder.slot().slot).toBe(255);
  });

  it("ends a list of pointers with NULL, and every text with NUL", () => {
    const builder = new ProgramBuilder();
    const texts = ["", "x", "größer", "a b"].map((text) => builder.text(text));
    const at = Number(builder.pointers(texts) - AT);
    const { bytes } = builder.build();
    expect(texts.map((_, index) => bytes.readBigUInt64LE(at + index * 8))).toEqual(texts);
    expect(bytes.readBigUInt64LE(at + texts.length * 8)).toBe(0n);
    const read = (address: bigint): string =>
      bytes.toString("utf8", Number(address - AT), bytes.indexOf(0, Number(address - AT)));
    expect(texts.map(read)).toEqual(["", "x", "größer", "a b"]);
  });

  it("of more than the husk's room is a bug", () => {
    const builder = new ProgramBuilder();
    const chunk = new Uint8Array(1 << 20);
    for (let index = 0; index < 513; index++) builder.data(chunk);
    expect(() => builder.build()).toThrow("bug: program is too large");
  });
});
