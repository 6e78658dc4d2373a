import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import test from "node:test";
import { Worker } from "node:worker_threads";
import { loadEngine } from "./load.js";

const loader = JSON.stringify(new URL("./load.js", import.meta.url).href);

/** Runs a module that begins with `engine` loaded, in a process of its own; on Linux, with a limit on its memory if wanted. */
function runProcess(body: string, env: Record<string, string> = {}, limitKiB?: number) {
  const code = `const { loadEngine } = await import(${loader}); const engine = loadEngine();\n${body}`;
  const command = [process.execPath, "--input-type=module", "-e", code];
  if (limitKiB !== undefined) command.unshift("sh", "-c", `ulimit -d ${limitKiB} && exec "$0" "$@"`);
  const { status, signal, stdout, stderr } = spawnSync(command[0]!, command.slice(1), {
    encoding: "utf8",
    env: { ...process.env, ...env },
    timeout: 30_000,
  });
  return { status, signal, stdout, stderr };
}

function runWorker(body: string): Promise<unknown> {
  const code = `import(${loader}).then(async ({ loadEngine }) => { const engine = loadEngine(); const { parentPort } = require("node:worker_threads");\n${body} })`;
  return new Promise((resolve, reject) => {
    const worker = new Worker(code, { eval: true });
    let message: unknown;
    worker.on("message", (value: unknown) => {
      message = value;
    });
    worker.on("error", reject);
    worker.on("exit", () => resolve(message));
  });
}

test("calls return at once, and the queue runs in order", async () => {
  const engine = loadEngine();
  const count = 1 << 20;
  const x = engine.alloc(count * 4);
  engine.fill(x, 1, count);
  for (let i = 0; i < 200; i++) engine.scale(x, x, i % 2 === 0 ? 2 : 0.5, count, false);
  engine.write(x, 0, Float32Array.of(7)); // the stream is busy: must wait its turn
  engine.scale(x, x, 3, 2, false);
  const got = new Float32Array(2);
  await engine.read(x, 0, got);
  assert.deepEqual([...got], [21, 3]);
  engine.free(x);
});

test("freed memory is used again only by work that comes later", async () => {
  const engine = loadEngine();
  const count = 1 << 18;
  const results: Promise<void>[] = [];
  const sums: Float32Array[] = [];
  for (let i = 0; i < 200; i++) {
    const x = engine.alloc(count * 4);
    const sum = engine.alloc(4);
    const values = new Float32Array(count).fill(i);
    engine.write(x, 0, values);
    values.fill(Number.NaN); // the source is ours again
    engine.sum(x, sum, count, false);
    const target = new Float32Array(1);
    results.push(engine.read(sum, 0, target));
    sums.push(target);
    engine.free(x);
    engine.free(sum);
  }
  await Promise.all(results);
  for (const [i, sum] of sums.entries()) assert.equal(sum[0], i * count);
});

test("sync resolves when the work is done, in order with reads", async () => {
  const engine = loadEngine();
  const order: string[] = [];
  const x = engine.alloc(4 << 20);
  for (let i = 0; i < 20; i++) engine.fill(x, i, 1 << 20);
  const got = new Float32Array(1);
  await Promise.all([
    engine.sync().then(() => order.push("first")),
    engine.read(x, 0, got).then(() => order.push("read")),
    engine.sync().then(() => order.push("last")),
  ]);
  assert.deepEqual(order, ["first", "read", "last"]);
  assert.equal(got[0], 19);
  engine.free(x);
});

test("workers share the engine with the main thread", async () => {
  const engine = loadEngine();
  const before = engine.stats().liveBytes;
  const body = `
    let good = 0;
    for (let i = 0; i < 200; i++) {
      const count = 1000 + i, x = engine.alloc(count * 4), y = engine.alloc(4), got = new Float32Array(1);
      engine.fill(x, 1, count); engine.sum(x, y, count, false); engine.free(x);
      await engine.read(y, 0, got);
      engine.free(y);
      if (got[0] === count) good++;
    }
    parentPort.postMessage(good);`;
  const results = await Promise.all([runWorker(body), runWorker(body), runWorker(body)]);
  assert.deepEqual(results, [200, 200, 200]);
  assert.equal(engine.stats().liveBytes, before);
});

test("a worker may end while its reads are queued", async () => {
  const engine = loadEngine();
  const body = `
    const count = 1 << 20, x = engine.alloc(count * 4), target = new Float32Array(count);
    for (let i = 0; i < 100; i++) { engine.scale(x, x, 1, count, false); engine.read(x, 0, target).catch(() => {}); }
    engine.free(x);
    process.exit(0);`;
  for (let i = 0; i < 3; i++) await runWorker(body);
  await engine.sync();
});

test("a process ends at once and cleanly with work in the queue", () => {
  const queue = `const n = 1 << 22, x = engine.alloc(n * 4); for (let i = 0; i < 5000; i++) engine.dropout(x, x, 0.5, 1n, n, false);`;
  for (const [end, status] of [
    ["", 0],
    ["engine.read(x, 0, new Float32Array(n)); process.exit(7);", 7],
    ["throw new Error('stop')", 1],
  ] as const) {
    const started = performance.now();
    const result = runProcess(queue + end);
    assert.deepEqual([result.status, result.signal], [status, null], result.stderr);
    assert.ok(performance.now() - started < 10_000);
  }
});

test("an engine that was only used in a worker survives it", () => {
  const result = runProcess(
    `
    const { Worker } = await import("node:worker_threads");
    const body = 'import(${loader.replaceAll('"', '\\"')}).then(({ loadEngine }) => { const e = loadEngine(), x = e.alloc(4e6); for (let i = 0; i < 500; i++) e.fill(x, 1, 1e6); })';
    for (let i = 0; i < 3; i++) await new Promise((done) => new Worker(body, { eval: true }).on("exit", done));
    await new Promise((done) => setTimeout(done, 300));
    console.log("alive");`.replace("const engine", "// const engine"),
  );
  assert.deepEqual([result.status, result.stdout], [0, "alive\n"], result.stderr);
});

test("a promise keeps the process alive until it is settled", () => {
  const result = runProcess(`
    const x = engine.alloc(4 << 22);
    for (let i = 0; i < 100; i++) engine.fill(x, i, 1 << 22);
    engine.sync().then(() => console.log("done"));`);
  assert.deepEqual([result.status, result.stdout], [0, "done\n"], result.stderr);
});

test("ATTUNE_ISA and ATTUNE_THREADS choose, and wrong values are refused when the engine is loaded", () => {
  const show = "const { isa, threads } = engine.info(); console.log(isa, threads);";
  assert.equal(runProcess(show, { ATTUNE_ISA: "portable", ATTUNE_THREADS: "3" }).stdout, "portable 3\n");
  const wrong = runProcess(show, { ATTUNE_ISA: "mmx" });
  assert.equal(wrong.status, 1);
  assert.match(wrong.stderr, /EngineError.*ATTUNE_ISA is "mmx", but this machine can run: portable/);
  assert.match(
    runProcess(show, { ATTUNE_THREADS: "0" }).stderr,
    /EngineError.*ATTUNE_THREADS is "0", expected a number from 1 to/,
  );
});

test("ATTUNE_PROFILE=1 counts calls and time by kernel", () => {
  const body = `
    const x = engine.alloc(4e6);
    for (let i = 0; i < 10; i++) engine.fill(x, 1, 1e6);
    engine.sumSquares(x, x, 1e6, false);
    await engine.sync();
    console.log(JSON.stringify(engine.profile().filter(({ name }) => name !== "sync")), engine.profile().length);`;
  const { stdout } = runProcess(body, { ATTUNE_PROFILE: "1" });
  const [profile, rest] = stdout.split("] ");
  const entries = JSON.parse(`${profile}]`) as { name: string; calls: number; seconds: number }[];
  assert.deepEqual(
    entries.map(({ name, calls }) => [name, calls]),
    [
      ["fill", 10],
      ["sumSquares", 1],
    ],
  );
  assert.ok(entries.every(({ seconds }) => seconds > 0 && seconds < 10));
  assert.equal(rest, "0\n");
  assert.match(runProcess(body, { ATTUNE_PROFILE: "0" }).stdout, /^\[\] 0/);
});

test("info, setIsa and setThreads agree", () => {
  const engine = loadEngine();
  const { isa, threads, tiers, cpu, features } = engine.info();
  assert.equal(tiers[0], "portable");
  assert.ok(tiers.includes(isa) && cpu.length > 0 && features.length >= 0);
  for (const tier of tiers) {
    engine.setIsa(tier);
    assert.equal(engine.info().isa, tier);
  }
  assert.throws(() => engine.setIsa("mmx" as "amx"), {
    name: "EngineError",
    code: "ENGINE",
    message: /setIsa: "mmx" is not among the tiers/,
  });
  engine.setThreads(5);
  assert.equal(engine.info().threads, 5);
  for (const wrong of [0, -1, 1.5, 1e6]) assert.throws(() => engine.setThreads(wrong), RangeError);
  engine.setIsa(isa);
  engine.setThreads(threads);
});

test("workspace that cannot be had ends in an error of the next read or sync", { skip: process.platform !== "linux" }, () => {
  const body = `
    const x = engine.alloc(64 << 20), y = engine.alloc(64), got = new Float32Array(1);
    const shape = { qRows: 4, kRows: 1, heads: 1, kvHeads: 1, headDim: 1 << 22, scale: 1, causal: false, window: 0, dropout: 0, seed: 0n };
    const tell = (error) => console.log(error.name, error.message);
    engine.setThreads(2);
    engine.attention(x, x, x, x, y, Int32Array.of(0, 2, 0, 1, 0, 0, 2, 2, 0, 1, 0, 0), shape, "f32");
    engine.fill(y, 3, 1);
    await engine.sync().catch(tell);
    engine.attentionGrad(x, x, x, x, y, x, x, x, x, Int32Array.of(0, 2, 0, 1, 0, 0), shape, "f32");
    engine.attention(x, x, x, x, y, Int32Array.of(0, 2, 0, 1, 0, 0), shape, "f32");
    await engine.read(y, 0, got).catch(tell);
    engine.fill(y, 5, 1);
    await engine.read(y, 0, got);
    console.log(got[0]);`;
  const { status, signal, stdout, stderr } = runProcess(body, {}, 1_000_000);
  assert.deepEqual([status, signal], [0, null], stderr);
  const reason = "the system has no memory left for N bytes of workspace";
  assert.equal(stdout.replace(/\d{5,}/g, "N"), `EngineError attention: ${reason}\nEngineError attentionGrad: ${reason}\n5\n`);
});
