import assert from "node:assert/strict";
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { chmodSync, existsSync, readdirSync, writeFileSync } from "node:fs";
import { hostname } from "node:os";
import { join } from "node:path";
import test from "node:test";
import { CheckpointError } from "../errors.js";
import { repetitions, temporaryFolder } from "../io/testing/folders.js";
import { lockFolder, lockOf } from "./run-lock.js";

const lockModule = new URL("./run-lock.js", import.meta.url).href;

/** A process that runs `body`, an ES module with `lockFolder` imported. Its standard output is a pipe. */
function child(body: string, ...args: string[]): ChildProcess {
  const source = `import { lockFolder } from ${JSON.stringify(lockModule)}; ${body}`;
  return spawn(process.execPath, ["--input-type=module", "-e", source, ...args], { stdio: ["ignore", "pipe", "inherit"] });
}

async function firstOutput(process: ChildProcess): Promise<string> {
  for await (const chunk of process.stdout!) return String(chunk);
  return "";
}

/** The pid of a process that has ended. */
async function deadPid(): Promise<number> {
  const process = child("");
  await new Promise((resolve) => process.on("exit", resolve));
  return process.pid!;
}

test("one run per folder: the second is refused with pid and host, also when both start together", async (t) => {
  const outputDir = join(temporaryFolder(t), "new");
  const lock = await lockFolder(outputDir);
  await assert.rejects(lockFolder(outputDir), (error) => {
    assert(error instanceof CheckpointError);
    assert(error.message.includes(`process ${process.pid} on host ${hostname()}`), error.message);
    return true;
  });
  await lock.release();
  assert.deepEqual(readdirSync(outputDir), []);

  const contender = `
    try { await lockFolder(process.argv[1]); process.stdout.write("won"); setTimeout(() => {}, 60000); }
    catch (error) { process.stdout.write(error.code); }`;
  for (let i = 0; i < repetitions(3, 100); i++) {
    // A lock of a dead process lies there half of the time, so that both want to take it over.
    if (i % 2 === 0)
      writeFileSync(join(outputDir, ".attune.lock"), JSON.stringify({ pid: await deadPid(), host: hostname(), nonce: "x" }));
    const contenders = [0, 1, 2].map(() => child(contender, outputDir));
    const results = await Promise.all(contenders.map(firstOutput));
    assert.deepEqual(results.sort(), ["CHECKPOINT", "CHECKPOINT", "won"]);
    for (const process of contenders) process.kill("SIGKILL");
    await Promise.all(
      contenders.map(
        (process) => process.exitCode ?? process.signalCode ?? new Promise((resolve) => process.on("exit", resolve)),
      ),
    );
  }
  await (await lockFolder(outputDir)).release();
});

test("locks of dead, unreadable and recycled processes are taken over, of other hosts never", async (t) => {
  const outputDir = temporaryFolder(t);
  const file = join(outputDir, ".attune.lock");
  const holder = {
    pid: process.pid,
    host: hostname(),
    startedAt: "2026-01-01T00:00:00.000Z",
    processMark: "another boot/1",
    nonce: "x",
  };
  const stale = ["", "garbage", "{}", JSON.stringify({ ...holder, pid: await deadPid() })];
  if (process.platform === "linux") stale.push(JSON.stringify(holder)); // same pid, another process
  for (const text of stale) {
    writeFileSync(file, text);
    await (await lockFolder(outputDir)).release();
    assert(!existsSync(file), text);
  }
  writeFileSync(file, JSON.stringify({ ...holder, host: "elsewhere", pid: 1234567 }));
  await assert.rejects(lockFolder(outputDir), /process 1234567 on host elsewhere since 2026.*delete .*\.attune\.lock/);
});

test("an output path that is a file, and a folder without write permission", async (t) => {
  const folder = temporaryFolder(t);
  const file = join(folder, "file");
  writeFileSync(file, "");
  await assert.rejects(lockFolder(file), /cannot be used as an output folder/);
  if (process.getuid?.() === 0) return; // root may write everywhere
  chmodSync(folder, 0o500);
  await assert.rejects(lockFolder(join(folder, "x")), /EACCES/);
  chmodSync(folder, 0o700);
});

test("a lock that is no file keeps nobody waiting", { timeout: 10_000 }, async (t) => {
  const folder = temporaryFolder(t);
  execFileSync("mkfifo", [join(folder, ".attune.lock")]);
  const lock = await lockFolder(folder);
  await lock.release();
});

test("who looks at a lock sees its holder, and whether that still runs; of another host nobody can tell", async (t) => {
  const folder = temporaryFolder(t);
  const file = join(folder, ".attune.lock");
  assert.equal(await lockOf(folder), undefined);
  assert.equal(await lockOf(join(folder, "nowhere")), undefined);
  const lock = await lockFolder(folder);
  const state = (await lockOf(folder))!;
  assert.deepEqual([state.pid, state.host, state.id, state.isAlive], [process.pid, hostname(), lock.id, true]);
  await lock.release();
  const holder = { host: hostname(), startedAt: "2026-01-01T00:00:00.000Z", nonce: "x" };
  writeFileSync(file, JSON.stringify({ ...holder, pid: await deadPid() }));
  assert.equal((await lockOf(folder))!.isAlive, false);
  writeFileSync(file, JSON.stringify({ ...holder, pid: process.pid, host: "elsewhere" }));
  assert.equal((await lockOf(folder))!.isAlive, null);
  for (const text of ["", "garbage", "{}"]) {
    writeFileSync(file, text);
    assert.equal(await lockOf(folder), undefined, text);
  }
  if (process.platform !== "linux") return;
  writeFileSync(file, JSON.stringify({ ...holder, pid: process.pid, processMark: "another boot/1" }));
  assert.equal((await lockOf(folder))!.isAlive, false, "another process has got the pid");
});
