/** Writes a program of 60 functions, parses it with Acorn, and counts what the tree holds. */
import { parse } from "acorn";

const FUNCTIONS = 60;

function count(node, tally) {
  if (node === null || typeof node !== "object") return;
  if (Array.isArray(node)) {
    for (const each of node) count(each, tally);
    return;
  }
  if (node.type === "FunctionDeclaration") tally.functions += 1;
  if (node.type === "CallExpression") tally.calls += 1;
  if (node.type === "Literal" && typeof node.value === "number") tally.sum += node.value;
  for (const [name, child] of Object.entries(node)) if (name !== "type" && typeof child === "object") count(child, tally);
}

export const handler = async (event) => {
  let text = "";
  for (let index = 0; index < FUNCTIONS; index++) {
    const value = (event.seed * 31 + index * 17) % 1_000;
    text += `function f${index}(a, { b = ${value} } = {}) { const c = a?.x ?? g(b, ...a); return c > 1 ? h(\`\${c}\`) : [a, b, ${index}]; }\n`;
  }
  const tally = { functions: 0, calls: 0, sum: 0 };
  count(parse(text, { ecmaVersion: 2022 }), tally);
  return { seed: event.seed, ...tally };
};
