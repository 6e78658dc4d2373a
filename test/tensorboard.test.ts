/** What TensorBoard would show of a run; test/parity/tensorboard.test.ts asks TensorBoard itself. */
import assert from "node:assert/strict";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import { collect, makeFolder, tinyRecipe } from "./support/run.js";
import { type Board, killedAndResumed } from "./support/tensorboard.js";

/** Reads a folder as TensorBoard does: a record that is cut ends its file, and a session replaces what came before it from its step on. */
function readBoard(folder: string): Board {
  const board: Record<string, [number, number][]> = {};
  for (const name of readdirSync(folder).sort()) {
    const file = readFileSync(join(folder, name));
    let at = 0;
    while (at + 12 <= file.length) {
      const length = Number(file.readBigUInt64LE(at));
      if (at + 16 + length > file.length) break;
      const { 2: steps = [0], 5: summaries = [], 7: sessions = [] } = fieldsOf(file.subarray(at + 12, at + 12 + length));
      const step = steps[0] as number;
      if (sessions.length > 0) for (const [tag, points] of Object.entries(board)) board[tag] = points.filter(([at]) => at < step);
      for (const value of summaries.flatMap((summary) => fieldsOf(summary as Buffer)[1]!)) {
        const { 1: tags, 2: numbers } = fieldsOf(value as Buffer);
        const tag = (tags![0] as Buffer).toString();
        board[tag] = [...(board[tag] ?? []), [step, (numbers![0] as Buffer).readFloatLE()]];
      }
      at += 16 + length;
    }
  }
  return board;
}

/** The fields of a protobuf message by number: varints as numbers, all else as bytes. */
function fieldsOf(message: Buffer): Record<number, (number | Buffer)[]> {
  const fields: Record<number, (number | Buffer)[]> = {};
  let at = 0;
  const varint = () => {
    let value = 0;
    for (let shift = 1; ; shift *= 128) {
      const byte = message[at++]!;
      value += (byte & 127) * shift;
      if (byte < 128) return value;
    }
  };
  while (at < message.length) {
    const key = varint();
    const type = key & 7;
    let value: number | Buffer;
    if (type === 0) value = varint();
    else {
      const length = type === 1 ? 8 : type === 5 ? 4 : varint();
      value = message.subarray(at, at + length);
      at += length;
    }
    fields[key >> 3] = [...(fields[key >> 3] ?? []), value];
  }
  return fields;
}

test("a run that was killed and resumed shows each step once, and what trainer_state.json says", async () => {
  const { board, expected } = await killedAndResumed({});
  assert.deepEqual(
    expected["train/loss"]!.map(([step]) => step),
    [1, 2, 3, 4, 5, 6, 7, 8],
  );
  assert.deepEqual(
    expected["eval/loss"]!.map(([step]) => step),
    [4, 8],
  );
  assert.ok("train/learning_rate" in expected && "train/grad_norm" in expected && "train/train_runtime" in expected);
  assert.deepEqual(readBoard(board), expected);
  assert.equal(readdirSync(board).length, 2);
});

test("logging_dir is obeyed, and nothing is written where report_to does not ask", async () => {
  const folder = makeFolder();
  const logging_dir = join(folder, "elsewhere");
  const { board, expected } = await killedAndResumed({ logging_dir });
  assert.equal(board, logging_dir);
  assert.deepEqual(readBoard(board), expected);
  await collect(tinyRecipe(folder, { max_steps: 1, warmup_steps: 0 }));
  assert.ok(!existsSync(join(folder, "out/runs")));
});

test("a resumed run that asks for TensorBoard later shows the steps before, too", async () => {
  const folder = makeFolder();
  const recipe = tinyRecipe(folder, { max_steps: 4, save_strategy: "steps", save_steps: 2 });
  await collect(recipe);
  await collect({ ...recipe, report_to: "all", resume_from_checkpoint: join(folder, "out/checkpoint-2") });
  const [run] = readdirSync(join(folder, "out/runs"));
  const steps = readBoard(join(folder, "out/runs", run!))["train/loss"]!.map(([step]) => step);
  assert.deepEqual(steps, [1, 2, 3, 4]);
});
