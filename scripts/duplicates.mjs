// Finds code that was copied: the same run of lines in two places. Lines count without their indentation; blank lines,
// comments, imports and lines without a word (lone brackets) do not count.
import { readdirSync, readFileSync } from "node:fs";
import { join, relative } from "node:path";

const LINES_MIN = 12;
const SOURCE = /\.(ts|mjs|cjs|js|c|h|py)$/;
const IGNORED = /^(\/\/|\/?\*|#(?!define)|import\b|export \{|export \*)/;

function sourcesBelow(dir) {
  return readdirSync(dir, { withFileTypes: true }).flatMap((entry) => {
    const path = join(dir, entry.name);
    if (entry.isDirectory()) return entry.name === "build" ? [] : sourcesBelow(path);
    return SOURCE.test(entry.name) ? [path] : [];
  });
}

/** The lines that count, each with its number. */
export function countedLines(text) {
  return text
    .split("\n")
    .map((line, index) => ({ text: line.trim(), number: index + 1 }))
    .filter((line) => /\w/.test(line.text) && !IGNORED.test(line.text));
}

/** Every maximal run of at least `LINES_MIN` equal lines, with its places as `file:line`. `files`: name to text. */
export function findCopies(files) {
  const seen = new Map();
  const found = [];
  for (const [name, text] of files) {
    const lines = countedLines(text);
    let end = 0;
    for (let at = 0; at + LINES_MIN <= lines.length; at++) {
      const key = lines
        .slice(at, at + LINES_MIN)
        .map((line) => line.text)
        .join("\n");
      const first = seen.get(key);
      if (first === undefined) {
        seen.set(key, { name, lines, at });
        continue;
      }
      // Overlapping repetitions inside one run (tables of equal rows) and the tail of a run already reported.
      if (at < end || (first.name === name && at - first.at < LINES_MIN)) continue;
      let length = LINES_MIN;
      while (lines[at + length] !== undefined && lines[at + length].text === first.lines[first.at + length]?.text) length++;
      end = at + length;
      found.push({ lines: length, places: [`${first.name}:${first.lines[first.at].number}`, `${name}:${lines[at].number}`] });
    }
  }
  return found;
}

/** {@link findCopies} over the source files below `dirs` of `root`. */
export function findDuplicates(root, dirs) {
  const paths = dirs.flatMap((dir) => sourcesBelow(join(root, dir)));
  return findCopies(paths.map((path) => [relative(root, path), readFileSync(path, "utf8")]));
}
