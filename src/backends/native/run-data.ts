import { createHash, type Hash } from "node:crypto";
import type { BatchShape, LargestBatches } from "../../advise/estimate.js";
import { BatchPlan } from "../../data/batches.js";
import { splitHoldout } from "../../data/dataset.js";
import type { Row } from "../../data/example.js";
import { mixRows } from "../../data/mix.js";
import { ConfigError } from "../../errors.js";
import type { ModelFiles } from "../../io/model-files.js";
import type { DataSource, Objective, Task } from "../../objectives/objective.js";
import { type Schedule, schedules } from "../../optim/schedule.js";
import { maxSteps, type Recipe } from "../../recipe/schema.js";
import type { RewardFunctions } from "../../rewards/functions.js";
import type { ChatTemplate } from "../../text/chat-template.js";
import { loadTokenizer } from "../../text/load-tokenizer.js";
import { chooseTemplate } from "../../text/templates.js";
import type { TextFile, Tokenizer } from "../../text/tokenizer/tokenizer.js";
import { StepPlan } from "../../train/step-plan.js";

/** What a recipe trains on, ready for the loop. */
export interface RunData {
  readonly tokenizer: Tokenizer;
  readonly task: Task;
  readonly trainRows: readonly Row[];
  readonly evalRows: readonly Row[];
  readonly plan: StepPlan;
  /** How rows come together, and which batches then need the most memory, as they would in another shape. */
  readonly shape: BatchShape;
  readonly largestBatches: (shape: BatchShape) => LargestBatches;
  /** What has to lie beside the result: the tokenizer, with the chat template if one was used, and what the task adds. */
  readonly files: readonly TextFile[];
  /** Hash of rows, their order and what a step is made of. */
  readonly identity: string;
  /** sha256 of the rows that train, as tokens, in their order, and of those held out. */
  readonly digest: string;
  readonly evalDigest: string;
}

export interface DataRequest {
  readonly recipe: Recipe;
  readonly objective: Objective;
  readonly files: ModelFiles;
  /** Longest row that the model takes. */
  readonly maxTokens: number;
  /** The date that templates see. */
  readonly now: Date;
  readonly rewardFunctions?: RewardFunctions;
  /** Gets what the user should know. */
  readonly warn: (message: string) => void;
}

/** The rows of a recipe as its objective reads them, and what they were read with. */
interface ReadData extends Pick<RunData, "trainRows" | "evalRows"> {
  readonly tokenizer: Tokenizer;
  /** The chat template, if somebody asked for it. */
  readonly template: ChatTemplate | undefined;
  readonly cutoffLen: number;
}

/** Reads the data of a recipe and splits it. Throws DataError, ConfigError. */
export async function readData(request: DataRequest): Promise<ReadData> {
  const { recipe, objective, files, maxTokens, now, rewardFunctions = {}, warn } = request;
  const tokenizer = await loadTokenizer(files);
  for (const message of tokenizer.notices) warn(message);
  let template: ChatTemplate | undefined;
  const cutoffLen = Math.min(recipe.cutoff_len, maxTokens);
  const source: DataSource = {
    files: {
      datasetDir: recipe.dataset_dir,
      onBadRow: recipe.on_bad_record,
      ...(recipe.max_samples === null ? {} : { maxSamples: recipe.max_samples }),
    },
    tokenize: {
      cutoffLen,
      trainOnPrompt: recipe.train_on_prompt,
      maskHistory: recipe.mask_history,
      withoutThoughts: recipe.enable_thinking === false,
      onBadRow: recipe.on_bad_record,
    },
    tokenizer,
    chat() {
      if (template === undefined) {
        const chosen = chooseTemplate(tokenizer, {
          name: recipe.template ?? undefined,
          toolFormat: recipe.tool_format ?? undefined,
          defaultSystem: recipe.default_system ?? undefined,
          enableThinking: recipe.enable_thinking ?? undefined,
          now,
        });
        for (const message of chosen.notices) warn(message);
        template = chosen.template;
      }
      return { tokenizer, template };
    },
    rewardFunctions,
    warn,
  };
  const { trainRows, evalRows } = await readSplit(recipe, objective, source);
  if (template === undefined)
    for (const key of ["template", "tool_format", "train_on_prompt", "mask_history", "default_system"] as const)
      if (recipe[key]) warn(`${key} changes nothing: stage ${objective.name} reads no conversations`);
  if (trainRows.length === 0) throw new ConfigError("no rows are left to train on: lower val_size or give more data");
  return { tokenizer, template, cutoffLen, trainRows, evalRows };
}

/** Reads the data of a recipe, splits it, and plans every step. Throws DataError, ConfigError. */
export async function prepareData(request: DataRequest): Promise<RunData> {
  const { recipe, objective, files, rewardFunctions = {}, warn } = request;
  const { tokenizer, template, cutoffLen, trainRows, evalRows } = await readData(request);
  const task = objective.task(trainRows, recipe.objective, {
    base: files.config,
    heldOut: evalRows,
    ...{ tokenizer, common: { ...recipe } },
    rewardFunctions,
    warn,
  });

  const { per_device_train_batch_size: batchSize, seed, disable_shuffling: keepsOrder } = recipe;
  const order = { seed, keepsOrder };
  const shape = { batchSize, isPacked: objective.packs ?? recipe.packing, cutoffLen };
  if (recipe.packing && objective.packs === false)
    warn(`packing changes nothing: a batch of stage ${objective.name} is so many rows, which are never padded`);
  const planFor = (rows: readonly Row[], shape: BatchShape) => {
    const batches = batchPlan(rows, shape, order);
    return new StepPlan((epoch) => batches.epoch(epoch), {
      accumulationSteps: recipe.gradient_accumulation_steps * Math.ceil(batchSize / shape.batchSize) * (task.bufferSize ?? 1),
      epochs: recipe.do_train ? recipe.num_train_epochs : 0,
      maxSteps: recipe.do_train ? recipe.max_steps : -1,
      stepsPerRound: task.stepsPerRound,
    });
  };
  const plan = planFor(trainRows, shape);

  const { totalSteps, stepsPerEpoch } = plan;
  if (totalSteps > maxSteps)
    throw new ConfigError(
      `num_train_epochs: ${recipe.num_train_epochs} make ${totalSteps} steps of ${stepsPerEpoch} an epoch; expected at most ${maxSteps} steps`,
    );
  const batchCount = batchPlan(trainRows, shape, order).epoch(0).length;
  if (recipe.gradient_accumulation_steps > batchCount)
    warn(
      `gradient_accumulation_steps is ${recipe.gradient_accumulation_steps}, and an epoch has ${batchCount} batches: each step takes them all`,
    );
  const schedule: Schedule = schedules[recipe.lr_scheduler_type];
  const warmupSteps = warmupStepsOf(recipe, totalSteps);
  if (recipe.do_train && schedule.hasWarmup && recipe.warmup_steps >= totalSteps)
    warn(`warmup_steps is ${recipe.warmup_steps}, and the run has ${totalSteps} steps: the learning rate never reaches its peak`);
  const ofSchedule = schedule.settings.parse(recipe.lr_scheduler_kwargs ?? {});
  const said = schedule.warning?.(ofSchedule, { warmupSteps, totalSteps, learningRate: recipe.learning_rate });
  if (said !== undefined) warn(said);

  const identity = hashOf(trainRows);
  const digest = identity.copy().digest("hex");
  const settings = Object.fromEntries(Object.entries(recipe.objective).filter(([key]) => !objective.measures?.includes(key)));
  const { stage, finetuning_type, gradient_accumulation_steps: accumulation } = recipe;
  const { isPacked: packing } = shape;
  const ordered = keepsOrder ? { keepsOrder } : {}; // absent where it says nothing: checkpoints from before it stay valid
  const meaning = {
    ...ordered,
    batchSize,
    packing,
    cutoffLen,
    seed,
    accumulation,
    tuner: recipe.tuner,
    objective: settings,
    stage,
  };
  identity.update(JSON.stringify([meaning, finetuning_type, task.identity, files.fingerprint]));
  return {
    tokenizer,
    task,
    trainRows,
    evalRows,
    plan,
    shape,
    largestBatches(shape) {
      const rows = shortened(task, trainRows, shape);
      return {
        rows: largestBatch(rows, shape, planFor(rows, shape), task.stepsPerRound),
        evalRows: recipe.eval_strategy === "no" && !recipe.do_eval ? [] : largestInOrder(shortened(task, evalRows, shape), shape),
      };
    },
    files: [...filesOf(tokenizer, template), ...(task.files ?? [])],
    identity: identity.digest("hex"),
    digest,
    evalDigest: hashOf(evalRows).digest("hex"),
  };
}

/** Of a run of so many steps, those in which the learning rate rises. */
export function warmupStepsOf({ warmup_steps, warmup_ratio }: Recipe, totalSteps: number): number {
  return warmup_steps >= 1 ? warmup_steps : Math.ceil((warmup_steps || warmup_ratio) * totalSteps);
}

function hashOf(rows: readonly Row[]): Hash {
  const hash = createHash("sha256");
  for (const row of rows) addToHash(hash, row);
  return hash;
}

/** All that a row says but where it came from, and how long it is, which follows from the rest. */
function addToHash(hash: Hash, { where: _, tokens: __, ...row }: Row): void {
  for (const value of Object.values(row)) addValue(hash, value);
}

function addValue(hash: Hash, value: unknown): void {
  if (ArrayBuffer.isView(value)) hash.update(value as NodeJS.ArrayBufferView);
  else if (typeof value === "object" && value !== null) for (const part of Object.entries(value).flat()) addValue(hash, part);
  else hash.update(JSON.stringify(value) ?? "");
}

/** Tokenizer files with the template that training used: chat and server render with the same. */
function filesOf(tokenizer: Tokenizer, template: ChatTemplate | undefined): TextFile[] {
  if (template === undefined) return [...tokenizer.files()];
  const files = tokenizer.files().filter(({ name }) => name !== "chat_template.jinja");
  return [...files, { name: "chat_template.jinja", contents: template.source }];
}

function batchPlan(rows: readonly Row[], { batchSize, isPacked, cutoffLen }: BatchShape, order: RowOrder): BatchPlan {
  const lengths = rows.map(({ tokens }) => tokens);
  return new BatchPlan(lengths, { batchSize, packing: isPacked, cutoffLen, ...order });
}

interface RowOrder {
  readonly seed: number;
  readonly keepsOrder: boolean;
}

/** The rows to train on, mixed as the recipe says, and those held out. A row is held out or not before it may be repeated. */
async function readSplit(
  recipe: Recipe,
  objective: Objective,
  source: DataSource,
): Promise<{ trainRows: readonly Row[]; evalRows: readonly Row[] }> {
  const { mix_strategy: strategy, interleave_probs: probabilities, seed } = recipe;
  const isMixed = strategy !== "concat" && recipe.dataset.length > 1;
  const datasets: Row[][] = [];
  for (const names of isMixed ? recipe.dataset.map((name) => [name]) : [recipe.dataset])
    datasets.push(await objective.read(names, source, recipe.objective));
  const { train, heldOut } = splitHoldout(datasets.flat(), recipe.eval_dataset === null ? recipe.val_size : 0, seed);
  const evalRows = recipe.eval_dataset === null ? heldOut : await objective.read(recipe.eval_dataset, source, recipe.objective);
  if (!isMixed) return { trainRows: train, evalRows };
  const trains = new Set(train);
  const trainRows = mixRows(
    datasets.map((rows) => rows.filter((row) => trains.has(row))),
    { strategy, probabilities, seed },
  );
  return { trainRows, evalRows };
}

/** Rows as a shorter `cutoff_len` would leave them. */
function shortened(task: Task, rows: readonly Row[], { cutoffLen }: BatchShape): Row[] {
  return rows.map((row) => (row.tokens > cutoffLen ? task.shorten(row, cutoffLen) : row));
}

/** Of a longer run, only so many steps are looked at. */
const maxStepsLookedAt = 10_000;

/**
 * The micro-batch that needs the most memory, of those that the plan brings about; of a long run the longest rows together, which a shuffle may
 * bring about, or, packed, the fullest bins of its first steps, which all epochs fill alike.
 */
function largestBatch(
  rows: readonly Row[],
  { isPacked, batchSize }: BatchShape,
  plan: StepPlan,
  stepsPerRound = 1,
): readonly Row[] {
  const isLong = plan.totalSteps > maxStepsLookedAt;
  if (isLong && !isPacked) return [...rows].sort((a, b) => b.tokens - a.tokens).slice(0, batchSize);
  const batches: Row[][] = [];
  for (let step = 0; step < Math.min(plan.totalSteps, maxStepsLookedAt); step += stepsPerRound)
    batches.push(...plan.at(step).microBatches.map((batch) => batch.map((row) => rows[row]!)));
  return largest(batches);
}

/** The largest batch of held-out rows, which are taken one after the other. */
function largestInOrder(rows: readonly Row[], { batchSize }: BatchShape): readonly Row[] {
  const count = Math.ceil(rows.length / batchSize);
  return largest(Array.from({ length: count }, (_, i) => rows.slice(i * batchSize, (i + 1) * batchSize)));
}

function largest(batches: readonly (readonly Row[])[]): readonly Row[] {
  const tokensOf = (batch: readonly Row[]) => batch.reduce((sum, { tokens }) => sum + tokens, 0);
  return batches.reduce((most, batch) => (tokensOf(batch) > tokensOf(most) ? batch : most), []);
}
