/**
 * The functions of the `heat` sections: eight in JavaScript, four in Python, of the kinds that the literature on hot starts measures
 * (Ignite, HotOS'21; Pronghorn, EuroSys'24; FunctionBench). The input of a function has the same size for every seed and another content.
 * What each must answer is computed here, by other means than the function uses: from the numbers that the input was made of, with `node:crypto`,
 * or by an identity of algebra.
 *
 * Sizes are what such functions are called with: a page of text, a few dozen orders, a log of some hundred lines. They were adjusted once, after
 * timings in the plain interpreter and before any thaw was measured; none was changed to make a ratio better.
 */
import { createCipheriv, createHash } from "node:crypto";
import { MEMORY_WORKLOADS, type MemoryWorkload, makeWorkload } from "./memory-workloads.js";
import { seededRandom } from "./statistics.js";

const pick = (random: () => number, below: number) => Math.floor(random() * below);

/** How often each name occurs, in the order of first occurrence. */
function tally(names: Iterable<string>): Map<string, number> {
  const counts = new Map<string, number>();
  for (const name of names) counts.set(name, (counts.get(name) ?? 0) + 1);
  return counts;
}

/* ---- word count ---- */

const VOCABULARY = 900;
const TEXT_WORDS = 6_000;
const MARKS = [".", ",", ";", "!", "?"];

/** `bacada`, `bacade`, …: consonant and vowel in turn, so that any two numbers make different words. */
function wordOf(number: number): string {
  let word = "";
  for (let rest = number + 100; rest > 0; rest = Math.floor(rest / 60)) word += syllable(rest % 60);
  return word;
}
const syllable = (number: number) => `${"bcdfghjklmnp"[number % 12]}${"aeiou"[Math.floor(number / 12)]}`;

/** Word numbers of a text: small ones far more often than large ones, as in languages. */
function textNumbers(seed: number): number[] {
  const random = seededRandom(seed + 1);
  return Array.from({ length: TEXT_WORDS }, () => Math.floor(VOCABULARY * random() ** 3));
}

function text(seed: number): string {
  const random = seededRandom(seed + 2);
  let start = true;
  return textNumbers(seed)
    .map((number) => {
      const word = wordOf(number);
      const written = start ? `${word.charAt(0).toUpperCase()}${word.slice(1)}` : word;
      const mark = pick(random, 9) === 0 ? (MARKS[pick(random, MARKS.length)] ?? "") : "";
      start = mark !== "" && mark !== "," && mark !== ";";
      return written + mark;
    })
    .join(" ");
}

function counted(seed: number) {
  const counts = tally(textNumbers(seed).map(wordOf));
  const order = [...counts].sort(([a, m], [b, n]) => n - m || (a < b ? -1 : 1));
  return { words: TEXT_WORDS, distinct: counts.size, top: order.slice(0, 10) };
}

/* ---- JSON ---- */

const ORDERS = 150;
const CUSTOMERS = 25;
const COUNTRIES = ["DE", "FR", "NL", "PL", "PT"] as const;

interface Order {
  readonly id: number;
  readonly customer: { readonly id: number; readonly name: string; readonly country: string };
  readonly items: readonly { readonly sku: string; readonly cents: number; readonly quantity: number }[];
  readonly discount: number;
  readonly note: string;
}

function orders(seed: number): Order[] {
  const random = seededRandom(seed + 3);
  return Array.from({ length: ORDERS }, (_, index) => {
    const customer = pick(random, CUSTOMERS);
    return {
      id: seed * 1_000 + index,
      customer: {
        id: customer,
        name: `${wordOf(customer)} ${wordOf(customer + seed)}`,
        country: COUNTRIES[customer % COUNTRIES.length] ?? "DE",
      },
      items: Array.from({ length: 4 }, () => ({
        sku: `SK-${10_000 + pick(random, 90_000)}`,
        cents: 100 + pick(random, 9_900),
        quantity: 1 + pick(random, 5),
      })),
      discount: 5 * pick(random, 5),
      note: `leave it "${wordOf(pick(random, 900))}" at the door\n`,
    };
  });
}

/** Sums by filtering the whole list for each customer and country, where the function goes through it once. */
function summedUp(seed: number) {
  const all = orders(seed).map((order) => {
    const cents = order.items.map((item) => item.cents * item.quantity).reduce((a, b) => a + b);
    return { ...order, cents: Math.ceil((cents * (100 - order.discount)) / 100), skus: order.items.map(({ sku }) => sku) };
  });
  const sum = (list: readonly { readonly cents: number }[]) => list.map(({ cents }) => cents).reduce((a, b) => a + b, 0);
  const ids = [...new Set(all.map(({ customer }) => customer.id))];
  const customers = ids.map((id) => {
    const own = all.filter(({ customer }) => customer.id === id);
    return { ...(own[0] as (typeof all)[number]).customer, orders: own.length, cents: sum(own) };
  });
  const names = [...new Set(all.map(({ customer }) => customer.country))];
  return {
    statusCode: 200,
    body: JSON.stringify({
      lines: all,
      customers: customers.sort((a, b) => b.cents - a.cents || a.id - b.id),
      countries: Object.fromEntries(names.map((name) => [name, sum(all.filter(({ customer }) => customer.country === name))])),
    }),
  };
}

/* ---- AES ---- */

function aesEvent(bytes: number) {
  return (seed: number) => {
    const digest = createHash("sha256").update(`aes ${seed}`).digest("hex");
    return { key: digest.slice(0, 32), counter: digest.slice(32), text: text(seed).slice(0, bytes) };
  };
}

function encrypted(bytes: number) {
  const event = aesEvent(bytes);
  return (seed: number) => {
    const { key, counter, text } = event(seed);
    const cipher = createCipheriv("aes-128-ctr", Buffer.from(key, "hex"), Buffer.from(counter, "hex"));
    return { encrypted: Buffer.concat([cipher.update(text, "latin1"), cipher.final()]).toString("base64") };
  };
}

/* ---- matrices ---- */

const SIDE = 64;

function matrices(seed: number) {
  const random = seededRandom(seed + 4);
  const matrix = () => Array.from({ length: SIDE }, () => Array.from({ length: SIDE }, () => pick(random, 200) - 100));
  return { left: matrix(), right: matrix() };
}

/** Without multiplying: u(AB)v = (uA)(Bv) for the two weighted sums, and the trace as the sum of a[i][j] b[j][i]. */
function products(seed: number) {
  const { left, right } = matrices(seed);
  const at = (matrix: readonly (readonly number[])[], row: number, column: number) => matrix[row]?.[column] ?? Number.NaN;
  const indices = Array.from({ length: SIDE }, (_, index) => index);
  const total = (value: (index: number) => number) => indices.map(value).reduce((a, b) => a + b);
  const weighted = (u: (row: number) => number, v: (column: number) => number) =>
    total((inner) => total((row) => u(row) * at(left, row, inner)) * total((column) => at(right, inner, column) * v(column)));
  const one = () => 1;
  return {
    size: SIDE,
    sum: weighted(one, one),
    trace: total((row) => total((column) => at(left, row, column) * at(right, column, row))),
    weighted: weighted(
      (row) => row + 1,
      (column) => column + 2,
    ),
  };
}

/* ---- regular expressions ---- */

const LOG_LINES = 400;
const ROUTES = [
  ["GET", "/shop/item/", true],
  ["POST", "/shop/cart/", true],
  ["GET", "/static/style.css", false],
  ["PUT", "/users/", true],
  ["GET", "/search", false],
] as const;
const STATUSES = [200, 200, 200, 204, 304, 404, 500];
const AGENTS = ["Mozilla/5.0 (X11; Linux x86_64)", "curl/7.88.1", "Search bot/2.1 (+https://example.org)", "robotic lawnmower"];

/** What each line says; the log is written from it, and what the function must find in it is counted from it. */
function visits(seed: number) {
  const random = seededRandom(seed + 5);
  return Array.from({ length: LOG_LINES }, (_, index) => ({
    broken: pick(random, 40) === 0,
    route: pick(random, ROUTES.length),
    item: pick(random, 100_000),
    page: pick(random, 3) === 0 ? pick(random, 50) : undefined,
    mail: pick(random, 10) === 0 ? `${wordOf(pick(random, 900))}@example.org` : undefined,
    status: STATUSES[pick(random, STATUSES.length)] ?? 200,
    bytes: pick(random, 8) === 0 ? undefined : pick(random, 60_000),
    agent: pick(random, AGENTS.length),
    address: `198.51.100.${pick(random, 256)}`,
    second: String(index % 60).padStart(2, "0"),
  }));
}

type Visit = ReturnType<typeof visits>[number];
const parametersOf = ({ page, mail }: Visit) => [
  ...(page === undefined ? [] : [["page", String(page)]]),
  ...(mail === undefined ? [] : [["mail", mail]]),
];

function accessLog(seed: number): string {
  return visits(seed)
    .map((visit) => {
      const [method, path, numbered] = ROUTES[visit.route] ?? ROUTES[0];
      const query = parametersOf(visit).map((pair) => pair.join("="));
      const target = `${path}${numbered ? visit.item : ""}${query.length > 0 ? `?${query.join("&")}` : ""}`;
      const request = visit.broken ? `${method} ${target}` : `"${method} ${target} HTTP/1.1"`;
      const at = `[21/Nov/2026:07:53:${visit.second} +0000]`;
      return `${visit.address} - - ${at} ${request} ${visit.status} ${visit.bytes ?? "-"} "https://example.org/" "${AGENTS[visit.agent]}"`;
    })
    .join("\n");
}

function found(seed: number) {
  const all = visits(seed);
  const read = all.filter(({ broken }) => !broken);
  const routes = read.map(({ route }) => {
    const [method, path, numbered] = ROUTES[route] ?? ROUTES[0];
    return `${method} ${path}${numbered ? ":id" : ""}`;
  });
  return {
    lines: read.length,
    wrong: all.length - read.length,
    bytes: read.reduce((sum, { bytes = 0 }) => sum + bytes, 0),
    crawlers: read.filter(({ agent }) => agent === 2).length,
    mails: read.filter(({ mail }) => mail !== undefined).length,
    statuses: Object.fromEntries(tally(read.map(({ status }) => String(status)))),
    routes: Object.fromEntries(tally(routes)),
    parameters: Object.fromEntries(tally(read.flatMap((visit) => parametersOf(visit).map(([name = ""]) => name)))),
  };
}

/* ---- a web framework ---- */

function webOrder(seed: number) {
  const random = seededRandom(seed + 6);
  const items = Array.from({ length: 12 }, () => ({
    sku: `SK-${10_000 + pick(random, 90_000)}`,
    cents: 100 + pick(random, 9_900),
    quantity: 1 + pick(random, 5),
  }));
  return { id: 10_000 + pick(random, 90_000), customer: wordOf(pick(random, 900)), items };
}

function webEvent(seed: number) {
  const { id, customer, items } = webOrder(seed);
  return {
    method: "POST",
    url: `/shop/orders/${id}?currency=EUR`,
    headers: { "content-type": "application/json", "x-tenant": `tenant-${seed}` },
    body: JSON.stringify({ customer, items }),
  };
}

function webReply(seed: number) {
  const { id, customer, items } = webOrder(seed);
  const lines = items.map(({ sku, cents, quantity }) => ({ sku, cents: cents * quantity }));
  const cents = lines.map((line) => line.cents).reduce((a, b) => a + b);
  return { statusCode: 201, tenant: `tenant-${seed}`, body: JSON.stringify({ id, customer, currency: "EUR", cents, lines }) };
}

/** Plain Python takes fifty times as long for a byte as optimised JavaScript. */
const AES_BYTES = { node: 4_096, python: 1_024 } as const;

const textEvent = (seed: number) => ({ text: text(seed) });
const ordersEvent = (seed: number) => ({ body: JSON.stringify({ orders: orders(seed) }) });
const { template, parse } = MEMORY_WORKLOADS;

/** In the order in which they are measured. */
export const HEAT_WORKLOADS: readonly MemoryWorkload[] = [
  makeWorkload("node-wordcount", "node", 256, "6,000 words", textEvent, counted),
  template,
  makeWorkload("node-json", "node", 256, "150 orders read, summed up, written", ordersEvent, summedUp),
  makeWorkload(
    "node-aes",
    "node",
    256,
    "AES-128-CTR of 4 KB in plain JavaScript",
    aesEvent(AES_BYTES.node),
    encrypted(AES_BYTES.node),
  ),
  parse,
  makeWorkload("node-matrix", "node", 256, "64 x 64 multiplied by as much", matrices, products),
  makeWorkload("node-regex", "node", 256, "access log of 400 lines", (seed) => ({ log: accessLog(seed) }), found),
  makeWorkload("node-fastify", "node", 256, "Fastify answers a POST with schemas", webEvent, webReply, ["fastify"]),
  makeWorkload("python-wordcount", "python", 256, "6,000 words", textEvent, counted),
  makeWorkload("python-json", "python", 256, "150 orders read, summed up, written", ordersEvent, summedUp),
  makeWorkload("python-template", "python", 256, "string.Template, 120 lines", template.event, template.reply),
  makeWorkload(
    "python-aes",
    "python",
    256,
    "AES-128-CTR of 1 KB in plain Python",
    aesEvent(AES_BYTES.python),
    encrypted(AES_BYTES.python),
  ),
];
