/** Ten steps of GRPO and RLOO beside TRL, on the same answers with the same rewards: losses, gradient norms and divergences. */
import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import { temporaryFolder } from "../../src/io/testing/folders.js";
import type { Task } from "../../src/objectives/objective.js";
import { GrpoConfig, grpoTask } from "../../src/objectives/rl/grpo/grpo.js";
import { RlooConfig, rlooTask } from "../../src/objectives/rl/rloo/rloo.js";
import { Sampling } from "../../src/objectives/rl/settings.js";
import type { Reward } from "../../src/rewards/reward.js";
import type { StepEvent } from "../../src/runs/events.js";
import { byteTokenizer } from "../../src/text/tokenizer/byte-tokenizer.js";
import { noProgress, train } from "../../src/train/loop.js";
import { StepPlan } from "../../src/train/step-plan.js";
import { full } from "../../src/tuners/full/full.js";
import { runPython, skipWithoutPeers } from "../support/peers.js";
import { lowTokens, promptRows, rlTrainee } from "../support/rl.js";
import { tinyLlama } from "../support/tiny-llama.js";

interface Given {
  readonly prompt: number[];
  readonly answer: number[];
  readonly reward: number;
}

const learningRate = 1e-4;
const sampling = Sampling.parse({ max_new_tokens: 12, temperature: 0.9 });
const cases: [stage: "grpo" | "rloo", settings: Record<string, unknown>][] = [
  ["grpo", { num_generations: 4, num_iterations: 2, beta: 0.2, loss_type: "dapo" }],
  ["grpo", { num_generations: 4, num_iterations: 2, beta: 0.2, loss_type: "grpo", scale_rewards: "batch", epsilon_high: 0.28 }],
  [
    "grpo",
    { num_generations: 4, num_iterations: 2, loss_type: "dr_grpo", scale_rewards: "none", mask_truncated_completions: true },
  ],
  ["grpo", { num_generations: 4, num_iterations: 2, loss_type: "gspo", epsilon: 3e-4, epsilon_high: 4e-4 }],
  ["grpo", { num_generations: 4, num_iterations: 2, loss_type: "cispo", epsilon_high: 5 }],
  ["grpo", { num_generations: 4, num_iterations: 2, loss_type: "sapo", beta: 0.1 }],
  ["rloo", { num_generations: 4, num_iterations: 2, beta: 0.05 }],
  ["rloo", { num_generations: 4, beta: 0.05, normalize_advantages: true }],
];

for (const [stage, settings] of cases)
  test(`ten steps beside TRL: ${stage} ${JSON.stringify(settings)}`, { skip: skipWithoutPeers }, async (t) => {
    const rounds: Given[][] = [];
    const recording: Reward = {
      ...lowTokens,
      async score(samples, at) {
        const rewards = (await lowTokens.score(samples, at)) as number[];
        rounds.push(
          samples.map(({ prompt, answerIds }, i) => ({ prompt: [...prompt], answer: [...answerIds], reward: rewards[i]! })),
        );
        return rewards;
      },
    };
    const judges = { tokenizer: byteTokenizer(), rewards: [recording], warn() {} };
    const task = (stage === "grpo"
      ? grpoTask({ ...GrpoConfig.parse(settings), ...sampling }, judges)
      : rlooTask({ ...RlooConfig.parse(settings), ...sampling }, judges)) as unknown as Task;
    const trainee = await rlTrainee(task, full.bind({}));
    const steps: StepEvent[] = [];
    for await (const event of train({
      ...{ trainee, task, trainRows: promptRows(6), evalRows: [], progress: noProgress(), save: async () => "" },
      plan: new StepPlan(
        () => [
          [0, 1, 2],
          [3, 4, 5],
        ],
        {
          ...{ accumulationSteps: 1, epochs: 1, maxSteps: 10, stepsPerRound: task.stepsPerRound },
        },
      ),
      settings: {
        ...{ learningRate, schedule: "constant", warmupSteps: 0, maxGradNorm: 1, seed: 3 },
        ...{ evalSteps: 0, saveSteps: 0, evalBatchSize: 1 },
      },
      signal: new AbortController().signal,
    }))
      if (event.type === "step") steps.push(event);
    trainee.dispose();

    const folder = temporaryFolder(t);
    const { loss_type, ...others } = settings;
    const theirs = {
      ...others,
      ...(loss_type === "gspo"
        ? { loss_type: "grpo", importance_sampling_level: "sequence" }
        : loss_type !== undefined && { loss_type }),
      ...{ learning_rate: learningRate, temperature: sampling.temperature, max_completion_length: sampling.max_new_tokens },
    };
    writeFileSync(join(folder, "rounds.json"), JSON.stringify(rounds));
    writeFileSync(join(folder, "settings.json"), JSON.stringify(theirs));
    const files = ["--rounds", join(folder, "rounds.json"), "--settings", join(folder, "settings.json")];
    const printed = runPython("trl_policy.py", ["--model", join(tinyLlama, "tied"), "--stage", stage, ...files]);
    const trl = JSON.parse(printed.trim().split("\n").at(-1)!) as {
      readonly trl: string;
      readonly loss: readonly number[];
      readonly grad_norm: readonly number[];
    };
    assert.match(trl.trl, /^1\.16/);
    assert.equal(steps.length, 10);
    for (const [i, { loss, gradNorm }] of steps.entries()) {
      assert.ok(Math.abs(loss - trl.loss[i]!) <= 1e-4, `step ${i + 1}: loss ${loss}, TRL ${trl.loss[i]}`);
      assert.ok(
        Math.abs(gradNorm - trl.grad_norm[i]!) <= 1e-4 * Math.max(1, gradNorm),
        `step ${i + 1}: gradient norm ${gradNorm}, TRL ${trl.grad_norm[i]}`,
      );
    }
  });
