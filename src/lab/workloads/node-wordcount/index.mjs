/** Counts the words of a text that comes with the event, and names the ten most frequent. */
const LETTERS = /[a-z]+/g;
const NAMED = 10;

export const handler = async ({ text }) => {
  const counts = new Map();
  let words = 0;
  for (const [word] of text.toLowerCase().matchAll(LETTERS)) {
    counts.set(word, (counts.get(word) ?? 0) + 1);
    words += 1;
  }
  const byCount = [...counts].sort(([a, m], [b, n]) => n - m || (a < b ? -1 : 1));
  return { words, distinct: counts.size, top: byCount.slice(0, NAMED) };
};
