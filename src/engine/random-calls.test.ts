import assert from "node:assert/strict";
import { execFileSync, spawnSync } from "node:child_process";
import { join } from "node:path";
import test from "node:test";
import { fileURLToPath } from "node:url";

const script = fileURLToPath(new URL("./testing/random-calls.js", import.meta.url));
const root = join(import.meta.dirname, "../../..");
const isSoak = process.env.ATTUNE_SOAK === "1";

/** Runs random-calls.js. A signal, an endless loop or an error that nobody promised fails, and the last call stands in the message. */
function run(addon: string, args: readonly string[], env: Record<string, string> = {}): string {
  const { status, signal, stdout, stderr } = spawnSync(process.execPath, [script, join(root, addon), ...args], {
    encoding: "utf8",
    env: { ...process.env, ...env },
    timeout: 120_000,
    killSignal: "SIGKILL",
    maxBuffer: 1 << 28,
  });
  const last = stdout.trimEnd().split("\n").at(-1) ?? "";
  assert.deepEqual({ status, signal }, { status: 0, signal: null }, `after ${last}\n${stderr.slice(-6000)}`);
  assert.match(last, /^ends /);
  return last;
}

/** How many calls ended in which way, over batches in a process each. */
function runBatches(
  addon: string,
  first: number,
  batches: number,
  inBatch: number,
  env: Record<string, string>,
): Map<string, number> {
  const ends = new Map<string, number>();
  for (let batch = 0; batch < batches; batch++) {
    const last = run(addon, [String(first + batch * inBatch), String(inBatch)], env);
    for (const [end, count] of Object.entries(JSON.parse(last.slice("ends ".length)) as Record<string, number>))
      ends.set(end, (ends.get(end) ?? 0) + count);
  }
  return ends;
}

test("work of any size beside sizes of 0 ends at once or is refused, in every kernel", () => {
  run("build/attune.node", ["sizes"]);
});

test("random calls end, or are refused with a TypeError, a RangeError or what the engine cannot do", () => {
  const ends = runBatches("build/attune.node", 1_000_000, 3, 300, {});
  for (const end of ["accepted", "TypeError", "RangeError"]) assert.ok(ends.get(end)! > 100, `${end}: ${ends.get(end)} of 900`);
});

test("random calls touch no memory but their own, and nothing undefined", { skip: !isSoak && "ATTUNE_SOAK=1 runs it" }, (t) => {
  const compiler = process.env.CXX ?? "c++";
  const libraries = ["libasan.so", "libubsan.so"].map((library) =>
    execFileSync(compiler, [`-print-file-name=${library}`], { encoding: "utf8" }).trim(),
  );
  if (libraries.some((library) => !library.includes("/"))) return t.skip(`${compiler} has no libasan.so`);
  execFileSync(process.execPath, [join(root, "scripts/build-engine.mjs"), "--sanitize"], { stdio: "inherit" });
  const env = {
    LD_PRELOAD: libraries.join(" "),
    ASAN_OPTIONS: "detect_leaks=0:allocator_may_return_null=1",
    UBSAN_OPTIONS: "print_stacktrace=1",
  };
  run("build/sanitized/attune.node", ["sizes"], env);
  const ends = runBatches("build/sanitized/attune.node", 0, 40, 250, env);
  t.diagnostic(`10,000 calls: ${[...ends].map(([end, count]) => `${count} ${end}`).join(", ")}`);
});
