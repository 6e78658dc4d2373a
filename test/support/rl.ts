import { join } from "node:path";
import { Rng } from "../../src/core/rng.js";
import type { PromptRow } from "../../src/data/prompt-rows.js";
import { openModelFolder } from "../../src/io/hf-folder.js";
import type { Task } from "../../src/objectives/objective.js";
import type { Reward } from "../../src/rewards/reward.js";
import { assemble, type Trainee } from "../../src/train/assemble.js";
import { lora } from "../../src/tuners/lora/lora.js";
import type { Tuning } from "../../src/tuners/tuner.js";
import { device } from "./gradient-check.js";
import { partsOf } from "./parts.js";
import { tinyLlama } from "./tiny-llama.js";

/** Prompts of different lengths for a model that has a token for each byte. */
export function promptRows(count: number): PromptRow[] {
  return Array.from({ length: count }, (_, i) => {
    const prompt = Int32Array.from({ length: 3 + (i % 4) }, (_, t) => 97 + ((5 * i + 3 * t) % 26));
    return { where: `row ${i}`, tokens: prompt.length, prompt, messages: [], columns: { i } };
  });
}

/** The share of tokens below 128: of a model that knows nothing, about a half. */
export const lowTokens: Reward = {
  name: "low",
  weight: 1,
  score: async (samples) =>
    samples.map(({ answerIds }) => answerIds.reduce((sum, id) => sum + (id < 128 ? 1 : 0), 0) / answerIds.length),
};

export const loraOf = (settings: object = {}) => lora.bind(lora.config.parse(settings));

/** A tiny model under a method, as a run would put it together for a task. */
export async function rlTrainee(
  task: Pick<Task, "usesBase" | "valueHead">,
  tuning: Tuning = loraOf(),
  seed = 0,
): Promise<Trainee> {
  const files = await openModelFolder(join(tinyLlama, "tied"));
  const parts = { ...partsOf(files, tuning), seed, keepsBase: task.usesBase === true, hasValueHead: task.valueHead === true };
  const start = { rng: new Rng(0), encode: () => Int32Array.of(1, 2, 3) };
  return assemble(device, parts, { weightsFrom: null, start, hasNewHead: false });
}
