/**
 * Runs the built tests: `node scripts/test.mjs [--parity | --soak] [FILTER]`.
 *
 * Without options: every dist/**\/*.test.js except those of test/parity/. `--parity` runs only these, against the PyTorch of the venv
 * that ATTUNE_PEERS names. `--soak` sets ATTUNE_SOAK=1, which makes some tests longer. FILTER is a part of a path, such as `src/io`.
 * The parity tests use the whole machine, so they run one at a time.
 */
import { existsSync, readdirSync } from "node:fs";
import { availableParallelism } from "node:os";
import { join, relative, sep } from "node:path";
import { run } from "node:test";
import { spec } from "node:test/reporters";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

const root = fileURLToPath(new URL("..", import.meta.url));
const { values: options, positionals } = parseArgs({
  options: { parity: { type: "boolean", default: false }, soak: { type: "boolean", default: false } },
  allowPositionals: true,
});

if (options.parity && !existsSync(process.env.ATTUNE_PEERS ?? "")) {
  fail(
    "--parity compares with PyTorch: set ATTUNE_PEERS to a Python venv that has torch, transformers and peft (see CONTRIBUTING.md).",
  );
}
if (options.soak) process.env.ATTUNE_SOAK = "1";
process.env.ATTUNE_LANG = "en"; // what tests read is English, wherever they run

const files = testFiles().filter((file) => isParity(file) === options.parity && positionals.every((part) => file.includes(part)));
if (files.length === 0) fail(`No test file matches${positionals.map((part) => ` "${part}"`).join(" and")}.`);

const minute = 60_000;
const patience = options.soak ? 10 : 1;
const events = run({
  files: files.map((file) => join(root, "dist", file.replace(/\.ts$/, ".js"))),
  concurrency: options.parity ? 1 : Math.min(4, availableParallelism()),
  timeout: (options.parity ? 10 : 3) * minute * patience,
});
events.on("test:fail", () => {
  process.exitCode = 1;
});
events.compose(new spec()).pipe(process.stdout);

/** Paths of test sources whose built file is there. A built file without its source is left over from an older tree. */
function testFiles() {
  const found = readdirSync(join(root, "dist"), { recursive: true })
    .filter((file) => file.endsWith(".test.js"))
    .map((file) => file.replace(/\.js$/, ".ts"))
    .filter((file) => existsSync(join(root, file)));
  return found.map((file) => relative(".", file).split(sep).join("/")).sort();
}

function isParity(file) {
  return file.startsWith("test/parity/");
}

function fail(message) {
  console.error(message);
  process.exit(2);
}
