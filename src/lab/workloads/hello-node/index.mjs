/** The smallest function: what the platform itself costs. */
export const handler = async (event) => ({ greeting: `hello ${event.name ?? "world"}`, seed: event.seed });
