/**
 * Tables for a terminal: aligned columns, a heading for each group of rows, colour only where a person looks. The same
 * text without colour goes to files and pipes.
 */

const TONES = {
  plain: "",
  bold: "\u001b[1m",
  dim: "\u001b[2m",
  good: "\u001b[32m",
  bad: "\u001b[31m",
  accent: "\u001b[36m",
} as const;
const RESET = "\u001b[0m";

export type Tone = keyof typeof TONES;

/** Text, or text with a tone. */
export type Cell = string | { readonly text: string; readonly tone: Tone };

/** How many runs failed, where any did. */
export function failedCell({ length }: readonly unknown[]): Cell {
  return length === 0 ? "" : { text: `${length} failed`, tone: "bad" };
}

/** A heading, and how its cells stand. */
export interface Column {
  readonly title: string;
  readonly align?: "left" | "right";
}

/** A row of cells, or a heading that spans the table. */
export type Row = readonly Cell[] | { readonly heading: string };

/** What is printed for people. */
export interface Table {
  readonly title: string;
  /** Said once, below the title. */
  readonly subtitle?: string;
  readonly columns: readonly Column[];
  readonly rows: readonly Row[];
  /** Sentences below the table. */
  readonly notes?: readonly string[];
}

/** Whether to colour what goes to `stream`: a terminal, and NO_COLOR (no-color.org) not set. */
export function wantsColour(stream: { isTTY?: boolean }, env: NodeJS.ProcessEnv = process.env): boolean {
  return stream.isTTY === true && (env["NO_COLOR"] ?? "") === "" && env["TERM"] !== "dumb";
}

/** The text of a table, lines separated by newlines, ending in one. */
export function renderTable(table: Table, colour: boolean): string {
  const paint = (text: string, tone: Tone) =>
    colour && tone !== "plain" && text !== "" ? `${TONES[tone]}${text}${RESET}` : text;
  const widths = columnWidths(table);
  const width = widths.reduce((sum, each) => sum + each, 0) + 2 * (widths.length - 1);
  const line = (row: readonly Cell[], tone: Tone) =>
    table.columns
      .map((column, index) => {
        const cell = row[index] ?? "";
        const text = cellText(cell);
        const padding = " ".repeat(Math.max(0, (widths[index] ?? 0) - displayWidth(text)));
        const painted = paint(text, typeof cell === "string" ? tone : cell.tone);
        return column.align === "right" ? padding + painted : painted + padding;
      })
      .join("  ")
      .trimEnd();

  const lines = [paint(table.title, "bold")];
  if (table.subtitle !== undefined) lines.push(paint(table.subtitle, "dim"));
  lines.push(
    "",
    line(
      table.columns.map((column) => column.title),
      "dim",
    ),
    paint("─".repeat(width), "dim"),
  );
  for (const [index, row] of table.rows.entries()) {
    if ("heading" in row) {
      if (index > 0) lines.push("");
      lines.push(paint(row.heading, "accent"));
    } else lines.push(line(row, "plain"));
  }
  lines.push(paint("─".repeat(width), "dim"));
  for (const note of table.notes ?? []) lines.push(note);
  return `${lines.join("\n")}\n`;
}

function columnWidths(table: Table): number[] {
  return table.columns.map((column, index) => {
    const cells = table.rows.map((row) => ("heading" in row ? 0 : displayWidth(cellText(row[index] ?? ""))));
    return Math.max(displayWidth(column.title), ...cells);
  });
}

function cellText(cell: Cell): string {
  return typeof cell === "string" ? cell : cell.text;
}

/** Characters, not UTF-16 units. Wide (East Asian) characters do not occur in our tables. */
function displayWidth(text: string): number {
  return [...text].length;
}

/** Microseconds as milliseconds with three significant digits: `1.84`, `130`, `0.214`. `–` for what was not measured. */
export function ms(us: number): string {
  return significant(us / 1000);
}

/** Three significant digits, never an exponent. */
export function significant(value: number): string {
  if (!Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size >= 1000) return Math.round(value).toLocaleString("en-US");
  if (size >= 99.95) return value.toFixed(0);
  if (size >= 9.995) return value.toFixed(1);
  return size >= 0.9995 || value === 0 ? value.toFixed(2) : value.toFixed(3);
}

/** Bytes as MB (10^6), one digit. */
export function megabytes(bytes: number): string {
  return Number.isFinite(bytes) ? (bytes / 1e6).toFixed(1) : "–";
}
