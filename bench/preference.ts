/**
 * Times DPO steps on the very pairs that TRL trained on, in its order, cut as it cut them: `bench/peers/trl_dpo.py --dump FILE` writes them. Prints one
 * JSON line with its names.
 *
 *   VENV/bin/python bench/peers/trl_dpo.py --model SMOLLM2_FOLDER --data dpo_en_demo.json --max-length 512 --steps 4 --dtype bf16 --dump pairs-512.jsonl
 *   node dist/bench/preference.js --model SMOLLM2_FOLDER --pairs pairs-512.jsonl
 */
import { readFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { estimateStep } from "../src/advise/estimate.js";
import type { PairRow } from "../src/data/preference-rows.js";
import { fastestCompute, loadEngine } from "../src/engine/load.js";
import { ConfigError } from "../src/errors.js";
import { dpoTask } from "../src/objectives/preference/dpo.js";
import { DpoConfig } from "../src/objectives/preference/dpo-config.js";
import { measureLimits } from "./kernels.js";
import { partsOf, timeSteps, trainingOptions, trainingWork } from "./training.js";

const { values } = parseArgs({
  options: {
    ...trainingOptions,
    pairs: { type: "string" },
    /** What the reference says is computed before the first step, as with `precompute_ref_log_probs`. */
    cached: { type: "boolean", default: false },
  },
});
if (values.pairs === undefined) throw new ConfigError("--pairs is missing: what trl_dpo.py --dump wrote");
const engine = loadEngine();
const work = trainingWork(values, fastestCompute(engine.info()));

const rows = readFileSync(values.pairs, "utf8")
  .trimEnd()
  .split("\n")
  .map((line, i): PairRow => {
    const { prompt, chosen, rejected } = JSON.parse(line) as Record<"prompt" | "chosen" | "rejected", number[]>;
    const ids = { prompt: Int32Array.from(prompt), chosen: Int32Array.from(chosen), rejected: Int32Array.from(rejected) };
    return { where: `pair ${i + 1}`, tokens: prompt.length + chosen.length + rejected.length, ...ids };
  });
const zeros = ({ chosen, rejected }: PairRow) => [chosen, rejected].map(({ length }) => new Float32Array(length));
const steps = Array.from({ length: Math.floor(rows.length / work.rows) }, (_, step) => [
  Array.from({ length: work.rows }, (_, i) => step * work.rows + i),
]);
if (steps.length < 2)
  throw new ConfigError(`--pairs: expected pairs for two steps of ${work.rows} or more; the first one only warms up`);

const task = dpoTask(DpoConfig.parse({}));
const parts = await partsOf(work);
const { events, trainee, peakBytes } = await timeSteps(engine, {
  ...{ parts, compute: work.compute, task, rows, steps, learningRate: 5e-6, schedule: "linear" },
  ...(values.cached && {
    prepare: async ({ base }) =>
      await task.keepReference!(rows, (body) => base.withReference(body), {
        signal: new AbortController().signal,
        onRows: () => {},
      }),
  }),
});
trainee.dispose();

const timed = events.slice(1);
const timedRows = steps
  .slice(1)
  .flat(2)
  .map((row) => rows[row]!);
const seconds = timed.reduce((sum, { tokens, tokensPerSecond }) => sum + tokens / tokensPerSecond, 0);
let flops = 0;
for (const [batch] of steps.slice(1)) {
  const shapes = batch!.map((row) => ({ ...rows[row]!, ...(values.cached && { reference: zeros(rows[row]!) }) }));
  flops += (await estimateStep({ ...{ parts, task, rows: shapes }, accumulationSteps: 1, evalRows: [], compute: work.compute }))
    .flops;
}
const limits = await measureLimits(engine, work.compute);
console.log(
  JSON.stringify({
    ...{ compute: work.compute, batch: work.rows, cached: values.cached, pairs: timedRows.length },
    step_s: seconds / timed.length,
    pairs_per_second: timedRows.length / seconds,
    scored_tokens_per_second: timedRows.reduce((sum, { chosen, rejected }) => sum + chosen.length + rejected.length, 0) / seconds,
    peak_rss_gb: peakBytes / 1e9,
    gflop_per_pair: flops / timedRows.length / 1e9,
    gflop_per_second: flops / seconds / 1e9,
    share: flops / seconds / limits.flops,
    losses: events.map(({ loss }) => Number(loss.toFixed(4))),
  }),
);
