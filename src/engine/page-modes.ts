/** The loaders that take an image's memory from the pager, and how it goes about each; see reap.ts. */
import type { PageMode } from "../image/index.js";
import type { Loader } from "./types.js";

export const PAGE_MODES: Readonly<Partial<Record<Loader, PageMode>>> = {
  "reap-lazy": "lazy",
  "reap-parallel": "parallel",
  "reap-file": "file",
  reap: "direct",
};

/** Whether the pager brings this loader's pages. */
export function isPaged(loader: Loader): boolean {
  return PAGE_MODES[loader] !== undefined;
}
