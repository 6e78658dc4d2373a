import { createHash } from "node:crypto";
import { mkdir, readdir, rm } from "node:fs/promises";
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { engineOverheadBytes, estimateStep, type StepWork, smallestRemedy } from "../advise/estimate.js";
import type { Device } from "../core/device.js";
import { Rng } from "../core/rng.js";
import { BatchPlan } from "../data/batches.js";
import { loadDataset, splitHoldout, tokenizeDataset } from "../data/dataset.js";
import type { Example } from "../data/example.js";
import type { ComputeType, EngineInfo, NativeEngine } from "../engine/kernels.js";
import { loadEngine } from "../engine/load.js";
import { CheckpointError, ConfigError, DoesNotFitError } from "../errors.js";
import { lockFolder, newestCompleteCheckpoint, pruneCheckpoints, verifyFolder } from "../io/checkpoint.js";
import { writeFileAtomic } from "../io/disk.js";
import type { ModelFiles } from "../io/model-files.js";
import { openAdapter } from "../io/peft.js";
import { resolveModel } from "../io/resolve.js";
import type { CausalLM } from "../models/causal-lm.js";
import { buildModel, loadWeights } from "../models/load.js";
import { objectives } from "../objectives/index.js";
import type { Objective } from "../objectives/objective.js";
import { AdamW } from "../optim/adamw.js";
import { formatRecipe } from "../recipe/parse.js";
import type { Recipe } from "../recipe/schema.js";
import { loadTokenizer } from "../text/load-tokenizer.js";
import type { ChatFormat } from "../text/supervised.js";
import { chooseTemplate } from "../text/templates.js";
import { loadCheckpoint, saveCheckpoint } from "../train/checkpoint.js";
import type { RunEvent, RunResults } from "../train/events.js";
import { noProgress, type Progress, peakMemoryBytes, train } from "../train/loop.js";
import { RunFolder, recordRun } from "../train/run-folder.js";
import { StepPlan } from "../train/step-plan.js";
import { tuners } from "../tuners/index.js";
import { loadTuned, saveTuned } from "../tuners/tuned-files.js";
import type { Tuner } from "../tuners/tuner.js";
import type { Backend, RunOptions } from "./backend.js";
import { during } from "./during.js";

/** Trains on this machine's CPU with attune's own engine. */
export const native: Backend = {
  name: "native",
  async *run(recipe, options) {
    const lock = await lockFolder(recipe.output_dir);
    try {
      const folder = new RunFolder({
        outputDir: recipe.output_dir,
        recipe: formatRecipe(recipe),
        loggingSteps: recipe.logging_steps,
        evalSteps: recipe.eval_steps,
        saveSteps: recipe.save_steps,
        numTrainEpochs: recipe.num_train_epochs,
        trainBatchSize: recipe.per_device_train_batch_size,
        plotLoss: recipe.plot_loss,
      });
      yield* recordRun(runRecipe(recipe, options, folder), folder);
    } finally {
      await lock.release();
    }
  },
};

async function* runRecipe(recipe: Recipe, { signal, notices = [] }: RunOptions, folder: RunFolder): AsyncGenerator<RunEvent> {
  for (const message of notices) yield info(message);
  const tuner = tuners.find(({ name }) => name === recipe.finetuning_type)!;
  const objective = objectives.find(({ name }) => name === recipe.stage)!;
  const resumeFrom = yield* during<RunEvent, string | null>((emit) => prepareOutput(recipe, emit));
  const files = yield* during<RunEvent, ModelFiles>((emit) => findModel(recipe.model_name_or_path, signal, emit));
  const data = yield* during<RunEvent, Data>((emit) => prepareData(recipe, files, emit));
  const tunerConfig = yield* during<RunEvent, unknown>((emit) => settingsOf(recipe, tuner, emit));

  const engine = loadEngine();
  if (recipe.threads !== null) engine.setThreads(recipe.threads);
  const compute = chooseCompute(recipe, engine.info());
  const fit = checkMemory({
    files,
    tuner,
    tunerConfig,
    objective,
    gradientCheckpointing: recipe.gradient_checkpointing,
    rows: data.largestBatch,
    compute,
    isPacked: recipe.packing,
  });

  const model = await loadModel({ kernels: engine, compute }, files);
  model.gradientCheckpointing = recipe.gradient_checkpointing;
  tuner.apply(model, tunerConfig, Rng.for(recipe.seed, "tuner"));
  const weightsFrom = resumeFrom ?? recipe.adapter_name_or_path;
  if (weightsFrom !== null) await loadTuned(weightsFrom, model, tuner);
  const parameters = model.trainableParameters();
  const optimizer = new AdamW(parameters, {
    beta1: recipe.adam_beta1,
    beta2: recipe.adam_beta2,
    eps: recipe.adam_epsilon,
    weightDecay: recipe.weight_decay,
  });
  const progress = noProgress();
  if (resumeFrom !== null) await loadCheckpoint(resumeFrom, optimizer, progress, data.identity);
  const resumedFromStep = progress.step;

  const writeModel = async (path: string) => {
    await saveTuned(path, model, tuner, tunerConfig, { name: recipe.model_name_or_path, config: files.config });
    for (const { name, contents } of chatFiles(data.chat)) await writeFileAtomic(join(path, name), contents);
  };
  const save = async () => {
    const path = join(recipe.output_dir, `checkpoint-${progress.step}`);
    await saveCheckpoint(path, {
      writeModel: async (temporary) => {
        await writeModel(temporary);
        await writeFileAtomic(join(temporary, "trainer_state.json"), `${JSON.stringify(folder.trainerState, null, 2)}\n`);
      },
      optimizer: recipe.save_only_model ? null : optimizer,
      progress,
      work: data.identity,
    });
    if (recipe.save_total_limit !== null) await pruneCheckpoints(recipe.output_dir, recipe.save_total_limit);
    return path;
  };

  const counts = countParameters(model);
  const machine = { isa: engine.info().isa, threads: engine.info().threads, dtype: compute };
  yield {
    type: "start",
    outputDir: recipe.output_dir,
    model: recipe.model_name_or_path,
    method: tuner.name,
    objective: objective.name,
    trainRows: data.trainRows.length,
    evalRows: data.evalRows.length,
    totalSteps: data.plan.totalSteps,
    resumedFromStep,
    trainableParams: counts.trainable,
    allParams: counts.all,
    ...machine,
    predictedPeakBytes: fit.predictedPeakBytes,
    availableBytes: fit.availableBytes,
  };

  let secondsToFirstStep = 0;
  const stepsPerEpoch = Math.max(1, Math.ceil(data.plan.totalSteps / recipe.num_train_epochs));
  const events = train({
    model,
    objective,
    trainRows: data.trainRows,
    evalRows: data.evalRows,
    plan: data.plan,
    optimizer,
    parameters,
    settings: {
      learningRate: recipe.learning_rate,
      schedule: recipe.lr_scheduler_type,
      warmupSteps: recipe.warmup_steps > 0 ? recipe.warmup_steps : Math.ceil(recipe.warmup_ratio * data.plan.totalSteps),
      maxGradNorm: recipe.max_grad_norm,
      seed: recipe.seed,
      evalSteps: everySteps(recipe.eval_strategy, recipe.eval_steps, stepsPerEpoch),
      saveSteps: everySteps(recipe.save_strategy, recipe.save_steps, stepsPerEpoch),
      evalBatchSize: recipe.per_device_train_batch_size,
    },
    progress,
    save,
    signal,
  });
  for await (const event of events) {
    if (event.type === "step" && secondsToFirstStep === 0) secondsToFirstStep = performance.now() / 1000;
    yield event;
  }

  const interrupted = progress.step < data.plan.totalSteps;
  if (interrupted && progress.step > resumedFromStep) yield { type: "checkpoint", step: progress.step, path: await save() };
  await writeModel(recipe.output_dir);
  const flopsPerToken = fit.flops / data.largestBatch.reduce((sum, { ids }) => sum + ids.length, 0);
  yield { type: "end", interrupted, results: { ...resultsOf(progress, counts, flopsPerToken, secondsToFirstStep), ...machine } };
  optimizer.dispose();
  model.dispose();
}

const info = (message: string): RunEvent => ({ type: "notice", level: "info", message });
const warning = (message: string): RunEvent => ({ type: "notice", level: "warning", message });

type Emit = (event: RunEvent) => void;

/** What an earlier run leaves in its folder. */
const runFiles = ["events.jsonl", "adapter_config.json", "model.safetensors"];
const checkpointPattern = /^checkpoint-\d+$/;

/** Makes the output folder ready, and finds the checkpoint to go on from. Throws CheckpointError if it holds a run that is not to be touched. */
async function prepareOutput(recipe: Recipe, emit: Emit): Promise<string | null> {
  const { output_dir: outputDir, resume_from_checkpoint: resume, overwrite_output_dir: overwrite } = recipe;
  if (typeof resume === "string") {
    await verifyFolder(resume);
    return resume;
  }
  if (resume) {
    const newest = await newestCompleteCheckpoint(outputDir, { onWarning: (message) => emit(warning(message)) });
    if (newest === undefined) emit(info(`${outputDir} holds no complete checkpoint: the run starts from the beginning`));
    return newest?.path ?? null;
  }
  const names = await readdir(outputDir);
  const earlier = names.filter((name) => runFiles.includes(name) || checkpointPattern.test(name));
  if (earlier.length > 0 && !overwrite)
    throw new CheckpointError(
      `${outputDir} holds another run (${earlier.slice(0, 3).join(", ")}). Go on with it by resume_from_checkpoint=true, replace it by ` +
        "overwrite_output_dir=true, or choose another output_dir",
    );
  for (const name of earlier) await rm(join(outputDir, name), { recursive: true, force: true });
  await mkdir(outputDir, { recursive: true });
  return null;
}

/** A local path, or the hub's name of a model, as files on this machine. */
function findModel(nameOrPath: string, signal: AbortSignal, emit: Emit): Promise<ModelFiles> {
  return resolveModel(nameOrPath, {
    signal,
    onNotice: (message) => emit(info(message)),
    onProgress: (doneBytes, totalBytes) => emit({ type: "progress", what: `downloading ${nameOrPath}`, doneBytes, totalBytes }),
  });
}

interface Data {
  readonly chat: ChatFormat;
  readonly trainRows: readonly Example[];
  readonly evalRows: readonly Example[];
  readonly plan: StepPlan;
  /** The micro-batch with the most tokens of the whole run. */
  readonly largestBatch: readonly Example[];
  /** Hash of rows, their order and what a step is made of. */
  readonly identity: string;
}

async function prepareData(recipe: Recipe, files: ModelFiles, emit: Emit): Promise<Data> {
  const tokenizer = await loadTokenizer(files);
  const { template, notices } = chooseTemplate(tokenizer, { name: recipe.template ?? undefined });
  for (const message of [...tokenizer.notices, ...notices]) emit(warning(message));
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
    for (const message of [...loaded.notices, ...report.notices]) emit(warning(message));
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
  return { chat, trainRows, evalRows, plan, largestBatch: largestBatch(plan, trainRows), identity: identity.digest("hex") };
}

function largestBatch(plan: StepPlan, rows: readonly Example[]): Example[] {
  let largest: readonly number[] = [];
  let most = 0;
  for (let step = 0; step < plan.totalSteps; step++)
    for (const batch of plan.at(step).microBatches) {
      const tokens = batch.reduce((sum, row) => sum + rows[row]!.ids.length, 0);
      if (tokens > most) [largest, most] = [batch, tokens];
    }
  return largest.map((row) => rows[row]!);
}

/** The tuner's settings: the recipe's, or those of the adapter that training goes on from. */
async function settingsOf(recipe: Recipe, tuner: Tuner, emit: Emit): Promise<unknown> {
  const from = recipe.adapter_name_or_path;
  if (from === null) return recipe.tuner;
  const { config, tensors } = await openAdapter(from);
  if (tuner.peft?.peftType !== config.peft_type)
    throw new ConfigError(
      `adapter_name_or_path: ${from} is of type ${config.peft_type}, which finetuning_type "${tuner.name}" does not train`,
    );
  emit(info(`going on from the adapter ${from}; its own settings are used, not the recipe's`));
  return tuner.peft.fromPeft(config, [...tensors.keys()]);
}

function chooseCompute({ compute_dtype: wanted }: Recipe, { isa }: EngineInfo): ComputeType {
  if (wanted !== "auto") return wanted;
  return isa === "avx512bf16" || isa === "amx" ? "bf16" : "f32";
}

interface Fit {
  readonly predictedPeakBytes: number;
  readonly availableBytes: number;
  /** Of the largest micro-batch, forward, backward and update. */
  readonly flops: number;
}

/** Throws DoesNotFitError, with the smallest change that fits, if the largest step would need more memory than there is. */
function checkMemory({ isPacked, ...work }: StepWork & { isPacked: boolean }): Fit {
  const { flops, peakBytes } = estimateStep(work);
  const availableBytes = process.availableMemory();
  const neededBytes = peakBytes + engineOverheadBytes;
  if (neededBytes > availableBytes) {
    const remedy = smallestRemedy(work, isPacked, availableBytes - engineOverheadBytes);
    const gigabytes = (bytes: number) => `${(bytes / 1e9).toFixed(1)} GB`;
    throw new DoesNotFitError(
      `this run needs about ${gigabytes(neededBytes)} of memory, and ${gigabytes(availableBytes)} are available. ` +
        (remedy === undefined
          ? "No smaller batch would help: choose a smaller or quantized model"
          : `The smallest change that fits: ${remedy.change} (about ${gigabytes(remedy.peakBytes + engineOverheadBytes)})`),
    );
  }
  return { flops, availableBytes, predictedPeakBytes: process.memoryUsage.rss() + neededBytes };
}

async function loadModel(device: Device, files: ModelFiles): Promise<CausalLM> {
  const model = buildModel(device, files.config, files.path);
  await loadWeights(model, files);
  return model;
}

/** Tokenizer files with the template that training used: chat and server render with the same. */
function chatFiles({ tokenizer, template }: ChatFormat): { name: string; contents: string }[] {
  const files = tokenizer.files().filter(({ name }) => name !== "chat_template.jinja");
  return [...files, { name: "chat_template.jinja", contents: template.source }];
}

function everySteps(strategy: "no" | "steps" | "epoch", steps: number, stepsPerEpoch: number): number {
  return { no: 0, steps, epoch: stepsPerEpoch }[strategy];
}

function countParameters(model: CausalLM): { trainable: number; all: number } {
  let [trainable, all] = [0, 0];
  for (const [, parameter] of model.namedParameters()) {
    all += parameter.size;
    if (parameter.requiresGrad) trainable += parameter.size;
  }
  return { trainable, all };
}

function resultsOf(
  progress: Progress,
  counts: { trainable: number; all: number },
  flopsPerToken: number,
  secondsToFirstStep: number,
): Omit<RunResults, "isa" | "threads" | "dtype"> {
  const seconds = progress.elapsedMs / 1000;
  return {
    epoch: progress.epoch,
    train_loss: progress.lossSum / Math.max(1, progress.step),
    ...(progress.evalLoss === null ? {} : { eval_loss: progress.evalLoss }),
    train_runtime: seconds,
    train_samples_per_second: progress.rows / seconds,
    train_steps_per_second: progress.step / seconds,
    total_flos: flopsPerToken * progress.tokens,
    tokens_per_second: (1000 * progress.tokens) / progress.stepMs,
    num_input_tokens_seen: progress.tokens,
    num_supervised_tokens: progress.supervisedTokens,
    peak_memory_bytes: peakMemoryBytes(),
    trainable_params: counts.trainable,
    all_params: counts.all,
    seconds_to_first_step: secondsToFirstStep,
  };
}
