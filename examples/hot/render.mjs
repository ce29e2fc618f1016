/** The part of Markdown that notes are written in: headings, lists, quotes, code, emphasis, links. */

const ESCAPES = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" };
const escaped = (text) => text.replace(/[&<>"]/g, (character) => ESCAPES[character]);

/** What stands inside a line. */
const INLINE = [
  ["code", /^`([^`]+)`/],
  ["strong", /^\*\*([^*]+)\*\*/],
  ["em", /^\*([^*]+)\*/],
  ["a", /^\[([^\]]+)\]\(([^)\s]+)\)/],
];

function inline(text) {
  let html = "";
  let rest = text;
  while (rest !== "") {
    const plain = /^[^`*[]+/.exec(rest);
    if (plain !== null) {
      html += escaped(plain[0]);
      rest = rest.slice(plain[0].length);
      continue;
    }
    let taken = 1;
    let piece = escaped(rest[0]);
    for (const [tag, pattern] of INLINE) {
      const found = pattern.exec(rest);
      if (found === null) continue;
      const [whole, content, target] = found;
      const inner = tag === "code" ? escaped(content) : inline(content);
      piece = target === undefined ? `<${tag}>${inner}</${tag}>` : `<a href="${escaped(target)}">${inner}</a>`;
      taken = whole.length;
      break;
    }
    html += piece;
    rest = rest.slice(taken);
  }
  return html;
}

/** What a line is. */
function kindOf(line) {
  if (line.startsWith("```")) return { kind: "fence" };
  if (line.trim() === "") return { kind: "blank" };
  const heading = /^(#{1,6})\s+(.*)$/.exec(line);
  if (heading !== null) return { kind: "heading", level: heading[1].length, text: heading[2] };
  const item = /^\s*(?:[-+]|(\d+)\.)\s+(.*)$/.exec(line);
  if (item !== null) return { kind: "list", tag: item[1] === undefined ? "ul" : "ol", text: item[2] };
  const quote = /^>\s?(.*)$/.exec(line);
  return quote === null ? { kind: "paragraph", text: line.trim() } : { kind: "quote", text: quote[1] };
}

/** A whole text as HTML. */
export function render(markdown) {
  const out = [];
  let open;
  let fenced;
  const close = () => {
    if (open !== undefined) out.push(open.tag === "p" ? `<p>${open.lines.join("\n")}</p>` : wrapped(open));
    open = undefined;
  };
  for (const line of markdown.split("\n")) {
    const { kind, level, tag, text } = kindOf(line);
    if (fenced !== undefined) {
      if (kind === "fence") {
        out.push(`<pre><code>${fenced.map(escaped).join("\n")}</code></pre>`);
        fenced = undefined;
      } else fenced.push(line);
      continue;
    }
    const wanted = { list: tag, quote: "blockquote", paragraph: "p" }[kind];
    if (open?.tag !== wanted) close();
    if (kind === "fence") fenced = [];
    else if (kind === "heading") out.push(`<h${level}>${inline(text)}</h${level}>`);
    else if (wanted !== undefined) {
      open ??= { tag: wanted, lines: [] };
      open.lines.push(inline(text));
    }
  }
  close();
  if (fenced !== undefined) out.push(`<pre><code>${fenced.map(escaped).join("\n")}</code></pre>`);
  return out.join("\n");
}

function wrapped({ tag, lines }) {
  const inner = tag === "blockquote" ? lines.join("\n") : lines.map((line) => `<li>${line}</li>`).join("\n");
  return `<${tag}>\n${inner}\n</${tag}>`;
}
