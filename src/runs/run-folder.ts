import { readdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { NoSpaceError } from "../errors.js";
import { writeFileAtomic } from "../io/disk.js";
import { formatRecipe } from "../recipe/parse.js";
import type { Recipe } from "../recipe/schema.js";
import type { EndEvent, FailedEvent, NoticeEvent, RecordedEvent, RunEvent, StartEvent } from "./events.js";
import { eventsPath, readEvents } from "./events-file.js";
import { LogFile } from "./log-file.js";
import { evalKeys, LogHistory } from "./log-history.js";
import { plotCurve } from "./plot.js";
import { EventFile, hasEventFiles, lastLoggingDir, newLoggingDir, scalarsOf } from "./tensorboard.js";

const logName = "trainer_log.jsonl";
const stateName = "trainer_state.json";
/** Made at the end of a run: a new or resumed run removes them, so that they never belong to another one. */
const resultPattern =
  /^((all|train|eval|predict)_results\.json|generated_predictions\.jsonl|reward_gate\.json|training_.*\.png)$/;

/**
 * The files that a run writes for its users, made from its events alone: events.jsonl has every event from the first on, and LLaMA-Factory's
 * trainer_log.jsonl, trainer_state.json, *_results.json and pictures follow from it. Before the start, events are added to what an earlier run
 * left; the start replaces the file by what stays of that run, up to the step that this one goes on from, and what came since: so a resumed run
 * continues as if it had never stopped. TensorBoard's files follow from the same log. No number in a file is NaN: what is not finite is left out, or null in events.jsonl.
 */
export class RunFolder {
  readonly #recipe: Recipe;
  readonly #leftovers: readonly string[];
  readonly #history = new LogHistory();
  /** Events of this run before its start. */
  readonly #early: RecordedEvent[] = [];
  #events: LogFile;
  /** There from the start on. */
  #log: LogFile | undefined;
  /** TensorBoard's, where the recipe asks for it, and how many entries of the history are in it. */
  #board: EventFile | undefined;
  #entriesOnBoard = 0;
  #lastMs: number;
  #isFlushed = false;

  private constructor(recipe: Recipe, leftovers: readonly string[], events: LogFile, last: RecordedEvent | undefined) {
    this.#recipe = recipe;
    this.#leftovers = leftovers;
    this.#events = events;
    this.#lastMs = Date.parse(last?.time ?? "") || 0;
    if (last?.type === "queued") this.#early.push(last);
  }

  /**
   * Begins to record into a folder whose lock is held; the start removes `leftovers`. Throws NoSpaceError.
   */
  static async open(recipe: Recipe, leftovers: readonly string[]): Promise<RunFolder> {
    const path = eventsPath(recipe.output_dir);
    let last: RecordedEvent | undefined;
    const earlier = async function* () {
      for await (const event of readEvents(path)) {
        last = event;
        yield event;
      }
    };
    return new RunFolder(recipe, leftovers, await LogFile.create(path, earlier()), last);
  }

  /**
   * Writes an event and what follows from it; returns what was recorded. The end also draws pictures: one that cannot be drawn is told by a
   * notice, for it is no reason to fail. Throws NoSpaceError on a full disk, CheckpointError if somebody took away or changed what was written.
   */
  async write(event: RunEvent): Promise<RecordedEvent[]> {
    if (event.type === "progress") return [this.#stamp(event)];
    this.#isFlushed = false;
    if (event.type === "start") await this.#start(event);
    const line = this.#log && this.#history.add(event, this.#recipe.logging_steps);
    const notice = event.type === "end" ? await this.#finish(event) : undefined;
    const recorded = [...(notice ? [notice] : []), event].map((one) => this.#stamp(one));
    for (const one of recorded) await this.#events.append(one);
    await this.#writeBoard();
    if (this.#log === undefined) this.#early.push(...recorded);
    else if (line) await this.#log.append(line);
    else await this.#log.check();
    if (event.type === "eval" || event.type === "checkpoint") await this.#writeState();
    return recorded;
  }

  /** Writes how the run failed, if the folder can still be written to. */
  async fail(event: FailedEvent): Promise<RecordedEvent> {
    try {
      const [recorded] = await this.write(event);
      return recorded!;
    } catch {
      return this.#stamp(event); // what it tells is more than that
    }
  }

  /** Waits until all is on the disk. Throws NoSpaceError, CheckpointError. */
  async flush(): Promise<void> {
    if (this.#isFlushed) return;
    await this.#events.sync();
    if (this.#log) {
      await this.#log.sync();
      await this.#board?.sync();
      await this.#writeState();
    }
    this.#isFlushed = true;
  }

  /** Closes the files. Called after a failed run too: what can still be written then is written. */
  async close(): Promise<void> {
    await this.flush().catch(() => {}); // whoever has to know has called it before
    await Promise.allSettled([this.#events.close(), this.#log?.close(), this.#board?.close()]);
  }

  /** trainer_state.json as of the last event; with `checkpoint`, the one that lies in it. */
  trainerState(checkpoint?: string): string {
    const { logging_steps, eval_steps, save_steps, num_train_epochs, per_device_train_batch_size } = this.#recipe;
    const history = this.#history;
    const { best } = history;
    const isOwn = best !== undefined && best.step === history.step;
    return toJson({
      best_global_step: best?.step ?? null,
      best_metric: best?.score ?? null,
      best_model_checkpoint: (isOwn ? checkpoint : undefined) ?? best?.checkpoint ?? null,
      epoch: history.epoch,
      eval_steps,
      global_step: history.step,
      is_hyper_param_search: false,
      is_local_process_zero: true,
      is_world_process_zero: true,
      log_history: history.log,
      logging_steps,
      max_steps: history.totalSteps,
      num_input_tokens_seen: history.tokens,
      num_train_epochs,
      save_steps,
      stateful_callbacks: {},
      total_flos: history.totalFlos,
      train_batch_size: per_device_train_batch_size,
      trial_name: null,
      trial_params: null,
    });
  }

  async #start({ resumedFromStep }: StartEvent): Promise<void> {
    const { output_dir: outputDir, logging_steps: loggingSteps } = this.#recipe;
    for (const path of this.#leftovers) await rm(path, { recursive: true, force: true });
    for (const name of await readdir(outputDir)) if (resultPattern.test(name)) await rm(join(outputDir, name));

    const path = eventsPath(outputDir);
    const history = this.#history;
    const early = this.#early;
    const logLines: object[] = [];
    const staying = async function* () {
      for await (const event of eventsUpTo(path, resumedFromStep)) {
        yield event;
        const line = history.add(event, loggingSteps);
        if (line) logLines.push(line);
      }
      for (const event of early) {
        yield event;
        history.add(event, loggingSteps);
      }
    };
    const before = this.#events;
    this.#events = await LogFile.create(path, staying());
    await before.close();
    this.#log = await LogFile.create(join(outputDir, logName), logLines);
    await writeFileAtomic(join(outputDir, "recipe.yaml"), formatRecipe(this.#recipe));
    await this.#openBoard(resumedFromStep);
  }

  /** A resumed run writes on beside the files of the run before; where these are not, all that the history has is written. */
  async #openBoard(resumedFromStep: number): Promise<void> {
    const { report_to, logging_dir, output_dir } = this.#recipe;
    if (!report_to.includes("tensorboard")) return;
    const before = resumedFromStep === 0 ? null : (logging_dir ?? (await lastLoggingDir(output_dir)));
    const isNew = before === null || !(await hasEventFiles(before));
    this.#board = await EventFile.create(before ?? logging_dir ?? newLoggingDir(output_dir), isNew ? 0 : resumedFromStep + 1);
    this.#entriesOnBoard = isNew ? 0 : this.#history.log.length;
    await this.#writeBoard();
  }

  async #writeBoard(): Promise<void> {
    if (this.#board === undefined) return;
    for (const entry of this.#history.log.slice(this.#entriesOnBoard))
      await this.#board.add((entry as { step: number }).step, scalarsOf(entry), this.#lastMs);
    this.#entriesOnBoard = this.#history.log.length;
  }

  async #finish({ results }: EndEvent): Promise<NoticeEvent | undefined> {
    const { eval_loss, eval_metrics = {}, predictions, machine, ...ofTraining } = results;
    const train = { ...ofTraining, ...machine };
    const evaluation = eval_loss === undefined ? {} : { eval_loss, ...evalKeys(eval_metrics) };
    await this.#write("all_results.json", toJson({ ...train, ...evaluation, ...predictions }));
    if (this.#recipe.do_train) await this.#write("train_results.json", toJson(train));
    if (predictions !== undefined) await this.#write("predict_results.json", toJson({ epoch: results.epoch, ...predictions }));
    if (eval_loss !== undefined) await this.#write("eval_results.json", toJson({ epoch: results.epoch, ...evaluation }));
    await this.#writeState();
    if (!this.#recipe.plot_loss || this.#history.train.length === 0) return undefined;
    try {
      await this.#draw();
      return undefined;
    } catch (error) {
      if (error instanceof NoSpaceError) throw error;
      return { type: "notice", level: "warning", message: `The loss could not be drawn: ${(error as Error).message}` };
    }
  }

  /** A picture of the loss, one of it on held-out rows, and one of each metric. */
  async #draw(): Promise<void> {
    const { model, method, objective, step, train, evaluation, metrics } = this.#history;
    const subtitle = `${method}, ${objective}, ${step} steps`;
    const draw = async (name: string, curve: Omit<Parameters<typeof plotCurve>[0], "subtitle">) =>
      this.#write(`training_${name.replaceAll(/[^\w.-]/g, "_")}.png`, await plotCurve({ subtitle, ...curve }));
    await draw("loss", { title: `Loss of ${model}`, quantity: "loss", train, evaluation });
    if (evaluation.length > 0)
      await draw("eval_loss", { title: `Loss of ${model} on held-out rows`, quantity: "loss", train: [], evaluation });
    for (const [name, points] of metrics)
      await draw(name, { title: `${name} of ${model}`, quantity: name, train: points, evaluation: [] });
  }

  #stamp(event: RunEvent): RecordedEvent {
    this.#lastMs = Math.max(Date.now(), this.#lastMs + 1);
    return { ...event, time: new Date(this.#lastMs).toISOString() };
  }

  async #writeState(): Promise<void> {
    await this.#write(stateName, this.trainerState());
  }

  async #write(name: string, contents: string | Uint8Array): Promise<void> {
    await writeFileAtomic(join(this.#recipe.output_dir, name), contents);
  }
}

/** The events of an earlier run up to a step. */
async function* eventsUpTo(path: string, step: number): AsyncGenerator<RecordedEvent> {
  if (step === 0) return;
  let between: RecordedEvent[] = [];
  for await (const event of readEvents(path)) {
    if (!("step" in event)) {
      between.push(event);
      continue;
    }
    if (event.step > step) return;
    yield* between;
    between = [];
    yield event;
  }
}

/** Without what JSON cannot hold: Python would read null where it expects a number. */
function toJson(value: object): string {
  const dropNotFinite = (_: string, one: unknown) => (typeof one === "number" && !Number.isFinite(one) ? undefined : one);
  return `${JSON.stringify(value, dropNotFinite, 2)}\n`;
}
