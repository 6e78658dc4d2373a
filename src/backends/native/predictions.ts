import { join } from "node:path";
import { performance } from "node:perf_hooks";
import { ConfigError } from "../../errors.js";
import { predict } from "../../evaluate/predict.js";
import { greedy, type SamplingOptions } from "../../generate/sampling.js";
import { writeFileAtomic } from "../../io/disk.js";
import type { Question } from "../../objectives/objective.js";
import type { Recipe } from "../../recipe/schema.js";
import { loadJieba, meanScores, scoresOf } from "../../text/text-scores.js";
import type { SharedBase } from "../../tuners/shared-base.js";
import type { RunData } from "./run-data.js";

/** What is asked in held-out rows. Throws ConfigError if the recipe wants answers and the rows have no questions. */
export function questionsOf(recipe: Recipe, { task, evalRows }: RunData): Question[] {
  if (!recipe.do_predict) return [];
  if (task.question === undefined) throw new ConfigError(`do_predict: stage ${recipe.stage} learns no answers: remove it`);
  const questions = evalRows.flatMap((row) => task.question!(row) ?? []);
  if (questions.length === 0) throw new ConfigError("do_predict: no held-out row has a question and its answer");
  return questions;
}

/**
 * Answers the questions, writes generated_predictions.jsonl, and returns the numbers of predict_results.json, under LLaMA-Factory's names. Null if the
 * signal ended it; nothing is written then. Throws NoSpaceError.
 */
export async function writePredictions(
  recipe: Recipe,
  { base, name, signal, onProgress }: PredictionWork,
  { tokenizer }: RunData,
  questions: readonly Question[],
): Promise<Readonly<Record<string, number>> | null> {
  const startedMs = performance.now();
  const { max_new_tokens: maxNewTokens, seed } = recipe;
  const options = { maxNewTokens, sampling: samplingOf(recipe), seed, signal, onProgress };
  const predictions = await predict(base, name, tokenizer, questions, options);
  if (predictions === null) return null;
  const lines = predictions.map((prediction) => `${JSON.stringify(prediction)}\n`);
  await writeFileAtomic(join(recipe.output_dir, "generated_predictions.jsonl"), lines.join(""));
  const cut = await loadJieba();
  const scores = meanScores(predictions.map(({ predict, label }) => scoresOf(predict, label, cut)));
  const seconds = (performance.now() - startedMs) / 1000;
  return {
    ...Object.fromEntries(Object.entries(scores).map(([key, value]) => [`predict_${key}`, value])),
    predict_runtime: seconds,
    predict_samples_per_second: predictions.length / seconds,
    predict_samples: predictions.length,
  };
}

export interface PredictionWork {
  readonly base: SharedBase;
  /** Who answers: null for the base alone. */
  readonly name: string | null;
  readonly signal: AbortSignal;
  readonly onProgress: (answers: number) => void;
}

function samplingOf({ do_sample, temperature, top_p, top_k, repetition_penalty }: Recipe): SamplingOptions {
  const drawn = do_sample ? { temperature, topP: top_p, topK: top_k } : greedy;
  return { ...greedy, ...drawn, repetitionPenalty: repetition_penalty };
}
