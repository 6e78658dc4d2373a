/**
 * Times GRPO's rounds, roll-out and update, on the prompts that TRL answered, in its order: `bench/peers/trl_grpo.py --dump FILE` writes them. Both draw
 * answers of their own. Prints one JSON line with its names.
 *
 *   VENV/bin/python bench/peers/trl_grpo.py --model SMOLLM2_FOLDER --data alpaca_en_demo.json --steps 4 --dtype bf16 --dump prompts.jsonl
 *   node dist/bench/policy.js --model SMOLLM2_FOLDER --prompts prompts.jsonl
 */
import { readFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { estimateStep } from "../src/advise/estimate.js";
import { Rng } from "../src/core/rng.js";
import { type Cost, SymbolicDevice } from "../src/core/symbolic.js";
import { fastestCompute, loadEngine } from "../src/engine/load.js";
import { ConfigError } from "../src/errors.js";
import { GrpoConfig, grpoTask } from "../src/objectives/rl/grpo/grpo.js";
import { Sampling } from "../src/objectives/rl/settings.js";
import type { Reward } from "../src/rewards/reward.js";
import { loadTokenizer } from "../src/text/load-tokenizer.js";
import { sketch, trainedName } from "../src/train/assemble.js";
import { measureLimits } from "./kernels.js";
import { partsOf, timeSteps, trainingOptions, trainingWork } from "./training.js";

const { values } = parseArgs({
  options: {
    ...trainingOptions,
    rows: { type: "string", default: "2" },
    prompts: { type: "string" },
    generations: { type: "string", default: "8" },
    "new-tokens": { type: "string", default: "64" },
    beta: { type: "string", default: "0.04" },
  },
});
if (values.prompts === undefined) throw new ConfigError("--prompts is missing: what trl_grpo.py --dump wrote");
const engine = loadEngine();
const work = trainingWork(values, fastestCompute(engine.info()));
const parts = await partsOf(work);

const nearFortyWords: Reward = {
  name: "near_forty_words",
  weight: 1,
  score: async (samples) =>
    samples.map(({ answer }) => -Math.abs(answer.split(/\s+/).filter((word) => word !== "").length - 40) / 40),
};
const config = {
  ...GrpoConfig.parse({ num_generations: Number(values.generations), beta: Number(values.beta) }),
  ...Sampling.parse({ max_new_tokens: Number(values["new-tokens"]) }),
};
const tokenizer = await loadTokenizer(parts.files);
const task = grpoTask(config, { tokenizer, rewards: [nearFortyWords], warn: console.error });

const prompts = readFileSync(values.prompts, "utf8")
  .trimEnd()
  .split("\n")
  .map((line, i) => {
    const prompt = Int32Array.from((JSON.parse(line) as { prompt: number[] }).prompt);
    return { where: `prompt ${i + 1}`, tokens: prompt.length, prompt, messages: [], columns: {} };
  });
const steps = Array.from({ length: Math.floor(prompts.length / work.rows) }, (_, step) => [
  Array.from({ length: work.rows }, (_, i) => step * work.rows + i),
]);
if (steps.length < 2)
  throw new ConfigError(`--prompts: expected those of two steps of ${work.rows} or more; the first one only warms up`);

const rounds: {
  readonly rolloutSeconds: number;
  readonly rows: Awaited<ReturnType<NonNullable<typeof task.rollOut>>>["steps"][0][0];
}[] = [];
const { events, trainee, peakBytes } = await timeSteps(engine, {
  ...{ parts, compute: work.compute, rows: prompts, steps, learningRate: 1e-5, schedule: "linear" },
  task: {
    ...task,
    async rollOut(rows, at, base) {
      const startMs = performance.now();
      const round = await task.rollOut!(rows, at, base);
      rounds.push({ rolloutSeconds: (performance.now() - startMs) / 1000, rows: round.steps[0]![0]! });
      return round;
    },
  },
});
trainee.dispose();

const timed = rounds.slice(1);
const seconds = (events.at(-1)!.elapsedMs - events[0]!.elapsedMs) / 1000;
const rolloutSeconds = timed.reduce((sum, round) => sum + round.rolloutSeconds, 0);
const answers = timed.flatMap(({ rows }) => rows.flatMap((row) => row.answers!));
const tokens = answers.reduce((sum, { ids }) => sum + ids.length, 0);
let updateFlops = 0;
for (const { rows } of timed)
  updateFlops += (await estimateStep({ ...{ parts, task, rows }, accumulationSteps: 1, evalRows: [], compute: work.compute }))
    .flops;
const limits = await measureLimits(engine, work.compute);
const longest = await rollOutCost();
const longestSeconds = Math.max(longest.flops / limits.flops, longest.bytesMoved / limits.bytesPerSecond);
const possibleRolloutSeconds = (longestSeconds * tokens) / (work.rows * config.num_generations * config.max_new_tokens);
console.log(
  JSON.stringify({
    ...{ compute: work.compute, prompts: work.rows, generations: config.num_generations, new_tokens: config.max_new_tokens },
    step_s: seconds / timed.length,
    rollout_s: rolloutSeconds / timed.length,
    update_s: (seconds - rolloutSeconds) / timed.length,
    completions_per_second: answers.length / seconds,
    completion_tokens: tokens,
    completion_tokens_per_second: tokens / seconds,
    peak_rss_gb: peakBytes / 1e9,
    update_gflop: updateFlops / timed.length / 1e9,
    update_share: updateFlops / (seconds - rolloutSeconds) / limits.flops,
    rollout_share: possibleRolloutSeconds / rolloutSeconds,
    rewards: events.map(({ metrics }) => Number(Number(metrics?.reward).toFixed(3))),
  }),
);

/** Of a roll-out whose answers are all as long as they may be. */
async function rollOutCost(): Promise<Cost> {
  const device = new SymbolicDevice(work.compute);
  const { base } = sketch(device, parts);
  device.reset();
  const at = { round: 0, step: 0, batchSizes: [work.rows], policy: trainedName };
  await task.rollOut!(prompts.slice(0, work.rows), { ...at, rng: new Rng(0), signal: new AbortController().signal }, base);
  return device.cost;
}
