// Builds everything: TypeScript into dist/, the shared layouts into native/build/abi.h, the C helpers into
// native/build/, the Python runtime's bytecode beside its modules. Runs at the end of `npm ci`. Says plainly what is missing.
//
// `npx thaw` runs it, too: npm links the package into a cache of its own and takes that for an installation, npm 9
// (Debian's) before each command, later ones before each user's first. npm shows nothing of it, also where it fails. What is
// built is left as it is then: a command is no reason to build, and a server may be running from it.
import { execFileSync, spawnSync } from "node:child_process";
import { chmodSync, existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const byNpx = process.env.npm_command === "exec" && process.env.npm_lifecycle_event === "prepare";
const built = ["dist/cli/main.js", ...["keeper", "husk", "extractor", "shim.so"].map((name) => `native/build/${name}`)];
if (byNpx && built.every((path) => existsSync(join(root, path)))) process.exit(0);

const run = (command, args) => execFileSync(command, args, { cwd: root, stdio: "inherit" });

run(process.execPath, [join(root, "node_modules/typescript/bin/tsc"), "-p", "tsconfig.json"]);
chmodSync(join(root, "bin/thaw.mjs"), 0o755);

const missing = ["gcc", "make"].filter((tool) => spawnSync(tool, ["--version"], { stdio: "ignore" }).status !== 0);
if (process.platform !== "linux" || process.arch !== "x64") {
  console.error(
    `thaw: not building the native helpers: they need Linux on x86-64, this is ${process.platform} on ${process.arch}.`,
  );
  console.error("thaw: nothing can be frozen here.");
} else if (missing.length > 0) {
  console.error(`thaw: cannot build the native helpers: ${missing.join(" and ")} not found.`);
  console.error("thaw: install them (Debian: apt-get install gcc make libc6-dev) and run `npm run build`.");
  process.exit(1);
} else {
  mkdirSync(join(root, "native/build"), { recursive: true });
  const { abiHeader } = await import(join(root, "dist/linux/abi.js"));
  const path = join(root, "native/build/abi.h");
  const text = abiHeader();
  let old = "";
  try {
    old = readFileSync(path, "utf8");
  } catch {}
  if (old !== text) writeFileSync(path, text);
  run("make", ["--silent", "-C", "native", "-j2"]);

  // Sandboxes see these modules read-only, so that each boot would compile them anew. Valid as long as the sources have the same bytes,
  // wherever the tree is copied to.
  const { findInterpreters } = await import(join(root, "dist/linux/interpreters.js"));
  const compile = ["-m", "compileall", "-q", "--invalidation-mode", "checked-hash", join(root, "src/runtime/python")];
  for (const { id, language, path } of await findInterpreters()) {
    if (language !== "python") continue;
    const { status, stdout, stderr } = spawnSync(path, compile, { encoding: "utf8" });
    if (status !== 0) {
      console.error(`thaw: cannot compile the runtime's modules for ${id}: ${`${stdout}${stderr}`.trim() || `exit ${status}`}`);
      console.error("thaw: its functions boot some milliseconds slower.");
    }
  }
}
