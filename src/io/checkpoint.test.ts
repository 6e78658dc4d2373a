import assert from "node:assert/strict";
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { chmodSync, existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import test from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { CheckpointError, NoSpaceError } from "../errors.js";
import { newestCompleteCheckpoint, pruneCheckpoints, publishFolder, publishNewFolder, verifyFolder } from "./checkpoint.js";
import { writeFileAtomic } from "./disk.js";
import { repetitions, seededIntegers, smallDisk, temporaryFolder } from "./testing/folders.js";

const checkpointModule = new URL("./checkpoint.js", import.meta.url).href;

async function publish(outputDir: string, step: number, content = `step ${step}`): Promise<string> {
  const path = join(outputDir, `checkpoint-${step}`);
  await publishFolder(path, async (folder) => {
    mkdirSync(join(folder, "sub"));
    await writeFile(join(folder, "weights.bin"), content);
    await writeFile(join(folder, "sub", "state.json"), "{}");
  });
  return path;
}

/** A process that runs `body`, an ES module with `checkpoint` imported. Its standard output is a pipe. */
function child(body: string, ...args: string[]): ChildProcess {
  const source = `import * as checkpoint from ${JSON.stringify(checkpointModule)}; import { writeFileSync } from "node:fs"; ${body}`;
  return spawn(process.execPath, ["--input-type=module", "-e", source, ...args], { stdio: ["ignore", "pipe", "inherit"] });
}

/** The pid of a process that has ended. */
async function deadPid(): Promise<number> {
  const process = child("");
  await new Promise((resolve) => process.on("exit", resolve));
  return process.pid!;
}

test("a published folder is whole, marked and verifiable", async (t) => {
  const outputDir = temporaryFolder(t);
  const path = await publish(outputDir, 1);
  assert.deepEqual(readdirSync(outputDir), ["checkpoint-1"], "nothing else is left");
  assert.deepEqual(readdirSync(path).sort(), [".complete", "sub", "weights.bin"]);
  await verifyFolder(path);
  await verifyFolder(`${path}/`);
  const marker = JSON.parse(readFileSync(join(path, ".complete"), "utf8"));
  assert.deepEqual(Object.keys(marker.files), ["sub/state.json", "weights.bin"]);
});

test("publishing again replaces the folder; a failure leaves the old one and nothing else", async (t) => {
  const outputDir = temporaryFolder(t);
  const path = await publish(outputDir, 1, "old");
  await assert.rejects(
    publishFolder(path, async (folder) => {
      await writeFile(join(folder, "half"), "x");
      throw new Error("boom");
    }),
    /boom/,
  );
  assert.equal(readFileSync(join(path, "weights.bin"), "utf8"), "old");
  await publish(outputDir, 1, "new");
  assert.equal(readFileSync(join(path, "weights.bin"), "utf8"), "new");
  await verifyFolder(path);
  assert.deepEqual(readdirSync(outputDir), ["checkpoint-1"]);
});

test("every damaged byte and every truncation is found, and the file is named", async (t) => {
  const outputDir = temporaryFolder(t);
  const path = await publish(outputDir, 1);
  const random = seededIntegers(3);
  for (let i = 0; i < repetitions(300, 3000); i++) {
    const name = ["weights.bin", "sub/state.json", ".complete"][i % 3]!;
    const file = join(path, name);
    const original = readFileSync(file);
    const damaged = Buffer.from(original);
    const at = random(original.length);
    damaged[at]! ^= 1 << random(8);
    writeFileSync(file, random(4) === 0 ? original.subarray(0, at) : damaged);
    await assert.rejects(verifyFolder(path), (error) => {
      assert(error instanceof CheckpointError);
      assert(error.message.includes(join(path, name)), error.message);
      return true;
    });
    writeFileSync(file, original);
  }
  await verifyFolder(path);
  rmSync(join(path, "weights.bin"));
  await assert.rejects(verifyFolder(path), /weights\.bin: missing/);
});

test("the newest whole checkpoint is found; damaged ones are passed over with a warning", async (t) => {
  const outputDir = temporaryFolder(t);
  assert.equal(await newestCompleteCheckpoint(outputDir), undefined);
  assert.equal(await newestCompleteCheckpoint(join(outputDir, "gone")), undefined);
  for (const step of [9, 10, 100]) await publish(outputDir, step);
  mkdirSync(join(outputDir, "checkpoint-1000")); // never completed
  mkdirSync(join(outputDir, "checkpoint-x"));
  writeFileSync(join(outputDir, "checkpoint-100", "weights.bin"), "step 1O0");
  const warnings: string[] = [];
  const newest = await newestCompleteCheckpoint(outputDir, { onWarning: (message) => warnings.push(message) });
  assert.deepEqual(newest, { path: join(outputDir, "checkpoint-10"), step: 10 });
  assert.match(warnings[0]!, /checkpoint-1000 is not used: .*not complete/);
  assert.match(warnings[1]!, /checkpoint-100 is not used: .*weights\.bin: its sha256/);
  assert.equal(warnings.length, 2);
});

test("a marker cannot point out of its folder", async (t) => {
  const outputDir = temporaryFolder(t);
  const secret = join(outputDir, "secret");
  writeFileSync(secret, "x");
  const files = { "../secret": { bytes: 1, sha256: createHash("sha256").update("x").digest("hex") } };
  const sha256 = createHash("sha256").update(JSON.stringify(files)).digest("hex");
  mkdirSync(join(outputDir, "checkpoint-1"));
  writeFileSync(join(outputDir, "checkpoint-1", ".complete"), `${JSON.stringify({ version: 1, files, sha256 }, null, 1)}\n`);
  await assert.rejects(verifyFolder(join(outputDir, "checkpoint-1")), /outside of the folder/);
});

test("leftovers of dead processes are removed, an interrupted replacement is undone", async (t) => {
  const outputDir = temporaryFolder(t);
  const dead = await deadPid();
  await publish(outputDir, 1);
  for (const name of [`.tmp-checkpoint-2-${dead}`, `.trash-checkpoint-0-${dead}`, ".tmp-checkpoint-3-1"])
    mkdirSync(join(outputDir, name));
  await publish(outputDir, 7);
  renameSync(join(outputDir, "checkpoint-7"), join(outputDir, `.old-checkpoint-7-${dead}`));
  assert.equal((await newestCompleteCheckpoint(outputDir))?.step, 7);
  assert.deepEqual(readdirSync(outputDir).sort(), [".tmp-checkpoint-3-1", "checkpoint-1", "checkpoint-7"], "process 1 is alive");
});

test("pruning deletes the oldest, never the newest or the best, and nothing while the newest is not whole", async (t) => {
  const outputDir = temporaryFolder(t);
  for (const step of [1, 2, 3, 4, 5]) await publish(outputDir, step);
  const steps = () => readdirSync(outputDir).sort();
  assert.deepEqual(await pruneCheckpoints(outputDir, 5), []);
  assert.deepEqual(
    await pruneCheckpoints(outputDir, 3, { best: "checkpoint-1" }),
    [2, 3].map((step) => join(outputDir, `checkpoint-${step}`)),
  );
  assert.deepEqual(steps(), ["checkpoint-1", "checkpoint-4", "checkpoint-5"]);
  rmSync(join(outputDir, "checkpoint-5", ".complete"));
  assert.deepEqual(await pruneCheckpoints(outputDir, 1), []);
  rmSync(join(outputDir, "checkpoint-5"), { recursive: true });
  await pruneCheckpoints(outputDir, 1, { best: join(outputDir, "checkpoint-1") });
  assert.deepEqual(steps(), ["checkpoint-1", "checkpoint-4"]);
  await assert.rejects(pruneCheckpoints(outputDir, 0), /keep at least 1/);
});

test("kill -9 at any moment loses no published checkpoint and leaves no half one", async (t) => {
  const outputDir = temporaryFolder(t);
  const random = seededIntegers(4);
  let published = 0;
  for (let i = 0; i < repetitions(20, 1000); i++) {
    const writer = child(
      `const dir = process.argv[1]; let step = Number(process.argv[2]);
       process.stdout.write("ready\\n");
       for (;;) {
         step++;
         await checkpoint.publishFolder(dir + "/checkpoint-" + step, async (folder) => {
           for (let f = 0; f < 5; f++) writeFileSync(folder + "/" + f, Buffer.alloc(20000, step));
         });
         process.stdout.write(step + "\\n");
         await checkpoint.pruneCheckpoints(dir, 2);
       }`,
      outputDir,
      String(published),
    );
    let output = "";
    writer.stdout!.on("data", (chunk) => {
      output += chunk;
    });
    const ended = new Promise((resolve) => writer.on("close", resolve));
    while (!output.includes("ready")) await sleep(2);
    await sleep(random(60));
    writer.kill("SIGKILL");
    await ended;
    const said = Number(output.trim().split("\n").at(-1)) || published;
    const warnings: string[] = [];
    const newest = await newestCompleteCheckpoint(outputDir, { onWarning: (message) => warnings.push(message) });
    assert(said === 0 || (newest !== undefined && newest.step >= said), `lost checkpoint ${said}: ${newest?.step}`);
    assert.deepEqual(warnings, [], "no half checkpoint has a final name");
    assert(!readdirSync(outputDir).some((name) => name.startsWith(".")), "leftovers are cleaned");
    published = newest?.step ?? 0;
  }
  assert(published > 0);
});

test("a folder without write permission", async (t) => {
  const folder = temporaryFolder(t);
  if (process.getuid?.() === 0) return; // root may write everywhere
  chmodSync(folder, 0o500);
  await assert.rejects(publish(folder, 1), /cannot be written/);
  chmodSync(folder, 0o700);
});

test("a folder that is deleted while it is written is told, and so is one that becomes a file", async (t) => {
  const folder = temporaryFolder(t);
  await publish(folder, 1);
  const path = join(folder, "checkpoint-2");
  for (const sabotage of [
    (aside: string) => rmSync(aside, { recursive: true }),
    (aside: string) => {
      rmSync(aside, { recursive: true });
      writeFileSync(aside, "");
    },
    () => rmSync(folder, { recursive: true }),
  ]) {
    const attempt = publishFolder(path, async (aside) => {
      await writeFileAtomic(join(aside, "a"), "x");
      sabotage(aside);
      await writeFileAtomic(join(aside, "b"), "x");
    });
    await assert.rejects(attempt, { code: "CHECKPOINT", message: /cannot be written \((ENOENT|ENOTDIR)\)/ });
    assert.deepEqual(existsSync(folder) ? readdirSync(folder) : [], existsSync(folder) ? ["checkpoint-1"] : []);
  }
});

test("a marker that is no file keeps nobody waiting", { timeout: 10_000 }, async (t) => {
  const folder = temporaryFolder(t);
  const pipe = (path: string) => execFileSync("mkfifo", [path]);
  await publish(folder, 1);
  rmSync(join(folder, "checkpoint-1/.complete"));
  pipe(join(folder, "checkpoint-1/.complete"));
  const warnings: string[] = [];
  assert.equal(await newestCompleteCheckpoint(folder, { onWarning: (message) => warnings.push(message) }), undefined);
  assert.match(warnings.join(), /checkpoint-1 is not used/);
});

test("writeFileAtomic replaces a file and leaves nothing beside it", async (t) => {
  const folder = temporaryFolder(t);
  const path = join(folder, "x.json");
  await writeFileAtomic(path, "old");
  await writeFileAtomic(path, "new");
  assert.equal(readFileSync(path, "utf8"), "new");
  assert.deepEqual(readdirSync(folder), ["x.json"]);
});

test("too little space is told before anything is written", async (t) => {
  const outputDir = temporaryFolder(t);
  await publish(outputDir, 1);
  let wrote = false;
  const write = async () => {
    wrote = true;
  };
  await assert.rejects(publishFolder(join(outputDir, "checkpoint-2"), write, { neededBytes: 1e18 }), (error) => {
    assert(error instanceof NoSpaceError);
    assert.match(
      error.message,
      /^No space left: need 1000000000000 MB, have \d+ MB at .*; last good checkpoint checkpoint-1 kept/,
    );
    return true;
  });
  assert(!wrote);
});

test("a full disk loses nothing and leaves nothing half", async (t) => {
  const mount = smallDisk(t);
  if (mount === undefined) return;
  await publish(mount, 1, "x".repeat(100_000));
  const random = seededIntegers(5);
  for (let i = 0; i < repetitions(30, 200); i++) {
    const filler = join(mount, "filler");
    const free = 1_000_000 - 120_000;
    writeFileSync(filler, Buffer.alloc(free - random(120_000)));
    const attempt = publish(mount, 2, "y".repeat(100_000 + random(100_000)));
    const failed = await attempt.then(
      () => undefined,
      (error: unknown) => error,
    );
    if (failed !== undefined) {
      assert(failed instanceof NoSpaceError, String(failed));
      assert.equal(failed.exitCode, 4);
      assert.match(failed.message, /No space left: need more than is free, have .* at .*last good checkpoint checkpoint-1 kept/);
      assert.deepEqual(readdirSync(mount).sort(), ["checkpoint-1", "filler"]);
    }
    rmSync(filler);
    rmSync(join(mount, "checkpoint-2"), { recursive: true, force: true });
    await verifyFolder(join(mount, "checkpoint-1"));
  }
});

test("a new folder is there whole or not at all, without a marker, and takes the place of nothing", async (t) => {
  const parent = temporaryFolder(t);
  const out = join(parent, "deeper", "out");
  const write = async (folder: string) => {
    assert.ok(!existsSync(out));
    await writeFile(join(folder, "weights.bin"), "w");
    return 7;
  };
  assert.equal(await publishNewFolder(out, write), 7);
  assert.deepEqual(readdirSync(out), ["weights.bin"]);
  await assert.rejects(publishNewFolder(out, write), /is not empty \(weights\.bin\): choose a new folder/);

  const other = join(parent, "other");
  const failing = publishNewFolder(other, async (folder) => {
    await writeFile(join(folder, "half"), "");
    throw Object.assign(new Error("full"), { code: "ENOSPC" });
  });
  await assert.rejects(failing, NoSpaceError);
  const disturbed = publishNewFolder(other, async () => {
    mkdirSync(other);
    await writeFile(join(other, "precious"), "");
  });
  await assert.rejects(disturbed, /is not empty \(precious\)/);
  assert.deepEqual(readdirSync(parent).sort(), ["deeper", "other"]);
});
