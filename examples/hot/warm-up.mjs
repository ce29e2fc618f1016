// Prints warm-up events, one a line, when `thaw deploy` runs it: texts like those that will come, of many shapes, so that the code
// is optimised for what it will meet and not for one example.
const words =
  "frozen function starts where it stopped and answers at once because its code was compiled before anybody asked".split(" ");

/** The same numbers at every deploy, so that the same package and events come out. */
function numbers(seed) {
  let state = seed;
  return (below) => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
}

const next = numbers(20);
const sentence = () => Array.from({ length: 4 + next(12) }, () => words[next(words.length)]).join(" ");
const shapes = [
  () => `${"#".repeat(1 + next(4))} ${sentence()}`,
  () => `${sentence()}, **${sentence()}** and *${sentence()}*.`,
  () => Array.from({ length: 2 + next(5) }, () => `- ${sentence()} \`${words[next(words.length)]}\``).join("\n"),
  () => Array.from({ length: 2 + next(5) }, (_, index) => `${index + 1}. ${sentence()}`).join("\n"),
  () => `> ${sentence()} [${sentence()}](https://example.org/${next(1000)})`,
  () => `\`\`\`\nif (a < b && c > "${sentence()}") run();\n\`\`\``,
];

for (let document = 0; document < 40; document++) {
  const blocks = Array.from({ length: 3 + next(60) }, () => shapes[next(shapes.length)]());
  console.log(JSON.stringify({ markdown: blocks.join("\n\n") }));
}
