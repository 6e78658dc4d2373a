/** Ten steps of preference training side by side with TRL's own trainers, on the same ids in the same order, from the same LoRA. */
import assert from "node:assert/strict";
import { mkdtempSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test from "node:test";
import { Rng } from "../../src/core/rng.js";
import type { Row } from "../../src/data/example.js";
import type { PairRow, UnpairedRow } from "../../src/data/preference-rows.js";
import { openModelFolder } from "../../src/io/hf-folder.js";
import type { Task } from "../../src/objectives/objective.js";
import { dpoTask } from "../../src/objectives/preference/dpo.js";
import { DpoConfig } from "../../src/objectives/preference/dpo-config.js";
import { KtoConfig, ktoTask } from "../../src/objectives/preference/kto.js";
import { assemble, trainedName } from "../../src/train/assemble.js";
import { runStep } from "../../src/train/step.js";
import { lora } from "../../src/tuners/lora/lora.js";
import { saveTuned } from "../../src/tuners/tuned-files.js";
import { device } from "../support/gradient-check.js";
import { partsOf } from "../support/parts.js";
import { runPython, skipWithoutPeers } from "../support/peers.js";
import { loadTinyLlama, tinyLlama } from "../support/tiny-llama.js";

const steps = 10;
const batch = 4;
const learningRate = 2e-3;
const model = join(tinyLlama, "tied");
const tuning = lora.bind(lora.config.parse({}));

const rng = new Rng(9);
const idsOf = (length: number) => Int32Array.from({ length }, () => 3 + rng.below(250));
const pairRows = Array.from({ length: steps * batch }, (_, i): PairRow => {
  const [prompt, chosen, rejected] = [idsOf(2 + rng.below(10)), idsOf(1 + rng.below(12)), idsOf(1 + rng.below(12))];
  return { where: `row ${i}`, tokens: prompt.length + chosen.length + rejected.length, prompt, chosen, rejected };
});
const unpairedRows = pairRows.map(({ where, prompt, chosen }): UnpairedRow => {
  return { where, tokens: prompt.length + chosen.length, prompt, answer: chosen, isGood: rng.below(2) === 1 };
});

/** An adapter to begin from, in PEFT's format. */
async function writeStart(folder: string): Promise<string> {
  const { model: tiny, files } = await loadTinyLlama("tied");
  tuning.apply(tiny, new Rng(1));
  await saveTuned(folder, tiny, tuning, { name: model, config: files.config });
  tiny.dispose();
  return folder;
}

interface Case {
  readonly name: string;
  readonly stage: "dpo" | "kto" | "orpo" | "cpo";
  readonly trl: Record<string, unknown>;
  readonly task: () => Task;
}
const pairCase = (stage: Case["stage"], trl: Case["trl"], config: Record<string, unknown>): Case => ({
  ...{ name: `${stage} ${JSON.stringify(trl)}`, stage, trl },
  task: () => dpoTask(DpoConfig.parse(config)) as Task,
});
const cases: readonly Case[] = [
  pairCase("dpo", {}, {}),
  pairCase("dpo", { loss_type: ["ipo"], beta: 0.2 }, { pref_loss: "ipo", pref_beta: 0.2 }),
  pairCase(
    "dpo",
    { loss_type: ["sigmoid", "bco_pair", "sft"], loss_weights: [0.8, 0.2, 1] },
    { pref_loss: ["sigmoid", "bco_pair", "sft"], loss_weights: [0.8, 0.2, 1] },
  ),
  pairCase("dpo", { ld_alpha: 0.4 }, { ld_alpha: 0.4 }),
  pairCase("orpo", { beta: 0.3 }, { pref_loss: "orpo", pref_beta: 0.3, orpo_nll: "all_tokens" }),
  pairCase("cpo", {}, { pref_loss: "cpo" }),
  pairCase("cpo", { loss_type: "simpo", cpo_alpha: 0, beta: 2, simpo_gamma: 0.5 }, { pref_loss: "simpo", pref_beta: 2 }),
  {
    name: "kto",
    stage: "kto",
    trl: { desirable_weight: 1.2 },
    task: () => ktoTask(KtoConfig.parse({ kto_chosen_weight: 1.2 })) as Task,
  },
];

for (const { name, stage, trl, task: make } of cases)
  test(`${steps} steps of ${name} follow TRL's losses, gradients and rewards within 1e-4`, {
    skip: skipWithoutPeers,
    timeout: 600_000,
  }, async () => {
    const folder = mkdtempSync(join(tmpdir(), "attune-parity-"));
    const start = await writeStart(join(folder, "start"));
    const rows: readonly Row[] = stage === "kto" ? unpairedRows : pairRows;
    const plain = (row: PairRow | UnpairedRow) =>
      "isGood" in row
        ? { prompt: [...row.prompt], answer: [...row.answer], label: row.isGood }
        : { prompt: [...row.prompt], chosen: [...row.chosen], rejected: [...row.rejected] };
    writeFileSync(join(folder, "rows.json"), JSON.stringify((rows as readonly (PairRow | UnpairedRow)[]).map(plain)));
    const args = [
      "--model",
      model,
      "--adapter",
      start,
      "--rows",
      join(folder, "rows.json"),
      "--stage",
      stage,
      "--config",
      JSON.stringify(trl),
    ];
    const printed = runPython("trl_preference.py", [...args, "--batch", String(batch), "--learning-rate", String(learningRate)]);
    const theirs = JSON.parse(printed.trim().split("\n").at(-1)!) as {
      trl: string;
      loss: number[];
      grad_norm: number[];
      metrics: Record<string, number>[];
    };
    assert.match(theirs.trl, /^1\.16/);

    const task = make();
    const parts = { ...partsOf(await openModelFolder(model), tuning), keepsBase: task.usesBase === true };
    const begin = { rng: new Rng(0), encode: () => Int32Array.of(1) };
    const trainee = await assemble(device, parts, { weightsFrom: start, start: begin, hasNewHead: false });
    let worst = 0;
    const near = (ours: number, other: number, what: string) => {
      const difference = Math.abs(ours - other) / Math.max(1, Math.abs(other));
      worst = Math.max(worst, difference);
      assert.ok(difference < 1e-4, `${what}: ${ours}, TRL ${other}`);
    };
    for (let step = 0; step < steps; step++) {
      const part = rows.slice(step * batch, (step + 1) * batch);
      const at = {
        round: step,
        step,
        batchSizes: [batch],
        policy: trainedName,
        rng: new Rng(1),
        signal: new AbortController().signal,
      };
      const experience = await task.rollOut?.(part, at, trainee.base);
      const settings = { step, seed: 0, learningRate, peakLearningRate: learningRate, maxGradNorm: 1 };
      const { loss, gradNorm, metrics } = await runStep(trainee, task, experience?.steps[0] ?? [part], settings);
      near(loss, theirs.loss[step]!, `step ${step + 1}: loss`);
      near(gradNorm, theirs.grad_norm[step]!, `step ${step + 1}: gradient norm`);
      const ours = { ...metrics, kl: experience?.metrics?.kl?.sum } as Record<string, number>;
      for (const key of ["rewards/chosen", "rewards/rejected", "rewards/accuracies", "kl"])
        if (key in theirs.metrics[step]! && ours[key] !== undefined)
          near(ours[key], theirs.metrics[step]![key]!, `step ${step + 1}: ${key}`);
    }
    console.log(`${name}: largest difference over ${steps} steps: ${worst.toExponential(1)}`);
    trainee.dispose();
  });
