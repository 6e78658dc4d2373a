/**
 * Runs the built tests: `node scripts/test.mjs [--parity | --soak] [FILTER]`.
 *
 * Without options: every dist/**\/*.test.js except those of test/parity/. `--parity` runs only these, against the PyTorch of the venv
 * that ATTUNE_PEERS names. `--soak` sets ATTUNE_SOAK=1, which makes some tests longer. FILTER is a part of a path, such as `src/io`.
 * Files of test/e2e/ and test/parity/ use the whole machine, so they run one at a time, after the others.
 */
import { existsSync, readdirSync } from "node:fs";
import { availableParallelism } from "node:os";
import { join, relative, sep } from "node:path";
import { Readable } from "node:stream";
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

const files = testFiles().filter((file) => isParity(file) === options.parity && positionals.every((part) => file.includes(part)));
if (files.length === 0) fail(`No test file matches${positionals.map((part) => ` "${part}"`).join(" and")}.`);

const minute = 60_000;
const patience = options.soak ? 10 : 1;
const light = files.filter((file) => !isHeavy(file));
const heavy = files.filter(isHeavy);

Readable.from(oneReport(batches())).compose(new spec()).pipe(process.stdout);

function* batches() {
  const paths = (list) => list.map((file) => join(root, "dist", file.replace(/\.ts$/, ".js")));
  const concurrency = Math.min(4, availableParallelism());
  if (light.length > 0) yield run({ files: paths(light), concurrency, timeout: 3 * minute * patience });
  if (heavy.length > 0) yield run({ files: paths(heavy), concurrency: 1, timeout: 10 * minute * patience });
}

/** The events of all batches, with their closing counts ("tests 12", "fail 0") added up into one summary. */
async function* oneReport(runs) {
  const totals = new Map();
  for (const events of runs) {
    for await (const event of events) {
      const count =
        event.type === "test:diagnostic" && event.data.nesting === 0 && /^([a-z_]+) ([\d.]+)$/.exec(event.data.message);
      if (count) totals.set(count[1], { event, sum: (totals.get(count[1])?.sum ?? 0) + Number(count[2]) });
      else yield event;
    }
  }
  if (["fail", "cancelled"].some((name) => totals.get(name)?.sum !== 0)) process.exitCode = 1; // a missing count is a failure, too
  for (const [name, { event, sum }] of totals) yield { ...event, data: { ...event.data, message: `${name} ${Math.round(sum)}` } };
}

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

function isHeavy(file) {
  return isParity(file) || file.startsWith("test/e2e/");
}

function fail(message) {
  console.error(message);
  process.exit(2);
}
