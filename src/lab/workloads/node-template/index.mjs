/** Renders an invoice of 120 lines with Mustache: sections, an inverted section, escaping, a partial. */
import Mustache from "mustache";

const PAGE = `<h1>{{title}}</h1><ul>{{#lines}}{{> line}}{{/lines}}</ul>{{^lines}}<p>nothing</p>{{/lines}}<b>{{total}}</b>`;
const LINE = `<li>{{id}}: {{name}} {{#dear}}!{{/dear}}{{price}}</li>`;
const LINES = 120;
Mustache.parse(PAGE);
Mustache.parse(LINE);

export const handler = async (event) => {
  const lines = Array.from({ length: LINES }, (_, index) => {
    const price = ((event.seed + index) * 7_919) % 1_009;
    return { id: index, name: `part <${(event.seed + index) % 97}>`, price, dear: price > 500 };
  });
  const total = lines.reduce((sum, { price }) => sum + price, 0);
  return { html: Mustache.render(PAGE, { title: `Order ${event.seed}`, lines, total }, { line: LINE }) };
};
