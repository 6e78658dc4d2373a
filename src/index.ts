/**
 * attune: fine-tuning of language models in TypeScript. Everything a program outside may import.
 *
 * @module
 */

import { everyMethod, runWork } from "./backends/index.js";
import { InterruptedError } from "./errors.js";
import { readRecipe } from "./recipe/parse.js";
import { checkWork, parseWork, settingsOfWork } from "./recipe/pipeline.js";
import type { RecipeSettings } from "./recipe/recipe-settings.js";
import type { RewardFunction } from "./rewards/functions.js";
import type { RecordedEvent, RunResults } from "./runs/events.js";

export { attuneHome } from "./engine/home.js";
export type { ComputeType } from "./engine/kernels.js";
export * from "./errors.js";
export type { SurvivingChange } from "./export/change.js";
export { type ExportTarget, exportTargets, type NumberType, numberTypes } from "./export/choices.js";
export {
  type CombinationMethod,
  type CombineOptions,
  combinationMethods,
  combineAdapters,
  type WeightedAdapter,
} from "./export/combine-adapters.js";
export { type ExportOptions, type ExportReport, exportModel } from "./export/export.js";
export { exportOfRecipe, type RecipeExport } from "./export/export-recipe.js";
export type { Drift } from "./export/measure.js";
export type { Reading, Receipt, Verdict } from "./export/receipt.js";
export { Chat, type ChatFacts, type ChatOptions, type ReplyEnd, type ReplyOptions } from "./generate/chat.js";
export { type Classification, Classifier, type ClassifierOptions } from "./generate/classifier.js";
export { type DrawnPair, type DrawOptions, drawPairs, type PairToDraw } from "./generate/draw-pairs.js";
export type { SamplingOptions } from "./generate/sampling.js";
export type { HubOptions } from "./io/hub/hub.js";
export type { ModelFiles, TensorEntry } from "./io/model-files.js";
export { type PythonPackageOptions, pythonPackageModel } from "./io/python-package.js";
export { resolveModel } from "./io/resolve.js";
export type { ReadRowFile, RowFile, RowKind } from "./io/row-file.js";
export { writeRandomModel } from "./models/random-model.js";
export type { Metrics } from "./objectives/metrics.js";
export {
  cohenKappa,
  fleissKappa,
  krippendorffAlpha,
  type Ratings,
  rawAgreement,
  type Share,
  shareOf,
} from "./preference/agreement.js";
export { bradleyTerry, type Comparison, type ModelRating, type Ranking } from "./preference/bradley-terry.js";
export {
  adapterHash,
  type Drawing,
  drawingKey,
  type ItemFile,
  type ItemsToLabel,
  openItemFile,
  readItems,
} from "./preference/label-items.js";
export { type AgreementReport, type LabelReport, labelReport, type RaterReport } from "./preference/label-report.js";
export {
  itemIdOf,
  type Judgement,
  type LabelProgress,
  LabelSession,
  type LabelSessionOptions,
  type Shown,
} from "./preference/label-session.js";
export {
  itemOf,
  type Label,
  type LabelItem,
  type LabelRow,
  type LabelStore,
  labels,
  openLabelStore,
  readLabels,
} from "./preference/label-store.js";
export type { RecipeSettings, StageSettings } from "./recipe/recipe-settings.js";
export type { RewardFunction } from "./rewards/functions.js";
export type { RewardSample } from "./rewards/reward.js";
export type * from "./runs/events.js";
export { followRun } from "./runs/follow.js";
export { type RunState, type RunStatus, readRun } from "./runs/status.js";
export type { Message, ToolCall } from "./text/chat-template.js";

/** A recipe under LLaMA-Factory's key names, as an object, or the path of a YAML or JSON file. See docs/recipe.md. */
export type RecipeInput = string | RecipeSettings;

/** What `checkRecipe` makes of settings. */
export interface CheckedRecipe {
  /** Every default written out; `train` takes it. */
  readonly recipe: RecipeSettings;
  /** One line for each setting that was renamed, or dropped with the reason. `train` tells them as events; of a checked recipe there are none left. */
  readonly notices: readonly string[];
}

/**
 * Checks settings of whose types nothing is known, such as what a YAML parser or a form gives. Throws ConfigError that names every problem.
 *
 *     const { recipe, notices } = checkRecipe(JSON.parse(text));
 *     await train(recipe);
 */
export function checkRecipe(settings: Readonly<Record<string, unknown>>): CheckedRecipe {
  const { notices, ...work } = checkWork(settings, everyMethod);
  return { recipe: settingsOfWork(work), notices };
}

/** How a run is watched and ended. */
export interface TrainOptions {
  /** Called with every event, in order. */
  readonly onEvent?: (event: RecordedEvent) => void;
  /** Ends the run after the step that is under way; what was trained is saved. */
  readonly signal?: AbortSignal;
  /** Functions that judge answers, by the names that the recipe's `rewards` have for them: docs/rewards.md. */
  readonly rewards?: Readonly<Record<string, RewardFunction>>;
}

/**
 * Runs a recipe and resolves when it is done and saved; of a pipeline (`stages`), the last stage's results. Throws AttuneError: ConfigError, DataError or ModelError for bad input, DivergedError,
 * NoSpaceError, DoesNotFitError, and InterruptedError where `signal` ended the run before its last step.
 */
export async function train(
  recipe: RecipeInput,
  { onEvent = () => {}, signal, rewards }: TrainOptions = {},
): Promise<RunResults> {
  let results: RunResults | null = null;
  for await (const event of trainEvents(recipe, signal, rewards)) {
    onEvent(event);
    if (event.type !== "end") continue;
    if (event.interrupted)
      throw new InterruptedError("the run was stopped and what it learnt is saved; resume_from_checkpoint: true goes on with it");
    results = event.results;
  }
  return results!;
}

/** The same as a stream of events; the run waits while an event is being handled. */
export async function* trainEvents(
  recipe: RecipeInput,
  signal: AbortSignal = new AbortController().signal,
  rewards: Readonly<Record<string, RewardFunction>> = {},
): AsyncGenerator<RecordedEvent> {
  const { notices, ...work } =
    typeof recipe === "string" ? parseWork(await readRecipe(recipe), [], everyMethod) : checkWork(recipe, everyMethod);
  yield* runWork(work, { signal, notices, rewardFunctions: rewards });
}
