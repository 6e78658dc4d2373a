import { join } from "node:path";
import { z } from "zod";
import { type BatchShape, estimateStep, overheadBytes, type StepWork, smallestRemedy } from "../../advise/estimate.js";
import { availableMemoryBytes } from "../../advise/memory.js";
import { Rng } from "../../core/rng.js";
import { SymbolicDevice } from "../../core/symbolic.js";
import { fastestCompute, loadEngine } from "../../engine/load.js";
import { ConfigError, DoesNotFitError } from "../../errors.js";
import { pruneCheckpoints } from "../../io/checkpoint.js";
import { writeFileAtomic } from "../../io/disk.js";
import type { ModelFiles } from "../../io/model-files.js";
import { resolveModel } from "../../io/resolve.js";
import { classesOf } from "../../models/classes.js";
import type { LanguageModel } from "../../models/language-model.js";
import { loadModel, settleTying } from "../../models/load.js";
import { objectives } from "../../objectives/index.js";
import type { Objective } from "../../objectives/objective.js";
import { AdamW, momentBits } from "../../optim/adamw.js";
import { squares } from "../../optim/clip.js";
import { weightDecays } from "../../optim/weight-decay.js";
import type { Recipe } from "../../recipe/schema.js";
import { during } from "../../runs/during.js";
import type { MachineFacts, RunEvent, RunResults } from "../../runs/events.js";
import type { RunContext } from "../../runs/run.js";
import { type Parts, sketch, trainedName } from "../../train/assemble.js";
import { checkFinite, loadCheckpoint, saveCheckpoint, startOfRun } from "../../train/checkpoint.js";
import { weightsRanAway } from "../../train/diverged.js";
import { noProgress, type Progress, train } from "../../train/loop.js";
import { peakMemoryBytes } from "../../train/peak-memory.js";
import { tuners } from "../../tuners/index.js";
import { trainModules } from "../../tuners/train-whole.js";
import { loadTuned, saveTuned, settingsOfAdapter } from "../../tuners/tuned-files.js";
import type { Start, Tuner, Tuning } from "../../tuners/tuner.js";
import { defineBackend } from "../backend.js";
import { prepareData, type RunData } from "./run-data.js";
import { unneeded } from "./unneeded.js";

const NativeConfig = z.strictObject({
  compute_dtype: z
    .enum(["auto", "f32", "bf16"])
    .default("auto")
    .describe("how matrix products multiply; auto: bf16 only where the CPU has it in hardware (attune's own)"),
  threads: z.int().min(1).max(1024).nullable().default(null).describe("engine threads; not set: one per core (attune's own)"),
});
type NativeConfig = z.output<typeof NativeConfig>;

/** Trains on this machine's CPU with attune's own engine. */
export const native = defineBackend({
  name: "native",
  summary: "attune's own engine, on this machine's CPU",
  config: NativeConfig,
  unneeded,
  checkCheckpoint: (path, recipe) => checkFinite(path, momentBits[recipe.optim]),
  run: runRecipe,
});

async function* runRecipe(recipe: Recipe, context: RunContext<NativeConfig>): AsyncGenerator<RunEvent> {
  const { config, signal, resumeFrom } = context;
  const tuner = tuners.find(({ name }) => name === recipe.finetuning_type)!;
  const objective = objectives.find(({ name }) => name === recipe.stage)!;
  const base = await settleTying(
    yield* during<RunEvent, ModelFiles>((emit) => findModel(recipe.model_name_or_path, signal, emit)),
  );
  const tuning = yield* during<RunEvent, Tuning>((emit) => tuningOf(recipe, tuner, emit));
  const maxTokens = checkModel(recipe, base, objective, tuning);
  if (maxTokens < recipe.cutoff_len) yield info(`cutoff_len is ${maxTokens} here: the model has no more positions`);
  const startedAt = resumeFrom === null ? new Date() : await startOfRun(resumeFrom);
  const data = yield* during<RunEvent, RunData>((emit) =>
    prepareData({ recipe, objective, files: base, maxTokens, now: startedAt, warn: (message) => emit(warning(message)) }),
  );
  const files = { ...base, config: data.task.modelConfig ?? base.config };

  const engine = loadEngine();
  if (config.threads !== null) engine.setThreads(config.threads);
  const compute = config.compute_dtype === "auto" ? fastestCompute(engine.info()) : config.compute_dtype;
  const fit = checkMemory({
    parts: partsOf(recipe, files, tuning),
    task: data.task,
    rows: data.largestBatch,
    compute,
    batchSize: recipe.per_device_train_batch_size,
    isPacked: data.isPacked,
  });

  const hasHead = classesOf(base.config) !== null;
  const model = yield* during<RunEvent, LanguageModel>((emit) =>
    loadModel({ kernels: engine, compute }, files, hasHead ? undefined : Rng.for(recipe.seed, "head"), (unread) =>
      tuning.storing?.(unread, (message) => emit(info(message))),
    ),
  );
  for (const message of model.notices) yield info(message);
  if (recipe.disable_dropout) model.disableDropout();
  if (model.ownDropout.size > 0) yield info(dropoutNotice(model));
  const machine = { isa: engine.info().isa, threads: engine.info().threads, dtype: compute };
  const prepared = { recipe, files, tuner, tuning, context, startedAt, data, fit, machine };
  try {
    yield* trainModel(model, prepared);
  } finally {
    model.dispose(); // however the run ends
  }
}

/** All that is known of a run before its model changes. */
interface Prepared {
  readonly recipe: Recipe;
  readonly files: ModelFiles;
  readonly tuner: Tuner;
  readonly tuning: Tuning;
  readonly context: RunContext;
  readonly startedAt: Date;
  readonly data: RunData;
  readonly fit: Fit;
  readonly machine: MachineFacts;
}

async function* trainModel(model: LanguageModel, prepared: Prepared): AsyncGenerator<RunEvent> {
  const { recipe, files, tuning, context, startedAt, data, fit, machine } = prepared;
  const { resumeFrom, signal } = context;
  model.gradientCheckpointing = recipe.gradient_checkpointing;
  tuning.apply(model, Rng.for(recipe.seed, "tuner"));
  trainModules(model, model.headModules);
  const weightsFrom = resumeFrom ?? recipe.adapter_name_or_path;
  if (weightsFrom !== null) await loadTuned(weightsFrom, model, tuning);
  else tuning.initialize?.(model, startFor(recipe, data));
  const parameters = model.trainableParameters();
  const optimizer = new AdamW(parameters, {
    beta1: recipe.adam_beta1,
    beta2: recipe.adam_beta2,
    eps: recipe.adam_epsilon,
    weightDecay: weightDecays(model, recipe.weight_decay),
    bits: momentBits[recipe.optim],
  });
  try {
    const progress = noProgress();
    if (resumeFrom !== null) await loadCheckpoint(resumeFrom, optimizer, progress, data.identity);
    const resumedFromStep = progress.step;

    const writeModel = async (path: string) => {
      const size = squares([...parameters.values()].map(({ value }) => value));
      const isSane = size === null || Number.isFinite(await size.item());
      size?.dispose();
      if (!isSane) throw weightsRanAway({ step: progress.step, learningRate: recipe.learning_rate });
      await saveTuned(path, model, tuning, {
        name: recipe.model_name_or_path,
        config: files.config,
        taskType: model.head === null ? "CAUSAL_LM" : "SEQ_CLS",
        modulesToSave: model.headModules,
      });
      for (const { name, contents } of data.files) await writeFileAtomic(join(path, name), contents);
    };
    const save = async () => {
      const path = join(recipe.output_dir, `checkpoint-${progress.step}`);
      await saveCheckpoint(path, {
        writeModel: async (temporary) => {
          await writeModel(temporary);
          await writeFileAtomic(join(temporary, "trainer_state.json"), context.trainerState());
        },
        optimizer: recipe.save_only_model ? null : optimizer,
        progress,
        work: data.identity,
        startedAt,
      });
      if (recipe.save_total_limit !== null) await pruneCheckpoints(recipe.output_dir, recipe.save_total_limit);
      return path;
    };

    const counts = countParameters(model);
    yield {
      type: "start",
      trainRows: data.trainRows.length,
      evalRows: data.evalRows.length,
      totalSteps: data.plan.totalSteps,
      resumedFromStep,
      trainableParams: counts.trainable,
      allParams: counts.all,
      machine,
      predictedPeakBytes: fit.predictedPeakBytes,
      availableBytes: fit.availableBytes,
    };

    let secondsToFirstStep = 0;
    const { stepsPerEpoch } = data.plan;
    const events = train({
      model,
      task: data.task,
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
    const flopsPerToken = fit.flops / data.largestBatch.reduce((sum, { tokens }) => sum + tokens, 0);
    yield {
      type: "end",
      interrupted,
      results: { ...resultsOf(progress, counts, flopsPerToken, secondsToFirstStep), machine },
    };
  } finally {
    optimizer.dispose();
  }
}

const info = (message: string): RunEvent => ({ type: "notice", level: "info", message });
const warning = (message: string): RunEvent => ({ type: "notice", level: "warning", message });

function dropoutNotice({ ownDropout }: LanguageModel): string {
  const places = [...ownDropout].map(([key, p]) => `${key} ${p}`).join(", ");
  return `the model trains with the dropout of its own config.json (${places}), as in transformers; disable_dropout=true leaves it out`;
}

type Emit = (event: RunEvent) => void;

/** A local path, or the hub's name of a model, as files on this machine. */
function findModel(nameOrPath: string, signal: AbortSignal, emit: Emit): Promise<ModelFiles> {
  return resolveModel(nameOrPath, {
    signal,
    onNotice: (message) => emit(info(message)),
    onProgress: (doneBytes, totalBytes) => emit({ type: "progress", what: `downloading ${nameOrPath}`, doneBytes, totalBytes }),
  });
}

/** The method with its settings: the recipe's, or those of the adapter that training goes on from. */
async function tuningOf(recipe: Recipe, tuner: Tuner, emit: Emit): Promise<Tuning> {
  const from = recipe.adapter_name_or_path;
  if (from === null) return tuner.bind(recipe.tuner);
  const adapter = await settingsOfAdapter(from, [tuner, ...tuners]);
  if (adapter.tuner !== tuner)
    throw new ConfigError(
      `adapter_name_or_path: ${from} is of method "${adapter.tuner.name}", and finetuning_type is "${tuner.name}": make them the same`,
    );
  emit(info(`going on from the adapter ${from}; its own settings are used, not the recipe's`));
  const ofRun = (tuner.ofRun ?? []).map((key) => [key, recipe.tuner[key]]);
  return tuner.bind({ ...(adapter.config as object), ...Object.fromEntries(ofRun) });
}

/** Throws ModelError if the objective cannot train the model, ConfigError if the settings do not fit it; returns how many tokens of a row it takes. */
function checkModel(recipe: Recipe, files: ModelFiles, objective: Objective, tuning: Tuning): number {
  const trainee = sketch(new SymbolicDevice(), partsOf(recipe, files, tuning));
  return trainee.base.with(trainedName, (model) => {
    objective.check?.(model);
    checkRates(model, recipe);
    return maxTokensOf(model);
  });
}

/** How many tokens of a row a model takes. Throws ConfigError if virtual tokens leave no room for them. */
function maxTokensOf({ virtualTokens, shape }: LanguageModel): number {
  const maxTokens = shape.maxPositions - virtualTokens;
  if (maxTokens < 2)
    throw new ConfigError(
      `num_virtual_tokens: ${virtualTokens} leave no room for text in the model's ${shape.maxPositions} positions: choose fewer`,
    );
  return maxTokens;
}

function partsOf(recipe: Recipe, files: ModelFiles, tuning: Tuning): Parts {
  return {
    files,
    tuning,
    seed: recipe.seed,
    gradientCheckpointing: recipe.gradient_checkpointing,
    disableDropout: recipe.disable_dropout,
    optimizer: {
      beta1: recipe.adam_beta1,
      beta2: recipe.adam_beta2,
      eps: recipe.adam_epsilon,
      weightDecay: recipe.weight_decay,
      bits: momentBits[recipe.optim],
    },
  };
}

/** Throws ConfigError if a step would not fit f32, or take away the whole of a weight that learns faster than the rest. */
function checkRates(sketch: LanguageModel, { learning_rate, weight_decay }: Recipe): void {
  const decays = weightDecays(sketch, weight_decay);
  for (const [name, { learningRateScale }] of sketch.trainableParameters()) {
    const rate = learning_rate * learningRateScale;
    if (Number.isFinite(Math.fround(rate)) && rate * (decays.get(name) ?? 0) < 1) continue;
    throw new ConfigError(
      `learning_rate: ${name} learns ${learningRateScale} times as fast, at ${rate}, with a weight_decay of ${weight_decay}: ` +
        "their product must be below 1, and the rate a number that f32 holds",
    );
  }
}

/** What a tuner may begin with. */
function startFor({ seed }: Recipe, { tokenizer }: RunData): Start {
  return {
    rng: Rng.for(seed, "start"),
    encode: (text) => tokenizer.encode(text, { special: false }),
  };
}

interface Fit {
  readonly predictedPeakBytes: number;
  readonly availableBytes: number;
  /** Of the largest micro-batch, forward, backward and update. */
  readonly flops: number;
}

/** Throws DoesNotFitError, with the smallest change that fits, if the largest step would need more memory than there is. */
function checkMemory({ batchSize, isPacked, ...work }: StepWork & BatchShape): Fit {
  const { flops, peakBytes } = estimateStep(work);
  const availableBytes = availableMemoryBytes();
  const neededBytes = peakBytes + overheadBytes;
  if (neededBytes > availableBytes) {
    const remedy = smallestRemedy(work, { batchSize, isPacked }, availableBytes - overheadBytes);
    const inWords = (bytes: number) => (bytes < 1e9 ? `${(bytes / 1e6).toFixed(1)} MB` : `${(bytes / 1e9).toFixed(2)} GB`);
    throw new DoesNotFitError(
      `this run needs about ${inWords(neededBytes)} of memory, and ${inWords(availableBytes)} are available. ` +
        (remedy === undefined
          ? "No smaller batch would help: choose a smaller or quantized model"
          : `The smallest change that fits: ${remedy.change} (about ${inWords(remedy.peakBytes + overheadBytes)})`),
    );
  }
  return { flops, availableBytes, predictedPeakBytes: process.memoryUsage.rss() + neededBytes };
}

function everySteps(strategy: "no" | "steps" | "epoch", steps: number, stepsPerEpoch: number): number {
  return { no: 0, steps, epoch: stepsPerEpoch }[strategy];
}

function countParameters(model: LanguageModel): { trainable: number; all: number } {
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
): Omit<RunResults, "machine"> {
  const seconds = progress.elapsedMs / 1000;
  return {
    epoch: progress.epoch,
    train_loss: progress.lossSum / Math.max(1, progress.step),
    ...(progress.evalLoss === null ? {} : { eval_loss: progress.evalLoss }),
    ...(progress.metrics === null ? {} : { eval_metrics: progress.metrics }),
    train_runtime: seconds,
    train_samples_per_second: progress.rows / seconds,
    train_steps_per_second: progress.step / seconds,
    total_flos: flopsPerToken * progress.tokens,
    tokens_per_second: (1000 * progress.tokens) / progress.stepMs,
    num_input_tokens_seen: progress.tokens,
    ...(progress.supervisedTokens !== null && { num_supervised_tokens: progress.supervisedTokens }),
    peak_memory_bytes: peakMemoryBytes(),
    trainable_params: counts.trainable,
    all_params: counts.all,
    seconds_to_first_step: secondsToFirstStep,
  };
}
