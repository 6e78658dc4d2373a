/** Times optimizer steps on random tokens, all supervised, as peft_step.py does. Prints one JSON line. */
import { parseArgs } from "node:util";
import { fastestCompute, loadEngine } from "../src/engine/load.js";
import { measureLimits } from "./kernels.js";
import { median } from "./results.js";
import { timeTraining, trainingOptions, trainingWork } from "./training.js";

const { values } = parseArgs({ options: trainingOptions });
const engine = loadEngine();
const work = trainingWork(values, fastestCompute(engine.info()));
const { stepSeconds, tokens, peakBytes, cost } = await timeTraining(engine, work);
const seconds = median(stepSeconds.slice(1)); // the first one fills the caches of the allocator
const flopsPerSecond = cost.flops / seconds;
const limits = await measureLimits(engine, work.compute);
console.log(
  JSON.stringify({
    compute: work.compute,
    step_s: seconds,
    first_step_s: stepSeconds[0],
    tokens_per_second: tokens / seconds,
    peak_rss_gb: peakBytes / 1e9,
    gflop_per_token: cost.flops / tokens / 1e9,
    gflop_per_second: flopsPerSecond / 1e9,
    share: flopsPerSecond / limits.flops,
  }),
);
