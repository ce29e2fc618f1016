/**
 * Whether bytes are one JSON text (RFC 8259), without making its value: JSON.parse takes 50 to 600 ms for six megabytes, in which the event loop answers
 * nobody. Given in pieces, so that others have their turn between them. Accepts what JSON.parse accepts. That the bytes are UTF-8 is for others to check.
 */

const State = {
  /** A value has to come. */
  value: 0,
  /** A value, or the end of the array. */
  firstValue: 1,
  /** A key, or the end of the object. */
  firstKey: 2,
  key: 3,
  colon: 4,
  /** Behind a value: a comma, the end of what it is in, or of all. */
  after: 5,
  string: 6,
  escape: 7,
  hex: 8,
  minus: 9,
  zero: 10,
  integer: 11,
  point: 12,
  fraction: 13,
  exponent: 14,
  sign: 15,
  power: 16,
  word: 17,
} as const;
type State = (typeof State)[keyof typeof State];

const code = (character: string): number => character.charCodeAt(0);
const [QUOTE, BACKSLASH, COMMA, COLON] = [code('"'), code("\\"), code(","), code(":")];
const [ARRAY, ARRAY_END, OBJECT, OBJECT_END] = [code("["), code("]"), code("{"), code("}")];
const [MINUS, PLUS, POINT, ZERO, NINE] = [code("-"), code("+"), code("."), code("0"), code("9")];
const [SMALL_E, LARGE_E, UNICODE] = [code("e"), code("E"), code("u")];
const SPACE = 0x20;
const SPACES: ReadonlySet<number> = new Set([SPACE, 0x09, 0x0a, 0x0d]);
const ESCAPES: ReadonlySet<number> = new Set([...'"\\/bfnrt'].map(code));
const HEX: ReadonlySet<number> = new Set([..."0123456789abcdefABCDEF"].map(code));
const WORDS: ReadonlyMap<number, string> = new Map(["true", "false", "null"].map((word) => [code(word), word]));
const HEX_DIGITS = 4;

/** See above. */
export class JsonCheck {
  #state: State = State.value;
  /** The string that is being read is a key. */
  #isKey = false;
  /** For each array or object that is open: whether it is an object. */
  #objects = new Uint8Array(64);
  #depth = 0;
  /** What is left of `true`, `false` or `null`, and of the digits behind `\u`. */
  #rest = "";
  #digits = 0;
  #bytes = 0;

  /** Reads on. False at the first byte that no JSON text can go on with; {@link JsonCheck.bytes} is its place then. */
  write(bytes: Uint8Array): boolean {
    for (let index = 0; index < bytes.length; index++) {
      const byte = bytes[index] as number;
      // Nearly all of large texts is strings.
      if (this.#state === State.string && byte >= SPACE && byte !== QUOTE && byte !== BACKSLASH) continue;
      if (this.#step(byte)) continue;
      this.#bytes += index;
      return false;
    }
    this.#bytes += bytes.length;
    return true;
  }

  /** How many bytes can begin a JSON text. */
  get bytes(): number {
    return this.#bytes;
  }

  /** Whether what was read is a whole JSON text. */
  get whole(): boolean {
    const state = this.#state;
    const ended = state === State.after || this.#isNumber(state);
    return ended && this.#depth === 0;
  }

  #step(byte: number): boolean {
    switch (this.#state) {
      case State.string:
        if (byte === QUOTE) return this.#go(this.#isKey ? State.colon : State.after);
        return byte === BACKSLASH && this.#go(State.escape);
      case State.escape:
        this.#digits = HEX_DIGITS;
        return byte === UNICODE ? this.#go(State.hex) : ESCAPES.has(byte) && this.#go(State.string);
      case State.hex:
        this.#digits--;
        return HEX.has(byte) && (this.#digits > 0 || this.#go(State.string));
      case State.word:
        if (byte !== this.#rest.charCodeAt(0)) return false;
        this.#rest = this.#rest.slice(1);
        return this.#rest !== "" || this.#go(State.after);
      case State.minus:
        return this.#beginNumber(byte);
      case State.integer:
        return isDigit(byte) || this.#behindInteger(byte);
      case State.zero:
        return this.#behindInteger(byte);
      case State.point:
        return isDigit(byte) && this.#go(State.fraction);
      case State.fraction:
        return isDigit(byte) || this.#behindFraction(byte);
      case State.exponent:
        if (byte === PLUS || byte === MINUS) return this.#go(State.sign);
        return isDigit(byte) && this.#go(State.power);
      case State.sign:
        return isDigit(byte) && this.#go(State.power);
      case State.power:
        return isDigit(byte) || this.#after(byte);
      case State.after:
        return this.#after(byte);
      default:
        return SPACES.has(byte) || this.#begin(byte);
    }
  }

  /** The first byte of a value, key or colon, or the end of what is empty. */
  #begin(byte: number): boolean {
    const state = this.#state;
    if (state === State.colon) return byte === COLON && this.#go(State.value);
    if (state === State.firstKey && byte === OBJECT_END) return this.#close(byte);
    if (state === State.firstValue && byte === ARRAY_END) return this.#close(byte);
    this.#isKey = state === State.key || state === State.firstKey;
    if (byte === QUOTE) return this.#go(State.string);
    if (this.#isKey) return false;
    if (byte === OBJECT || byte === ARRAY) return this.#open(byte === OBJECT);
    if (byte === MINUS) return this.#go(State.minus);
    const word = WORDS.get(byte);
    if (word === undefined) return this.#beginNumber(byte);
    this.#rest = word.slice(1);
    return this.#go(State.word);
  }

  #beginNumber(byte: number): boolean {
    return byte === ZERO ? this.#go(State.zero) : isDigit(byte) && this.#go(State.integer);
  }

  #behindInteger(byte: number): boolean {
    return byte === POINT ? this.#go(State.point) : this.#behindFraction(byte);
  }

  #behindFraction(byte: number): boolean {
    return byte === SMALL_E || byte === LARGE_E ? this.#go(State.exponent) : this.#after(byte);
  }

  /** Behind a value; a number ends only by what comes behind it. */
  #after(byte: number): boolean {
    this.#state = State.after;
    if (SPACES.has(byte)) return true;
    if (this.#depth === 0) return false;
    if (byte === COMMA) return this.#go(this.#objects[this.#depth - 1] === 1 ? State.key : State.value);
    return this.#close(byte);
  }

  #open(isObject: boolean): boolean {
    if (this.#depth === this.#objects.length) {
      const more = new Uint8Array(this.#depth * 2);
      more.set(this.#objects);
      this.#objects = more;
    }
    this.#objects[this.#depth++] = isObject ? 1 : 0;
    return this.#go(isObject ? State.firstKey : State.firstValue);
  }

  #close(byte: number): boolean {
    if (byte !== (this.#objects[this.#depth - 1] === 1 ? OBJECT_END : ARRAY_END)) return false;
    this.#depth--;
    return this.#go(State.after);
  }

  #isNumber(state: State): boolean {
    return state === State.zero || state === State.integer || state === State.fraction || state === State.power;
  }

  #go(state: State): true {
    this.#state = state;
    return true;
  }
}

function isDigit(byte: number): boolean {
  return byte >= ZERO && byte <= NINE;
}
