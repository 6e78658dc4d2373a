import type { Metrics } from "../objectives/objective.js";

/**
 * What a run tells the world while it works: one JSON object a line in `events.jsonl` of its folder. The terminal, the web page and
 * the API read only these.
 */
export type RunEvent = ProgressEvent | StartEvent | StepEvent | EvalEvent | CheckpointEvent | NoticeEvent | EndEvent;

/** How far a long preparation has come, such as a download. Shown, not kept. */
export interface ProgressEvent {
  readonly type: "progress";
  readonly what: string;
  readonly doneBytes: number;
  readonly totalBytes: number;
}

export interface StartEvent {
  readonly type: "start";
  readonly outputDir: string;
  readonly model: string;
  readonly method: string;
  readonly objective: string;
  readonly trainRows: number;
  readonly evalRows: number;
  readonly totalSteps: number;
  readonly resumedFromStep: number;
  readonly trainableParams: number;
  readonly allParams: number;
  readonly isa: string;
  readonly threads: number;
  readonly dtype: string;
  /** What the symbolic step predicts for the whole process. */
  readonly predictedPeakBytes: number;
  readonly availableBytes: number;
}

/** One finished optimizer step. */
export interface StepEvent {
  readonly type: "step";
  readonly step: number;
  readonly totalSteps: number;
  readonly epoch: number;
  /** Mean over what the step's losses sum over: its supervised tokens, or its rows where labels belong to them. */
  readonly loss: number;
  readonly gradNorm: number;
  readonly learningRate: number;
  /** Tokens trained on in this step, none of them padding. */
  readonly tokens: number;
  /** Absent where labels belong to whole rows. */
  readonly supervisedTokens?: number;
  readonly tokensPerSecond: number;
  /** Since the run's first step began, without the time between a stop and going on. */
  readonly elapsedMs: number;
  readonly remainingMs: number;
  readonly peakMemoryBytes: number;
}

export interface EvalEvent {
  readonly type: "eval";
  readonly step: number;
  readonly epoch: number;
  readonly evalLoss: number;
  /** What the objective tells of held-out rows beside their loss. */
  readonly metrics?: Metrics;
  readonly elapsedMs: number;
}

export interface CheckpointEvent {
  readonly type: "checkpoint";
  readonly step: number;
  readonly path: string;
}

/** Something the user should know; `why` of a setting that was ignored, a row that was cut, a model that came from elsewhere. */
export interface NoticeEvent {
  readonly type: "notice";
  readonly level: "info" | "warning";
  readonly message: string;
}

export interface EndEvent {
  readonly type: "end";
  readonly interrupted: boolean;
  readonly results: RunResults;
}

/** `all_results.json`. Names are the wire's: LLaMA-Factory's where it has one. */
export interface RunResults {
  readonly epoch: number;
  readonly train_loss: number;
  readonly eval_loss?: number;
  /** Of the last evaluation. In the files of a run each number has its own key, such as `eval_accuracy`. */
  readonly eval_metrics?: Metrics;
  /** Seconds in the training loop. */
  readonly train_runtime: number;
  readonly train_samples_per_second: number;
  readonly train_steps_per_second: number;
  readonly total_flos: number;
  /** Non-padding tokens per second of the steps' wall time. */
  readonly tokens_per_second: number;
  /** Tokens of the rows, none of them padding; virtual tokens of a prompt or prefix are not counted. */
  readonly num_input_tokens_seen: number;
  /** Absent where labels belong to whole rows. */
  readonly num_supervised_tokens?: number;
  /** Peak resident set of the process. */
  readonly peak_memory_bytes: number;
  readonly trainable_params: number;
  readonly all_params: number;
  readonly isa: string;
  readonly threads: number;
  readonly dtype: string;
  /** From the start of the process to the end of the first optimizer step. */
  readonly seconds_to_first_step: number;
}
