/** Reward models against TRL 1.16's RewardTrainer, and their files in transformers and PEFT. */
import assert from "node:assert/strict";
import { mkdtempSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test from "node:test";
import { Rng } from "../../src/core/rng.js";
import { openModelFolder } from "../../src/io/hf-folder.js";
import { rewardConfig } from "../../src/models/classes.js";
import { loadModel } from "../../src/models/load.js";
import { RmConfig, type RmRow, rmTask } from "../../src/objectives/rm/rm.js";
import { openScorer, scoreAnswers } from "../../src/rewards/reward-model.js";
import { full } from "../../src/tuners/full/full.js";
import { device } from "../support/gradient-check.js";
import { runPython, skipWithoutPeers } from "../support/peers.js";
import { collect, tinyRecipe } from "../support/run.js";
import { tinyLlama } from "../support/tiny-llama.js";
import { trainSteps } from "../support/train-steps.js";

const skip = skipWithoutPeers;
const base = join(tinyLlama, "tied");
const newFolder = () => mkdtempSync(join(tmpdir(), "attune-rm-"));

const [batch, pad, center, learningRate] = [2, 3, 0.02, 2e-3];
const rng = new Rng(11);
const someIds = (count: number) => Int32Array.from({ length: count }, () => 10 + rng.below(240)); // never the pad token
const rows = Array.from({ length: 20 }, (_, i): RmRow => {
  const [prompt, chosen, rejected] = [someIds(2 + rng.below(6)), someIds(1 + rng.below(9)), someIds(1 + rng.below(9))];
  const tokens = prompt.length + chosen.length + rejected.length;
  return { where: `row ${i}`, tokens, prompt, chosen, rejected, margin: (i % 3) / 4, formatting: [0, 0] };
});

function writeRows(folder: string): string {
  const path = join(folder, "rows.json");
  const whole = rows.map(({ prompt, chosen, rejected, margin }) => ({
    chosen_ids: [...prompt, ...chosen],
    rejected_ids: [...prompt, ...rejected],
    margin,
  }));
  writeFileSync(path, JSON.stringify({ rows: whole, batch, pad, center, learning_rate: learningRate }));
  return path;
}

const lastLine = (text: string) => JSON.parse(text.trim().split("\n").at(-1)!) as unknown;

test("ten steps are those of TRL 1.16's RewardTrainer: loss, gradient norm, accuracy, margin and rewards", {
  skip,
  timeout: 600_000,
}, async () => {
  const folder = newFolder();
  const start = join(folder, "start");
  const printed = runPython("trl_reward.py", ["train", "--model", base, "--rows", writeRows(folder), "--out", start]);
  const { trl, steps } = lastLine(printed) as { trl: string; steps: Record<string, number>[] };
  assert.match(trl, /^1\.16\./);
  const files = await openModelFolder(start);
  const model = await loadModel(device, { ...files, config: rewardConfig(files.config) });
  full.bind({}).apply(model, new Rng(0));
  const task = rmTask(RmConfig.parse({ center_rewards_coefficient: center }), rewardConfig(files.config), rows);
  const batches = Array.from({ length: 10 }, (_, i) => [2 * i, 2 * i + 1]);
  const settings = {
    learning_rate: learningRate,
    schedule: "constant",
    warmup_steps: 0,
    weight_decay: 0,
    max_grad_norm: 1,
  } as const;
  const events = await trainSteps(model, rows, batches, 1, settings, task);
  assert.equal(events.length, 10);
  assert.equal(steps.length, 10);
  for (const [i, { loss, gradNorm, metrics }] of events.entries()) {
    const theirs = steps[i]!;
    const ours = { ...metrics, loss, grad_norm: gradNorm } as Record<string, number>;
    for (const key of ["loss", "accuracy", "margin", "min_reward", "mean_reward", "max_reward", "grad_norm"])
      assert.ok(
        Math.abs(ours[key]! - theirs[key]!) <= 1e-4 * Math.max(1, Math.abs(theirs[key]!)),
        `step ${i + 1}: ${key} is ${ours[key]}, TRL's ${theirs[key]}`,
      );
  }
  model.dispose();
});

for (const name of ["lora", "full"])
  test(`${name}: a reward model of a run is a sequence classifier of one output for transformers and PEFT, with the same scores`, {
    skip,
    timeout: 600_000,
  }, async () => {
    const folder = newFolder();
    const data = join(folder, "pairs.jsonl");
    const pairs = Array.from({ length: 12 }, (_, i) => ({ prompt: `q${i}`, chosen: `yes ${i}!`, rejected: `no ${i}` }));
    writeFileSync(data, pairs.map((row) => JSON.stringify(row)).join("\n"));
    await collect(
      tinyRecipe(folder, {
        ...{ stage: "rm", dataset: [data], packing: false, finetuning_type: name, lora_dropout: undefined, learning_rate: 3e-3 },
      }),
    );
    const out = join(folder, "out");
    const args = name === "full" ? ["--model", out] : ["--model", base, "--adapter", out];
    const theirs = lastLine(runPython("trl_reward.py", ["scores", ...args, "--rows", writeRows(folder)])) as number[][];
    const scorer = await openScorer(device, await openModelFolder(name === "full" ? out : base), {
      adapter: name === "full" ? null : out,
    });
    const answers = rows.flatMap(({ prompt, chosen, rejected }) => [chosen, rejected].map((answer) => ({ prompt, answer })));
    const ours = await scoreAnswers(scorer, answers, new AbortController().signal, (_, what) => new Error(what));
    for (const [i, score] of theirs.flat().entries())
      assert.ok(Math.abs(ours[i]! - score) < 1e-4, `${i}: ${ours[i]}, theirs ${score}`);
    scorer.base.dispose();
  });
