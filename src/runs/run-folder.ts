import { createReadStream } from "node:fs";
import { rm, stat } from "node:fs/promises";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { NoSpaceError } from "../errors.js";
import { makeFolder, systemErrorCode, writeFileAtomic } from "../io/disk.js";
import { parseJson } from "../io/strict-json.js";
import type { Metrics } from "../objectives/objective.js";
import type { EndEvent, EvalEvent, NoticeEvent, RunEvent, StartEvent, StepEvent } from "./events.js";
import { LogFile } from "./log-file.js";
import { type LossPoint, plotLoss } from "./plot.js";

/** What the files of a run say beside its events. */
export interface RunDescription {
  readonly outputDir: string;
  /** The recipe as it runs, as YAML. */
  readonly recipe: string;
  readonly loggingSteps: number;
  readonly evalSteps: number;
  readonly saveSteps: number;
  readonly numTrainEpochs: number;
  readonly trainBatchSize: number;
  readonly plotLoss: boolean;
}

const eventsName = "events.jsonl";
const logName = "trainer_log.jsonl";
const stateName = "trainer_state.json";
/** Made at the end of a run: a new or resumed run removes them, so that they never belong to another one. */
const resultNames = [
  "all_results.json",
  "train_results.json",
  "eval_results.json",
  "training_loss.png",
  "training_eval_loss.png",
];

/**
 * The files that a run writes for its users, made from its events alone: events.jsonl has every event, and LLaMA-Factory's
 * trainer_log.jsonl, trainer_state.json, *_results.json and training_loss.png follow from it. A resumed run reads events.jsonl up to the
 * step it goes on from and continues as if it had never stopped. No number in a file is NaN: what is not finite is left out, or null in
 * events.jsonl.
 *
 * Source of the formats: LLaMA-Factory src/llamafactory/train/callbacks.py (LogCallback) and transformers' TrainerState.
 */
export class RunFolder {
  readonly #run: RunDescription;
  readonly #history = new LossHistory();
  /** Events before the start of the run: only the start says what of an earlier run stays. */
  #early: RunEvent[] = [];
  #events: LogFile | undefined;
  #log: LogFile | undefined;

  constructor(run: RunDescription) {
    this.#run = run;
  }

  /**
   * Writes what follows from one event. The end also draws the loss; returned is what went wrong with it, for a picture is no reason to
   * fail. Throws NoSpaceError on a full disk, CheckpointError if somebody took away or changed what was written.
   */
  async write(event: RunEvent): Promise<NoticeEvent | undefined> {
    if (event.type === "progress") return undefined;
    if (event.type === "start") await this.#open(event);
    if (this.#events === undefined) {
      this.#early.push(event);
      return undefined;
    }
    await this.#events.append(event);
    const line = this.#history.add(event, this.#run.loggingSteps);
    if (line) await this.#log?.append(line);
    else await this.#log?.check();
    if (event.type === "eval" || event.type === "checkpoint") await this.#writeJson(stateName, this.trainerState);
    return event.type === "end" ? await this.#finish(event) : undefined;
  }

  /** trainer_state.json as of the last event: a checkpoint has one, too. */
  get trainerState(): Record<string, unknown> {
    const { loggingSteps, evalSteps, saveSteps, numTrainEpochs, trainBatchSize } = this.#run;
    const history = this.#history;
    const best = history.bestEvaluation;
    return {
      best_global_step: best?.step ?? null,
      best_metric: best?.evalLoss ?? null,
      best_model_checkpoint: null,
      epoch: history.epoch,
      eval_steps: evalSteps,
      global_step: history.step,
      is_hyper_param_search: false,
      is_local_process_zero: true,
      is_world_process_zero: true,
      log_history: history.log,
      logging_steps: loggingSteps,
      max_steps: history.totalSteps,
      num_input_tokens_seen: history.tokens,
      num_train_epochs: numTrainEpochs,
      save_steps: saveSteps,
      stateful_callbacks: {},
      total_flos: history.totalFlos,
      train_batch_size: trainBatchSize,
      trial_name: null,
      trial_params: null,
    };
  }

  /** Finishes the logs; needed also after a run that failed. */
  async close(): Promise<void> {
    const logs = [this.#events, this.#log].filter((log) => log !== undefined);
    if (logs.length === 0) return;
    this.#events = undefined;
    this.#log = undefined;
    const finished = await Promise.allSettled([this.#writeJson(stateName, this.trainerState), ...logs.map((log) => log.close())]);
    const failed = finished.find(({ status }) => status === "rejected");
    if (failed?.status === "rejected") throw failed.reason;
  }

  async #open(start: StartEvent): Promise<void> {
    const { outputDir, recipe, loggingSteps } = this.#run;
    await makeFolder(outputDir);
    for (const name of resultNames) await rm(join(outputDir, name), { force: true });

    const path = join(outputDir, eventsName);
    const history = this.#history;
    const logLines: object[] = [];
    const earlier = async function* () {
      if (start.resumedFromStep === 0) return;
      for await (const event of eventsUpTo(path, start.resumedFromStep)) {
        const line = history.add(event, loggingSteps);
        if (line) logLines.push(line);
        yield event;
      }
    };
    this.#events = await LogFile.create(path, earlier());
    this.#log = await LogFile.create(join(outputDir, logName), logLines);
    await writeFileAtomic(join(outputDir, "recipe.yaml"), recipe);
    for (const event of this.#early) await this.#events.append(event);
    this.#early = [];
  }

  async #finish({ results }: EndEvent): Promise<NoticeEvent | undefined> {
    const { eval_loss, eval_metrics = {}, ...train } = results;
    const evaluation = eval_loss === undefined ? {} : { eval_loss, ...evalKeys(eval_metrics) };
    await this.#writeJson("all_results.json", { ...train, ...evaluation });
    await this.#writeJson("train_results.json", train);
    if (eval_loss !== undefined) await this.#writeJson("eval_results.json", { epoch: results.epoch, ...evaluation });
    await this.#writeJson(stateName, this.trainerState);
    if (!this.#run.plotLoss || this.#history.train.length === 0) return undefined;
    try {
      await this.#draw();
      return undefined;
    } catch (error) {
      if (error instanceof NoSpaceError) throw error;
      return { type: "notice", level: "warning", message: `The loss could not be drawn: ${(error as Error).message}` };
    }
  }

  async #draw(): Promise<void> {
    const { outputDir } = this.#run;
    const { model, method, objective, step, train, evaluation } = this.#history;
    const subtitle = `${method}, ${objective}, ${step} steps`;
    await writeFileAtomic(
      join(outputDir, "training_loss.png"),
      await plotLoss({ title: `Loss of ${model}`, subtitle, train, evaluation }),
    );
    if (evaluation.length === 0) return;
    const evalPlot = await plotLoss({ title: `Loss of ${model} on held-out rows`, subtitle, train: [], evaluation });
    await writeFileAtomic(join(outputDir, "training_eval_loss.png"), evalPlot);
  }

  async #writeJson(name: string, value: object): Promise<void> {
    await writeFileAtomic(join(this.#run.outputDir, name), `${JSON.stringify(value, dropNotFinite, 2)}\n`);
  }
}

/** Passes the events of a run on as they come, each after it was written. */
export async function* recordRun(events: AsyncIterable<RunEvent>, folder: RunFolder): AsyncGenerator<RunEvent> {
  let hasFailed = false;
  try {
    for await (const event of events) {
      const notice = await folder.write(event);
      if (notice) yield notice;
      yield event;
    }
  } catch (error) {
    hasFailed = true;
    throw error;
  } finally {
    await folder.close().catch((error: unknown) => {
      if (!hasFailed) throw error; // the first error says more
    });
  }
}

/**
 * The events of a run, in order. A torn last line, which a run that was killed may leave, is passed over; so is any other line that is
 * no event. A file that is not there has none.
 */
export async function* readEvents(path: string): AsyncGenerator<RunEvent> {
  if (!(await isFile(path))) return;
  const input = createReadStream(path, "utf8");
  try {
    for await (const line of createInterface({ input, crlfDelay: Number.POSITIVE_INFINITY })) {
      const event = parseEvent(line);
      if (event) yield event;
    }
  } catch (error) {
    if (systemErrorCode(error) !== "ENOENT") throw error;
  } finally {
    input.destroy();
  }
}

async function isFile(path: string): Promise<boolean> {
  return await stat(path).then(
    (stats) => stats.isFile(),
    () => false,
  );
}

function parseEvent(line: string): RunEvent | undefined {
  try {
    const value = parseJson(line);
    const isEvent = typeof value === "object" && value !== null && "type" in value && typeof value.type === "string";
    return isEvent ? (value as RunEvent) : undefined;
  } catch {
    return undefined;
  }
}

async function* eventsUpTo(path: string, step: number): AsyncGenerator<RunEvent> {
  for await (const event of readEvents(path)) {
    if ("step" in event && event.step > step) return;
    yield event;
  }
}

/** What the log files need of the events so far. */
class LossHistory {
  readonly log: object[] = [];
  readonly train: LossPoint[] = [];
  readonly evaluation: LossPoint[] = [];
  bestEvaluation: EvalEvent | undefined;
  model = "";
  method = "";
  objective = "";
  step = 0;
  totalSteps = 0;
  epoch = 0;
  tokens = 0;
  totalFlos = 0;
  #lastStep: StepEvent | undefined;
  #lossSum = 0;
  #lossCount = 0;

  /** Returns a line for trainer_log.jsonl where due: after every `loggingSteps` steps, after the last one, and for an evaluation. */
  add(event: RunEvent, loggingSteps: number): object | undefined {
    switch (event.type) {
      case "start":
        this.model = lastPartOf(event.model);
        this.method = event.method;
        this.objective = event.objective;
        this.totalSteps = event.totalSteps;
        return undefined;
      case "step":
        return this.#addStep(event, loggingSteps);
      case "eval":
        return this.#addEvaluation(event);
      case "end": {
        const { epoch, train_loss, train_runtime, train_samples_per_second, train_steps_per_second, total_flos } = event.results;
        const summary = { train_loss, train_runtime, train_samples_per_second, train_steps_per_second, total_flos };
        this.totalFlos = total_flos;
        if (!event.interrupted) this.log.push(finiteOf({ epoch, step: this.step, ...summary }));
        return undefined;
      }
      default:
        return undefined;
    }
  }

  #addStep(event: StepEvent, loggingSteps: number): object | undefined {
    this.step = event.step;
    this.totalSteps = event.totalSteps;
    this.epoch = event.epoch;
    this.tokens += event.tokens;
    this.#lastStep = event;
    this.#lossSum += event.loss;
    this.#lossCount++;
    this.train.push({ step: event.step, loss: event.loss });
    if (event.step % loggingSteps !== 0 && event.step !== event.totalSteps) return undefined;

    const loss = this.#lossSum / this.#lossCount;
    [this.#lossSum, this.#lossCount] = [0, 0];
    const { epoch, gradNorm, learningRate, step } = event;
    this.log.push(finiteOf({ epoch, grad_norm: gradNorm, learning_rate: learningRate, loss, step }));
    return this.#logLine({ loss, lr: learningRate }, event.elapsedMs);
  }

  #addEvaluation(event: EvalEvent): object {
    const { step, epoch, evalLoss, metrics = {}, elapsedMs } = event;
    if (evalLoss < (this.bestEvaluation?.evalLoss ?? Number.POSITIVE_INFINITY)) this.bestEvaluation = event;
    this.evaluation.push({ step, loss: evalLoss });
    const measured = { eval_loss: evalLoss, ...evalKeys(metrics) };
    this.log.push(finiteOf({ epoch, ...measured, step }));
    return this.#logLine(measured, elapsedMs);
  }

  #logLine(values: object, elapsedMs: number): object {
    const last = this.#lastStep;
    return finiteOf({
      current_steps: this.step,
      total_steps: this.totalSteps,
      ...values,
      epoch: this.epoch,
      percentage: this.totalSteps > 0 ? Math.round((10_000 * this.step) / this.totalSteps) / 100 : 100,
      elapsed_time: clock(elapsedMs),
      remaining_time: clock(last?.remainingMs ?? 0),
      throughput: elapsedMs > 0 ? Math.round((100_000 * this.tokens) / elapsedMs) / 100 : 0,
      total_tokens: this.tokens,
    });
  }
}

/** Metrics under the names that transformers' Trainer gives them: `eval_accuracy`. */
function evalKeys(metrics: Metrics): Metrics {
  return Object.fromEntries(Object.entries(metrics).map(([name, value]) => [`eval_${name}`, value]));
}

/** `0:03:20`, `1 day, 2:03:04`: Python's str(timedelta), as LLaMA-Factory writes it. */
function clock(ms: number): string {
  const seconds = Math.max(0, Math.round(ms / 1000));
  const days = Math.floor(seconds / 86_400);
  const two = (value: number) => String(value).padStart(2, "0");
  const time = `${Math.floor((seconds % 86_400) / 3600)}:${two(Math.floor((seconds % 3600) / 60))}:${two(seconds % 60)}`;
  return days === 0 ? time : `${days} day${days === 1 ? "" : "s"}, ${time}`;
}

function lastPartOf(path: string): string {
  return (
    path
      .replace(/[\\/]+$/, "")
      .split(/[\\/]/)
      .at(-1) ?? path
  );
}

/** Without the fields that JSON cannot hold: Python would read null where it expects a number. */
function finiteOf(fields: Record<string, unknown>): object {
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => typeof value !== "number" || Number.isFinite(value)));
}

function dropNotFinite(_key: string, value: unknown): unknown {
  return typeof value === "number" && !Number.isFinite(value) ? undefined : value;
}
