import type { Metrics } from "../objectives/metrics.js";
import type { EvalEvent, RunEvent, StepEvent } from "./events.js";
import type { Point } from "./plot.js";

/**
 * What LLaMA-Factory's logs and pictures need of the events so far. Between two lines of the log, losses and metrics are averaged.
 *
 * Source of the formats: LLaMA-Factory src/llamafactory/train/callbacks.py (LogCallback) and transformers' TrainerState.
 */
export class LogHistory {
  /** `log_history` of trainer_state.json. */
  readonly log: object[] = [];
  readonly train: Point[] = [];
  readonly evaluation: Point[] = [];
  /** Of the steps, by name. */
  readonly metrics = new Map<string, Point[]>();
  /** The best evaluation: after which step, by which number, and the checkpoint of that step, if there is one. */
  best: { readonly step: number; readonly score: number; readonly checkpoint: string | null } | undefined;
  model = "";
  method = "";
  objective = "";
  step = 0;
  totalSteps = 0;
  epoch = 0;
  tokens = 0;
  totalFlos = 0;
  #lastStep: StepEvent | undefined;
  readonly #checkpoints = new Map<number, string>();
  readonly #loss = new Mean();
  #metrics = new Map<string, Mean>();

  /** Returns a line for trainer_log.jsonl where due: after every `loggingSteps` steps, after the last one, and for an evaluation. */
  add(event: RunEvent, loggingSteps: number): object | undefined {
    switch (event.type) {
      case "prepare":
        this.model = lastPartOf(event.model);
        this.method = event.method;
        this.objective = event.objective;
        return undefined;
      case "start":
        this.totalSteps = event.totalSteps;
        return undefined;
      case "step":
        return this.#addStep(event, loggingSteps);
      case "eval":
        return this.#addEvaluation(event);
      case "checkpoint":
        this.#checkpoints.set(event.step, event.path);
        if (this.best?.step === event.step) this.best = { ...this.best, checkpoint: event.path };
        return undefined;
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
    const { step, totalSteps, epoch, loss, gradNorm, learningRate, tokens, metrics = {} } = event;
    this.step = step;
    this.totalSteps = totalSteps;
    this.epoch = epoch;
    this.tokens += tokens;
    this.#lastStep = event;
    this.#loss.add(loss);
    this.train.push({ step, value: loss });
    for (const [name, value] of Object.entries(flat(metrics))) {
      entryOf(this.#metrics, name, () => new Mean()).add(value);
      entryOf(this.metrics, name, (): Point[] => []).push({ step, value });
    }
    if (step % loggingSteps !== 0 && step !== totalSteps) return undefined;

    const measured = {
      loss: this.#loss.take(),
      ...Object.fromEntries([...this.#metrics].map(([name, mean]) => [name, mean.take()])),
    };
    this.#metrics = new Map();
    this.log.push(finiteOf({ epoch, grad_norm: gradNorm, learning_rate: learningRate, ...measured, step }));
    return this.#logLine({ ...measured, lr: learningRate }, event.elapsedMs);
  }

  #addEvaluation(event: EvalEvent): object {
    const { step, epoch, evalLoss, metrics = {}, elapsedMs } = event;
    if (event.best !== undefined) this.best = { step, score: event.best, checkpoint: this.#checkpoints.get(step) ?? null };
    this.evaluation.push({ step, value: evalLoss });
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

class Mean {
  #sum = 0;
  #count = 0;

  add(value: number): void {
    this.#sum += value;
    this.#count++;
  }

  /** A mean of what was added since it was last taken. */
  take(): number {
    const mean = this.#sum / this.#count;
    [this.#sum, this.#count] = [0, 0];
    return mean;
  }
}

function entryOf<T>(map: Map<string, T>, key: string, make: () => T): T {
  const there = map.get(key) ?? make();
  map.set(key, there);
  return there;
}

/** Metrics under the names that transformers' Trainer gives them: `eval_accuracy`. */
export function evalKeys(metrics: Metrics): Metrics {
  return Object.fromEntries(Object.entries(metrics).map(([name, value]) => [`eval_${name}`, value]));
}

/** Groups of metrics as TRL names them: `rewards/accuracies`. */
function flat(metrics: Metrics): Record<string, number> {
  const entries = Object.entries(metrics).flatMap(([name, value]): [string, number][] =>
    typeof value === "number" ? [[name, value]] : Object.entries(flat(value)).map(([key, one]) => [`${name}/${key}`, one]),
  );
  return Object.fromEntries(entries);
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
