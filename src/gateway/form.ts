/**
 * Reads multipart/form-data (RFC 7578) as it comes, part after part, and holds no more of it than the piece that came last: a part may be a package
 * that is too large for memory, and parsers of whole bodies, such as Node's own, have it there twice.
 *
 *     --boundary CRLF  header CRLF … CRLF  content CRLF  --boundary CRLF … --boundary--
 */

/** One part. Its content must be read to its end before the next part is asked for. */
export interface FormPart {
  readonly name: string;
  /** Whether it was sent as a file. */
  readonly isFile: boolean;
  readonly content: AsyncIterable<Buffer>;
}

/** What is not such a form; the message says how. */
export class FormError extends Error {}

const CRLF = Buffer.from("\r\n");
/** Of what is before the first boundary, of a line of headers, of all headers of a part. */
const LINE_BYTES_MAX = 4096;
const HEADERS_MAX = 16;
const BOUNDARY = /;\s*boundary=(?:"([^"]{1,70})"|([^\s;"]{1,70}))/i;
const PARAMETER = /;\s*([\w*-]+)=(?:"((?:[^"\\]|\\.)*)"|([^;]*))/g;

/** The parts of the form in `source`. FormError; what `source` throws. */
export async function* readForm(contentType: string, source: AsyncIterable<Uint8Array>): AsyncGenerator<FormPart> {
  const [, quoted, boundary = quoted] = BOUNDARY.exec(contentType) ?? [];
  if (boundary === undefined) throw new FormError("its Content-Type names no boundary");
  const input = new Input(source);
  const mark = Buffer.from(`\r\n--${boundary}`);
  try {
    await input.text(mark);
    for (;;) {
      const behind = await input.take(2);
      if (behind === "--") break;
      if (behind !== "\r\n") throw new FormError("a boundary in it is followed by something else than the end of its line");
      const headers = await headersOf(input);
      yield { ...nameOf(headers), content: input.until(mark) };
    }
    await input.rest();
  } finally {
    await input.end();
  }
}

async function headersOf(input: Input): Promise<string> {
  for (let count = 0, found = ""; count <= HEADERS_MAX; count++) {
    const line = await input.text(CRLF);
    if (line === "") return found;
    if (/^content-disposition:/i.test(line)) found = line;
  }
  throw new FormError(`a part of it has more than ${HEADERS_MAX} headers`);
}

function nameOf(disposition: string): Pick<FormPart, "name" | "isFile"> {
  const parameters = new Map<string, string>();
  for (const [, key = "", quoted, plain = ""] of disposition.matchAll(PARAMETER))
    parameters.set(key.toLowerCase(), quoted ?? plain);
  const name = parameters.get("name");
  if (name === undefined) throw new FormError("a part of it has no name");
  return { name, isFile: parameters.has("filename") || parameters.has("filename*") };
}

/** Bytes as they come, and what was read of them too early. */
class Input {
  readonly #source: AsyncIterator<Uint8Array>;
  /** The first boundary may stand at the very beginning, others at the beginning of a line. */
  #held: Buffer = CRLF;

  constructor(source: AsyncIterable<Uint8Array>) {
    this.#source = source[Symbol.asyncIterator]();
  }

  /** What comes before `mark`, which is passed over; at most `bytesMax`. */
  async *until(mark: Buffer, bytesMax = Number.POSITIVE_INFINITY): AsyncGenerator<Buffer> {
    for (let bytes = 0; ; ) {
      const at = this.#held.indexOf(mark);
      // Without it, all but what may be its beginning.
      const end = at === -1 ? Math.max(0, this.#held.length - mark.length + 1) : at;
      const piece = this.#held.subarray(0, end);
      this.#held = this.#held.subarray(at === -1 ? end : at + mark.length);
      bytes += piece.length;
      if (bytes > bytesMax) throw new FormError("it has no boundary, or a header that is too long");
      if (piece.length > 0) yield piece;
      if (at !== -1) return;
      await this.#more();
    }
  }

  async #more(): Promise<void> {
    const { done, value } = await this.#source.next();
    if (done === true) throw new FormError("it ends before its last boundary");
    this.#held = Buffer.concat([this.#held, value]);
  }

  async take(length: number): Promise<string> {
    while (this.#held.length < length) await this.#more();
    const taken = this.#held.subarray(0, length).toString("latin1");
    this.#held = this.#held.subarray(length);
    return taken;
  }

  /** Whatever comes behind the last boundary says nothing. */
  async rest(): Promise<void> {
    while ((await this.#source.next()).done !== true);
  }

  async end(): Promise<void> {
    await this.#source.return?.();
  }

  /** All of that, which is short. */
  async text(mark: Buffer): Promise<string> {
    const pieces: Buffer[] = [];
    for await (const piece of this.until(mark, LINE_BYTES_MAX)) pieces.push(piece);
    return Buffer.concat(pieces).toString();
  }
}
