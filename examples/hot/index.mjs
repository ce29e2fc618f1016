// Renders Markdown: code that the runtime makes several times as fast once it knows it. `thaw.json` declares what to make it hot with.
import { render } from "./render.mjs";

const SAMPLE = ["# Nothing to render", "", 'Send `{"markdown": "..."}`, or look at **this**:', "", "- a list", "- of *two*"].join(
  "\n",
);

/** `{"markdown": "..."}` gives `{"html": "...", "words": N}`. */
export async function handler(event) {
  const markdown = event.markdown ?? SAMPLE;
  if (typeof markdown !== "string") throw new TypeError("markdown must be text");
  const html = render(markdown);
  return { html, words: markdown.split(/\s+/).filter((word) => /\w/.test(word)).length };
}
