import { availableParallelism } from "node:os";
import { join, relative } from "node:path";
import { z } from "zod";
import { Rng } from "../../core/rng.js";
import { fastestCompute, loadEngine } from "../../engine/load.js";
import { CheckpointError, ConfigError } from "../../errors.js";
import { predictionsAtOnce } from "../../evaluate/predict.js";
import { writeFileAtomic } from "../../io/disk.js";
import { writeModelCard } from "../../io/model-card.js";
import type { ModelFiles } from "../../io/model-files.js";
import { resolveModel } from "../../io/resolve.js";
import { classesOf } from "../../models/classes.js";
import type { LanguageModel } from "../../models/language-model.js";
import { settleTying } from "../../models/load.js";
import { objectives } from "../../objectives/index.js";
import type { Task } from "../../objectives/objective.js";
import { optimizerNamed } from "../../optim/optimizers.js";
import { needlessOnOneCpu } from "../../recipe/foreign-keys.js";
import { adapterNames, maxSteps, type Recipe } from "../../recipe/schema.js";
import { during } from "../../runs/during.js";
import type { RunEvent } from "../../runs/events.js";
import type { CheckContext, RunContext } from "../../runs/run.js";
import { type Parts, trainedName } from "../../train/assemble.js";
import { type BestSettings, checkMetric, plainName } from "../../train/best.js";
import { checkFinite, loadCheckpoint, startOfRun } from "../../train/checkpoint.js";
import { isUnfinished, noProgress, type Progress, type TrainSettings, train } from "../../train/loop.js";
import type { StepPlan } from "../../train/step-plan.js";
import { tuners } from "../../tuners/index.js";
import {
  baseAdaptersBelow,
  keepBaseAdapters,
  type OpenedAdapter,
  openBaseAdapters,
  settingsOfAdapter,
} from "../../tuners/tuned-files.js";
import type { Start, Tuner, Tuning } from "../../tuners/tuner.js";
import { defineBackend } from "../backend.js";
import { cardOf } from "./card.js";
import { checkModel } from "./checks.js";
import { checkMemory } from "./fit.js";
import { Output } from "./output.js";
import { questionsOf, writePredictions } from "./predictions.js";
import { assembleBeside, type Begun, findReference, partsBeside, type Reference } from "./reference.js";
import { countParameters, resultsOf, type SavedBest } from "./results.js";
import { prepareData, type RunData, readData, warmupStepsOf } from "./run-data.js";

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
  needless: needlessOnOneCpu,
  checkCheckpoint: (path, recipe) => checkFinite(path, optimizerNamed(recipe.optim).keepsBlocks === true),
  check,
  run: execute,
});

/** What can be known of a run before those that it builds on: model and method go together, and the data can be read. Warnings are left to the run itself. */
async function* check(recipe: Recipe, { signal, rewardFunctions }: CheckContext): AsyncGenerator<RunEvent> {
  const tuner = tuners.find(({ name }) => name === recipe.finetuning_type)!;
  const objective = objectives.find(({ name }) => name === recipe.stage)!;
  const { model_name_or_path: name, model_revision: revision } = recipe;
  const files = await settleTying(yield* during<RunEvent, ModelFiles>((emit) => openNamed(name, revision, signal, emit)));
  const maxTokens = checkModel(recipe, partsOf(recipe, files, tuner.bind(recipe.tuner), []), objective);
  await readData({ recipe, objective, files, maxTokens, rewardFunctions, now: new Date(), warn: () => {} });
}

/** A run from top to bottom: what is checked before the work, whether it fits, the training with its saves, the results. */
async function* execute(recipe: Recipe, context: RunContext<NativeConfig>): AsyncGenerator<RunEvent> {
  const { config, signal, resumeFrom, rewardFunctions, trainerState } = context;
  const tuner = tuners.find(({ name }) => name === recipe.finetuning_type)!;
  const objective = objectives.find(({ name }) => name === recipe.stage)!;
  const base = await settleTying(
    yield* during<RunEvent, ModelFiles>((emit) => openNamed(recipe.model_name_or_path, recipe.model_revision, signal, emit)),
  );
  const tuning = yield* during<RunEvent, Tuning>((emit) => tuningOf(recipe, tuner, emit));
  const baseFolders = await baseFoldersOf(recipe, tuning, resumeFrom);
  const baseAdapters = await openBaseAdapters(baseFolders, tuners);
  if (baseFolders.length > 0) yield warning(aboutBase(baseFolders));
  if (recipe.save_dtype !== null && tuning.adapter !== undefined)
    yield warning(`save_dtype changes nothing: ${recipe.finetuning_type} saves an adapter, in f32`);
  const maxTokens = checkModel(recipe, partsOf(recipe, base, tuning, baseAdapters), objective);
  if (maxTokens < recipe.cutoff_len) yield info(`cutoff_len is ${maxTokens} here: the model has no more positions`);

  const startedAt = resumeFrom === null ? new Date() : await startOfRun(resumeFrom);
  /** What the task tells once it trains; it goes out with the next event. */
  const later: RunEvent[] = [];
  let tell: Emit;
  const data = yield* during<RunEvent, RunData>((emit) => {
    tell = emit;
    const warn = (message: string) => tell(warning(message));
    return prepareData({ recipe, objective, files: base, maxTokens, rewardFunctions, now: startedAt, warn });
  });
  tell = (event) => later.push(event);
  const { task, plan } = data;
  const questions = questionsOf(recipe, data);
  const files = { ...base, config: task.modelConfig ?? base.config };
  const reference = yield* during<RunEvent, Reference | null>((emit) =>
    findReference({
      ...{ recipe, files, baseAdapters, data, open: (name) => openNamed(name, "main", signal, emit) },
      notify: (message) => emit(info(message)),
      warn: (message) => emit(warning(message)),
    }),
  );
  const parts = {
    ...partsOf(recipe, files, tuning, baseAdapters),
    keepsBase: task.usesBase === true,
    hasValueHead: task.valueHead === true,
  };

  const engine = loadEngine();
  if (config.threads !== null) engine.setThreads(checkedThreads(config.threads));
  const compute = config.compute_dtype === "auto" ? fastestCompute(engine.info()) : config.compute_dtype;
  const machine = { isa: engine.info().isa, threads: engine.info().threads, dtype: compute };
  const ofRound = plan.at(0).microBatches.length; // an epoch may have fewer than the recipe asks for
  const accumulationSteps = Math.ceil(ofRound / (task.bufferSize ?? 1));
  const settings = settingsOf(recipe, plan);
  const predicts = questions.length === 0 ? null : predictionsAtOnce(questions, recipe.max_new_tokens);
  const { flopsPerToken, measures, ...fit } = recipe.do_train
    ? await checkMemory({ ...partsBeside(reference, parts), task, accumulationSteps, compute, predicts }, data)
    : nothingToTrain;
  if (measures !== null) checkMetric(settings.best!.metric, measures);

  const { trainee, trainRows, evalRows } = yield* during<RunEvent, Begun>((emit) => {
    const tell = (message: string) => emit(info(message));
    const beginning = {
      weightsFrom: resumeFrom ?? (recipe.create_new_adapter ? null : recipe.adapter_name_or_path),
      isStart: resumeFrom === null,
      start: startFor(recipe, data),
      hasNewHead: classesOf(base.config) === null,
      onBase: (model: LanguageModel) => noticesOf(model).forEach(tell),
    };
    const what = "asking the reference";
    const onRows = (doneRows: number, totalRows: number) => emit({ type: "progress", what, doneRows, totalRows });
    const asking = { recipe, data, compute, isResumed: resumeFrom !== null, signal, onRows };
    return assembleBeside(reference, { kernels: engine, compute }, { ...parts, onNotice: tell }, beginning, asking);
  });
  try {
    const { base: shared, optimizer } = trainee;
    await keepBaseAdapters(baseFolders, recipe.output_dir, tuners);
    const baseAdapterCount = baseFolders.length;
    const work = reference === null ? data.identity : `${data.identity}/${reference.sha256}`;
    const output = new Output(recipe, trainee, { files, tuning, baseAdapterCount, data, work, startedAt, trainerState });
    const progress = noProgress();
    if (resumeFrom !== null) await loadCheckpoint(resumeFrom, optimizer, progress, work, task.state);
    if (!recipe.do_train) progress.isEvaluationDue = recipe.do_eval;
    const resumedFromStep = progress.step;
    const counts = shared.with(trainedName, countParameters);
    yield {
      type: "start",
      trainRows: trainRows.length,
      evalRows: evalRows.length,
      totalSteps: plan.totalSteps,
      resumedFromStep,
      trainableParams: counts.trainable,
      allParams: counts.all,
      machine,
      ...fit,
      ...(reference !== null && { reference: { name: reference.name, sha256: reference.sha256 } }),
    };

    let secondsToFirstStep = 0;
    let savedStep = resumedFromStep;
    const save = () => {
      savedStep = progress.step;
      return output.saveCheckpoint(progress);
    };
    try {
      for await (const event of train({ trainee, task, trainRows, evalRows, plan, settings, progress, save, signal })) {
        if (event.type === "step" && secondsToFirstStep === 0) secondsToFirstStep = performance.now() / 1000;
        yield* later.splice(0);
        yield event;
      }
    } catch (error) {
      yield* later.splice(0);
      throw error;
    }

    let interrupted = isUnfinished(progress, plan);
    // Whoever goes on from here trains no step again: not those before a stop, nor all of them to answer.
    const isToGoOn = interrupted || questions.length > 0;
    if (isToGoOn && progress.step > savedStep) yield { type: "checkpoint", step: progress.step, path: await save() };
    if (progress.isStoppedEarly) yield info(whyStopped(recipe, progress, task));
    const best = interrupted
      ? null
      : yield* during<RunEvent, SavedBest | null>((emit) => takeBest(recipe, output, progress, emit));
    if (recipe.do_train) await output.writeModel(recipe.output_dir, progress);
    const { output_dir: folder, per_device_train_batch_size: batchSize } = recipe;
    const report = interrupted ? null : await task.report?.(shared, trainedName, evalRows, { batchSize, signal });
    for (const { name, contents } of report?.files ?? []) await writeFileAtomic(join(folder, name), contents);
    for (const { level, message } of report?.notices ?? []) yield { type: "notice", level, message };
    let predictions: Readonly<Record<string, number>> | null = null;
    if (questions.length > 0 && !interrupted) {
      predictions = yield* during<RunEvent, Readonly<Record<string, number>> | null>((emit) => {
        const onProgress = (answers: number) => emit(info(`${answers} of ${questions.length} answers`));
        // Where nothing was learned, the base answers; a method that stands in its places is the base then.
        const isTuned = recipe.do_train || recipe.adapter_name_or_path !== null || tuning.changesBase === true;
        const name = isTuned ? trainedName : null;
        return writePredictions(recipe, { base: shared, name, signal, onProgress }, data, questions);
      });
      interrupted = predictions === null;
    }
    const results = resultsOf(progress, {
      ...{ best, predictions, counts, machine, flopsPerToken, secondsToFirstStep },
      referenceSha256: reference?.sha256 ?? null,
    });
    if (recipe.do_train) {
      const card = await cardOf({
        recipe,
        tuning,
        baseAdapters: await mergedFirst(recipe.output_dir),
        files,
        data,
        reference,
        results,
        steps: progress.step,
      });
      const left = await writeModelCard(recipe.output_dir, card);
      if (left !== null) yield warning(left);
    }
    yield { type: "end", interrupted, ...(progress.isStoppedEarly && { stoppedEarly: true as const }), results };
  } finally {
    trainee.dispose(); // however the run ends
  }
}

/** More threads than cores wait for each other; a few more may be meant. Throws ConfigError. */
function checkedThreads(threads: number): number {
  const most = 4 * availableParallelism();
  if (threads > most)
    throw new ConfigError(
      `threads: ${threads} is more than makes sense on this machine of ${availableParallelism()} cores: expected 1 to ${most}; leave it out for one thread a core`,
    );
  return threads;
}

/** Where nothing trains, nobody asks what a step needs. */
const nothingToTrain = { flopsPerToken: 0, measures: null };

const info = (message: string): RunEvent => ({ type: "notice", level: "info", message });
const warning = (message: string): RunEvent => ({ type: "notice", level: "warning", message });

type Emit = (event: RunEvent) => void;

/** A local path, or the hub's name of a model, as files on this machine. Throws as `resolveModel`, and ConfigError for two revisions. */
async function openNamed(name: string, revision: string, signal: AbortSignal, emit: Emit): Promise<ModelFiles> {
  const options = {
    revision,
    signal,
    onNotice: (message: string) => emit(info(message)),
    onProgress: (doneBytes: number, totalBytes: number) =>
      emit({ type: "progress", what: `downloading ${name}`, doneBytes, totalBytes }),
  };
  return resolveModel(name, options);
}

/** The method with its settings: the recipe's, or those of the adapter that training goes on from. */
async function tuningOf(recipe: Recipe, tuner: Tuner, emit: Emit): Promise<Tuning> {
  const from = recipe.adapter_name_or_path;
  if (from === null || recipe.create_new_adapter) return tuner.bind(recipe.tuner);
  const adapter = await settingsOfAdapter(from, [tuner, ...tuners]);
  if (adapter.tuner !== tuner)
    throw new ConfigError(
      `adapter_name_or_path: ${from} is of method "${adapter.tuner.name}", and finetuning_type is "${tuner.name}": make them the same`,
    );
  emit(info(`going on from the adapter ${from}; its own settings are used, not the recipe's`));
  const ofRun = (tuner.ofRun ?? []).map((key) => [key, recipe.tuner[key]]);
  return tuner.bind({ ...(adapter.config as object), ...Object.fromEntries(ofRun) });
}

/** The folders of the adapters that the run's own is trained over: in a run that goes on, the copies that it made. Throws ConfigError, ModelError. */
async function baseFoldersOf(recipe: Recipe, tuning: Tuning, resumeFrom: string | null): Promise<string[]> {
  const { adapter_name_or_path: from, create_new_adapter: isNew } = recipe;
  if (from === null) return [];
  if (isNew && tuning.adapter === undefined)
    throw new ConfigError(
      `create_new_adapter: ${recipe.finetuning_type} trains the model itself and makes no adapter: export a merged model, and name it as model_name_or_path`,
    );
  if (resumeFrom !== null) return baseAdaptersBelow(resumeFrom);
  const isOverwritten = (folder: string) => /^(base_adapters([/\\].*)?)?$/.test(relative(recipe.output_dir, folder));
  if (isNew && adapterNames(from).some(isOverwritten))
    throw new ConfigError(
      "create_new_adapter: the old adapter lies in output_dir: choose another output_dir, so that it stays as it is",
    );
  return isNew ? adapterNames(from) : baseAdaptersBelow(from);
}

/** The adapters below the one in a folder, relative to it and in the order in which they are merged. */
async function mergedFirst(folder: string): Promise<string[]> {
  const opened = await openBaseAdapters(await baseAdaptersBelow(folder), tuners);
  return opened.map(({ files }) => relative(folder, files.path).replaceAll("\\", "/"));
}

function aboutBase(folders: readonly string[]): string {
  return (
    `trained over ${folders.join(", ")}: merged into the base, in f32. The new adapter is right only over them: they are copied to base_adapters in output_dir, ` +
    "where attune finds them. PEFT does not, and has to merge them first, as README.md there shows"
  );
}

/** What the recipe says of the model that trains. */
function partsOf(recipe: Recipe, files: ModelFiles, tuning: Tuning, baseAdapters: readonly OpenedAdapter[]): Parts {
  return {
    files,
    tuning,
    baseAdapters,
    seed: recipe.seed,
    gradientCheckpointing: recipe.gradient_checkpointing,
    disableDropout: recipe.disable_dropout,
    noiseAlpha: recipe.neftune_noise_alpha ?? 0,
    optimizer: {
      name: recipe.optim,
      beta1: recipe.adam_beta1,
      beta2: recipe.adam_beta2,
      eps: recipe.adam_epsilon,
      weightDecay: recipe.weight_decay,
      args: recipe.optim_args ?? {},
    },
  };
}

/** What a method may begin with. */
function startFor({ seed }: Recipe, { tokenizer }: RunData): Start {
  return { rng: Rng.for(seed, "start"), encode: (text) => tokenizer.encode(text, { special: false }) };
}

/** What the user should know of a base. */
function noticesOf({ notices, ownDropout }: LanguageModel): string[] {
  if (ownDropout.size === 0) return [...notices];
  const places = [...ownDropout].map(([key, p]) => `${key} ${p}`).join(", ");
  return [
    ...notices,
    `the model trains with the dropout of its own config.json (${places}), as in transformers; disable_dropout=true leaves it out`,
  ];
}

function settingsOf(recipe: Recipe, { totalSteps, stepsPerEpoch }: StepPlan): TrainSettings {
  return {
    learningRate: recipe.learning_rate,
    schedule: recipe.lr_scheduler_type,
    scheduleSettings: recipe.lr_scheduler_kwargs,
    warmupSteps: warmupStepsOf(recipe, totalSteps),
    maxGradNorm: recipe.max_grad_norm,
    seed: recipe.seed,
    evalSteps: everySteps(recipe.eval_strategy, recipe.eval_steps, stepsPerEpoch) || (recipe.do_eval ? maxSteps : 0),
    saveSteps: everySteps(recipe.save_strategy, recipe.save_steps, stepsPerEpoch),
    evalBatchSize: recipe.per_device_train_batch_size,
    best: bestOf(recipe),
  };
}

function bestOf(recipe: Recipe): BestSettings {
  const metric = recipe.metric_for_best_model ?? "loss";
  return {
    metric,
    isGreaterBetter: recipe.greater_is_better ?? !metric.endsWith("loss"),
    patience: recipe.early_stopping_steps,
    threshold: recipe.early_stopping_threshold,
    isSaved: recipe.load_best_model_at_end || recipe.save_strategy === "best",
  };
}

/** Puts the weights of the best evaluation in the place of the last, where the recipe wants these, and says which they are. */
async function takeBest(recipe: Recipe, output: Output, progress: Progress, emit: Emit): Promise<SavedBest | null> {
  const { best } = progress;
  if (!recipe.load_best_model_at_end || best === null) return null;
  const checkpoint = output.checkpointOf(best);
  const which = `${bestName(recipe)} ${Number(best.score.toPrecision(5))} after step ${best.step}`;
  if (best.step < progress.step) {
    try {
      await output.takeWeights(checkpoint);
    } catch (error) {
      if (!(error instanceof CheckpointError)) throw error;
      emit(warning(`the best weights (${which}) cannot be had: ${error.message}. Those of the last step are saved instead`));
      return null;
    }
  }
  progress.evalLoss = best.evalLoss;
  progress.metrics = best.metrics;
  emit(info(`the best weights are saved as the result: ${which} of ${progress.step}`));
  return { step: best.step, score: best.score, checkpoint };
}

function whyStopped(recipe: Recipe, { step, best, badEvaluations }: Progress, task: Task): string {
  const ofTask = task.whyStop?.() ?? null;
  if (ofTask !== null) return `stopped early, after step ${step}: ${ofTask}`;
  const times = badEvaluations === 1 ? "the last evaluation" : `the last ${badEvaluations} evaluations`;
  return (
    `stopped early, after step ${step}: ${times} brought no better ${bestName(recipe)} than ` +
    `${Number(best!.score.toPrecision(5))}, after step ${best!.step}`
  );
}

const bestName = (recipe: Recipe) => `eval_${plainName(bestOf(recipe).metric)}`;

function everySteps(strategy: "no" | "steps" | "epoch" | "best", steps: number, stepsPerEpoch: number): number {
  return { no: 0, best: 0, steps, epoch: stepsPerEpoch }[strategy];
}
