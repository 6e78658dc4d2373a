import { createHash } from "node:crypto";
import { BatchPlan } from "../data/batches.js";
import { loadDataset, splitHoldout, tokenizeDataset } from "../data/dataset.js";
import type { Example } from "../data/example.js";
import { ConfigError } from "../errors.js";
import type { ModelFiles } from "../io/model-files.js";
import type { Recipe } from "../recipe/schema.js";
import { loadTokenizer } from "../text/load-tokenizer.js";
import type { ChatFormat } from "../text/supervised.js";
import { chooseTemplate } from "../text/templates.js";
import { StepPlan } from "../train/step-plan.js";

/** What a recipe trains on, ready for the loop. */
export interface RunData {
  readonly chat: ChatFormat;
  readonly trainRows: readonly Example[];
  readonly evalRows: readonly Example[];
  readonly plan: StepPlan;
  /** The micro-batch that needs the most memory. */
  readonly largestBatch: readonly Example[];
  /** Hash of rows, their order and what a step is made of. */
  readonly identity: string;
}

/**
 * Reads, renders and tokenizes the data of a recipe, splits it, and plans every step. `now` is the date that templates see; `warn` gets what
 * the user should know. Throws DataError, ConfigError.
 */
export async function prepareData(
  recipe: Recipe,
  files: ModelFiles,
  now: Date,
  warn: (message: string) => void,
): Promise<RunData> {
  const tokenizer = await loadTokenizer(files);
  const { template, notices } = chooseTemplate(tokenizer, { name: recipe.template ?? undefined, now });
  for (const message of [...tokenizer.notices, ...notices]) warn(message);
  const chat: ChatFormat = { tokenizer, template };
  const rowsOf = async (dataset: readonly string[]) => {
    const loaded = await loadDataset({
      dataset,
      datasetDir: recipe.dataset_dir,
      onBadRow: recipe.on_bad_record,
      ...(recipe.max_samples === null ? {} : { maxSamples: recipe.max_samples }),
    });
    const { examples, report } = await tokenizeDataset(loaded.conversations, chat, {
      cutoffLen: recipe.cutoff_len,
      trainOnPrompt: recipe.train_on_prompt,
      maskHistory: recipe.mask_history,
    });
    for (const message of [...loaded.notices, ...report.notices]) warn(message);
    return examples;
  };
  const all = await rowsOf(recipe.dataset);
  const { train: trainRows, heldOut: evalRows } =
    recipe.eval_dataset === null
      ? splitHoldout(all, recipe.val_size, recipe.seed)
      : { train: all, heldOut: await rowsOf(recipe.eval_dataset) };
  if (trainRows.length === 0) throw new ConfigError("no rows are left to train on: lower val_size or give more data");

  const shape = {
    batchSize: recipe.per_device_train_batch_size,
    packing: recipe.packing,
    cutoffLen: recipe.cutoff_len,
    seed: recipe.seed,
  };
  const batches = new BatchPlan(
    trainRows.map(({ ids }) => ids.length),
    shape,
  );
  const plan = new StepPlan((epoch) => batches.epoch(epoch), {
    accumulationSteps: recipe.gradient_accumulation_steps,
    epochs: recipe.num_train_epochs,
    maxSteps: recipe.max_steps,
  });

  const identity = createHash("sha256");
  for (const { ids, supervised } of trainRows) identity.update(ids).update(supervised);
  const meaning = { ...shape, accumulation: recipe.gradient_accumulation_steps, tuner: recipe.tuner, stage: recipe.stage };
  identity.update(JSON.stringify([meaning, recipe.finetuning_type, files.fingerprint]));
  return {
    chat,
    trainRows,
    evalRows,
    plan,
    largestBatch: largestBatch(trainRows, shape.batchSize, shape.packing ? batches : null),
    identity: identity.digest("hex"),
  };
}

/**
 * The micro-batch that needs the most memory: the longest rows together, which a shuffle may bring about; or, packed, the fullest bins of an
 * epoch, which all epochs fill alike.
 */
function largestBatch(rows: readonly Example[], batchSize: number, packed: BatchPlan | null): Example[] {
  const tokensOf = (batch: readonly Example[]) => batch.reduce((sum, { ids }) => sum + ids.length, 0);
  if (packed === null) return [...rows].sort((a, b) => b.ids.length - a.ids.length).slice(0, batchSize);
  const batches = packed.epoch(0).map((batch) => batch.map((row) => rows[row]!));
  return batches.reduce((largest, batch) => (tokensOf(batch) > tokensOf(largest) ? batch : largest));
}
