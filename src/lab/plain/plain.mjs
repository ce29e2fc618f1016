// The plain interpreter doing the same as a booted function: load the handler, read one request from standard input,
// answer on standard output. No sandbox, no supervisor. Arguments: code directory, module file, export.
import { readSync, writeSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [, , directory, file, name] = process.argv;
const { [name]: handler } = await import(pathToFileURL(join(directory, file)).href);
const chunk = Buffer.alloc(65_536);
const bytes = readSync(0, chunk);
const reply = await handler(JSON.parse(chunk.subarray(0, bytes).toString()), {});
writeSync(1, `${JSON.stringify(reply)}\n`);
