import assert from "node:assert/strict";
import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { hostname, tmpdir } from "node:os";
import { join } from "node:path";
import test from "node:test";
import {
  EventFile,
  lastLoggingDir,
  newLoggingDir,
  scalarsOf,
  scalarsRecord,
  sessionRecord,
  versionRecord,
} from "./tensorboard.js";

/** What tensorboard writes for the same, in hex: test/fixtures/make_tensorboard.py. */
const golden = {
  version: "1800000000000000a37f4b2209000010846849da411a0d627261696e2e4576656e743a32255bc73e",
  session: "100000000000000095fbfe1809000010846849da4110ad023a020801d5ddeab7",
  scalars:
    "3500000000000000d6c55de609000010846849da4110ac022a270a110a0a747261696e2f6c6f7373150000a03f0a120a0b6576616c2fe68d9fe5a4b11582a8fbb7ebcf929a",
};
const now = 1_764_074_000_250;

test("records are the bytes that TensorBoard's own writer gives", () => {
  const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString("hex");
  assert.equal(hex(versionRecord(now)), golden.version);
  assert.equal(hex(sessionRecord(now, 301)), golden.session);
  assert.equal(hex(scalarsRecord(now, 300, { "train/loss": 1.25, "eval/损失": -3e-5 })), golden.scalars);
});

test("entries of the log get transformers' tags", () => {
  assert.deepEqual(scalarsOf({ loss: 2, grad_norm: 1, "rewards/margins": 3, epoch: 0.5, step: 7, note: "x" }), {
    ...{ "train/loss": 2, "train/grad_norm": 1, "train/rewards/margins": 3, "train/epoch": 0.5 },
  });
  assert.deepEqual(scalarsOf({ eval_loss: 2, eval_accuracy: 1, epoch: 0.5, step: 7 }), { "eval/loss": 2, "eval/accuracy": 1 });
});

test("files of a folder follow each other by name, and the last folder is found again", async (t) => {
  const folder = await mkdtemp(join(tmpdir(), "attune-board-"));
  t.after(() => rm(folder, { recursive: true }));
  assert.equal(await lastLoggingDir(folder), null);
  const first = newLoggingDir(folder, new Date(2026, 10, 5, 9, 3, 7));
  assert.equal(first, join(folder, "runs", `Nov05_09-03-07_${hostname()}`));
  const second = join(folder, "runs/other");
  for (const path of [first, second, second]) {
    const file = await EventFile.create(path, 0, now + (path === second ? 5000 : 0));
    await file.add(1, { "train/loss": 1 }, now);
    await file.sync();
    await file.close();
  }
  assert.equal(await lastLoggingDir(folder), second);
  const seconds = (await readdir(second)).map((name) => Number(name.split(".")[3]));
  assert.deepEqual(seconds, [1_764_074_005, 1_764_074_006]);
  const bytes = await readFile(join(first, (await readdir(first))[0]!));
  assert.deepEqual(bytes, Buffer.concat([versionRecord(now), sessionRecord(now, 0), scalarsRecord(now, 1, { "train/loss": 1 })]));
  await writeFile(join(folder, "file"), "");
  await assert.rejects(EventFile.create(join(folder, "file/runs"), 0), {
    code: "CHECKPOINT",
    message: /logging_dir: .* cannot be written to \(ENOTDIR\): choose another folder/,
  });
});
