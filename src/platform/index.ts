/** The door of the platform. */
export { openPlatform } from "./platform.js";
export { parsePreference } from "./preference.js";
export * from "./types.js";
