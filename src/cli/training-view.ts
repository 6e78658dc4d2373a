import { existsSync } from "node:fs";
import { join } from "node:path";
import { objectives } from "../objectives/index.js";
import type { Metrics } from "../objectives/metrics.js";
import type { Recipe } from "../recipe/schema.js";
import type { EndEvent, NoticeEvent, RunEvent, StartEvent, StepEvent } from "../runs/events.js";
import { ProgressBar } from "./progress-bar.js";
import { commandLine, fitsCommand, invocation, systemFlag } from "./shell.js";
import { type CurvePoint, sketchLoss } from "./sketch.js";
import {
  displayWidth,
  escapeControls,
  formatBytes,
  formatCount,
  formatDuration,
  formatLoss,
  formatRate,
  hasUnicode,
  type Io,
  padTo,
  type Style,
  styleFor,
  widthOf,
} from "./terminal.js";
import { type Words, wordsFor } from "./words/index.js";

/** What a run shows while it works: a bar on a terminal, a line every `logging_steps` otherwise. */
export class TrainingView {
  end: EndEvent | undefined;
  readonly #recipe: Recipe;
  readonly #pipelineDir: string | undefined;
  readonly #io: Io;
  readonly #style: Style;
  readonly #words: Words["train"];
  readonly #bar: ProgressBar;
  readonly #losses: CurvePoint[] = [];
  /** Moving average of the loss, and the weight of the steps in it so far. */
  #average = { sum: 0, weight: 0 };
  /** Steps that no printed line has told of yet. */
  #pending: StepEvent[] = [];

  /** `pipelineDir`: the folder of the pipeline that the recipe is a stage of. */
  constructor(recipe: Recipe, io: Io, pipelineDir?: string) {
    this.#recipe = recipe;
    this.#pipelineDir = pipelineDir;
    this.#io = io;
    this.#style = styleFor(io.stdout, io.env);
    this.#words = wordsFor(io.env).train;
    this.#bar = new ProgressBar(io);
  }

  say(line: string): void {
    this.#bar.print(line);
  }

  leaveBar(): void {
    this.#bar.end();
  }

  show(event: RunEvent): void {
    const words = this.#words;
    switch (event.type) {
      case "stage":
        this.say(`\n${this.#style.bold(words.stage(event.number, event.of, event.objective))}`);
        if (event.isDone) this.say(this.#style.dim(`  ${words.stageIsDone(escapeControls(event.outputDir))}`));
        break;
      case "progress":
        if ("doneBytes" in event) this.#bar.showBytes(event.what, event.doneBytes, event.totalBytes);
        else this.#bar.showRows(event.what, event.doneRows, event.totalRows);
        break;
      case "start":
        this.#bar.clear();
        this.#showStart(event);
        break;
      case "step":
        this.#showStep(event);
        break;
      case "eval":
        this.say(words.evaluated(event.step, this.#style.bold(formatLoss(event.evalLoss)), inWords(event.metrics)));
        break;
      case "checkpoint":
        this.say(this.#style.dim(words.saved(event.step, escapeControls(event.path))));
        break;
      case "notice":
        this.#showNotice(event);
        break;
      case "end":
        this.end = event;
        break;
      case "failed": // thrown next, and printed as every error is
        this.leaveBar();
    }
  }

  #showNotice({ level, message }: NoticeEvent): void {
    const text = escapeControls(message);
    this.say(
      level === "warning" ? `${this.#style.yellow(wordsFor(this.#io.env).program.warning)} ${text}` : this.#style.dim(text),
    );
  }

  #showStart(event: StartEvent): void {
    const { trainableParams, allParams, trainRows, evalRows, totalSteps, resumedFromStep, machine } = event;
    const { predictedPeakBytes, availableBytes } = event;
    const { model_name_or_path, finetuning_type, stage, learning_rate } = this.#recipe;
    const words = this.#words;
    const share = allParams > 0 ? ` (${Number(((100 * trainableParams) / allParams).toPrecision(2))} %)` : "";
    this.say(`${this.#style.bold(escapeControls(model_name_or_path))} ${finetuning_type}, ${stage}`);
    this.say(`  ${words.weights(formatCount(trainableParams), formatCount(allParams), share)}`);
    const facts = Object.entries(machine).map(([name, value]) => `${name}: ${value}`);
    if (facts.length > 0) this.say(`  ${escapeControls(facts.join(", "))}`);
    const heldOut = evalRows > 0 ? words.rowsHeldOut(evalRows) : "";
    const resumed = resumedFromStep > 0 ? words.goingOn(resumedFromStep) : "";
    this.say(`  ${words.rows(trainRows)}${heldOut}${words.steps(totalSteps, learning_rate.toExponential())}${resumed}`);
    if (predictedPeakBytes !== undefined && availableBytes !== undefined)
      this.say(`  ${words.memory(formatBytes(predictedPeakBytes), formatBytes(availableBytes))}`);
  }

  #showStep(event: StepEvent): void {
    const { step, totalSteps, loss, learningRate, remainingMs, peakMemoryBytes } = event;
    this.#losses.push({ step, loss });
    this.#average = { sum: 0.9 * this.#average.sum + 0.1 * loss, weight: 0.9 * this.#average.weight + 0.1 };
    this.#bar.showTraining({ ...event, loss: this.#average.sum / this.#average.weight });
    if (this.#bar.isLive) return;

    this.#pending.push(event);
    if (step % this.#recipe.logging_steps !== 0 && step !== totalSteps) return;
    const steps = this.#pending.splice(0);
    const meanLoss = sumOf(steps, (one) => one.loss) / steps.length;
    const rate = sumOf(steps, (one) => one.tokens) / sumOf(steps, (one) => one.tokens / one.tokensPerSecond);
    const words = this.#words;
    const parts = [words.step(step, totalSteps), words.loss(formatLoss(meanLoss)), words.rate(learningRate.toExponential(2))];
    const pace = [words.speed(formatRate(rate)), words.left(formatDuration(remainingMs)), formatBytes(peakMemoryBytes)];
    this.say([...parts, ...pace].join("  "));
  }

  /** Tells what came of the run and what to do next; `system` is the system message that its conversations have in common. */
  summarize(end: EndEvent, system: string | undefined): void {
    this.#showResults(end);
    if (this.#recipe.do_train) this.#showNext(end, this.#showFiles(), system);
  }

  /** Tells what came of a stage that others follow. */
  summarizeStage(end: EndEvent): void {
    this.#showResults(end);
    if (this.#recipe.do_train) this.#showFiles();
  }

  #showResults({ interrupted, results }: EndEvent): void {
    const { stdout, env } = this.#io;
    const style = this.#style;
    const unicode = hasUnicode(env);
    const sketch = sketchLoss(this.#losses, { width: Math.min(76, widthOf(stdout) - 1), height: 9, unicode });
    if (sketch !== "") this.say(`\n${sketch}`);

    const words = this.#words;
    const heldOut =
      results.eval_loss === undefined ? "" : words.heldOut(formatLoss(results.eval_loss), inWords(results.eval_metrics));
    const atMost = words.atMost(words.speed(formatRate(results.tokens_per_second)), formatBytes(results.peak_memory_bytes));
    const verb = interrupted ? style.yellow(words.stopped) : style.green(words.done);
    const arrow = unicode ? "→" : "->";
    const loss =
      this.#losses.length > 0
        ? words.loss(`${formatLoss(this.#losses[0]!.loss)} ${arrow} ${formatLoss(this.#losses.at(-1)!.loss)}`)
        : words.noStep;
    this.say(`\n${words.after(verb, formatDuration(1000 * results.train_runtime))}${loss}${heldOut}${atMost}`);

    for (const line of tablesOf(results.eval_metrics ?? {})) this.say(line);
  }

  /** Returns whether the run left an adapter. */
  #showFiles(): boolean {
    const words = this.#words;
    const { output_dir } = this.#recipe;
    const isAdapter = existsSync(join(output_dir, "adapter_config.json"));
    const saved = isAdapter ? words.adapter : words.model;
    const width = Math.max(displayWidth(saved), displayWidth(words.picture));
    this.say(`  ${padTo(saved, width)}  ${output_dir}`);
    const picture = join(output_dir, "training_loss.png");
    if (existsSync(picture)) this.say(`  ${padTo(words.picture, width)}  ${picture}`);
    return isAdapter;
  }

  #showNext({ interrupted }: EndEvent, isAdapter: boolean, system: string | undefined): void {
    const { env } = this.#io;
    const { output_dir, model_name_or_path } = this.#recipe;
    const ofRun = join(output_dir, "recipe.yaml");
    const ofAll = join(this.#pipelineDir ?? output_dir, "recipe.yaml");
    const { usedBy } = objectives.find(({ name }) => name === this.#recipe.stage)!;
    const asked = isAdapter ? ["--model", model_name_or_path, "--adapter", output_dir] : ["--model", output_dir];
    // The recipe beside the result leads to a system message that is too long for a command.
    const use = system !== undefined && !fitsCommand(system) ? [ofRun] : [...asked, ...systemFlag(system)];
    const next = [...(interrupted ? [["train", ofAll, "resume_from_checkpoint=true"]] : []), [usedBy, ...use]];
    this.say(`\n${this.#style.bold(wordsFor(env).program.next)}`);
    for (const command of next) this.say(`  ${escapeControls(commandLine([...invocation(env), ...command]))}`);
  }
}

/** The single numbers of an evaluation: `, accuracy 0.9312, f1 0.9287`. */
function inWords(metrics: Metrics = {}): string {
  return Object.entries(metrics)
    .map(([name, value]) => (typeof value === "number" ? `, ${name} ${value.toFixed(4)}` : ""))
    .join("");
}

/** Numbers in groups of the same kind, a group a line: precision and recall of every class. */
function tablesOf(metrics: Metrics): string[] {
  return Object.entries(metrics).flatMap(([title, groups]) => {
    if (typeof groups === "number") return [];
    const rows = Object.entries(groups).flatMap(([name, numbers]) => (typeof numbers === "number" ? [] : [{ name, numbers }]));
    const columns = Object.keys(rows[0]?.numbers ?? {});
    const width = Math.max(...[title, ...rows.map(({ name }) => escapeControls(name))].map(displayWidth));
    const lines = rows.map(({ name, numbers }) => {
      const cells = columns.map((column) => shown(numbers[column]).padStart(Math.max(8, column.length)));
      return [padTo(escapeControls(name), width), ...cells].join("  ");
    });
    const heading = [padTo(title, width), ...columns.map((column) => column.padStart(8))].join("  ");
    return ["", ...[heading, ...lines].map((line) => `  ${line}`), ""];
  });
}

function shown(value: number | Metrics | undefined): string {
  if (typeof value !== "number") return "";
  return Number.isInteger(value) ? String(value) : value.toFixed(4);
}

function sumOf<T>(items: readonly T[], of: (item: T) => number): number {
  return items.reduce((sum, item) => sum + of(item), 0);
}
