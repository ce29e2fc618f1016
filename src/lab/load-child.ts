/** Entry of the load generator's own process: options as JSON in the first argument, the result as JSON on stdout. */
import { generateLoad, type LoadOptions } from "./load.js";

const options = JSON.parse(process.argv[2] ?? "") as LoadOptions;
process.stdout.write(JSON.stringify(await generateLoad(options)));
