import type { Metrics } from "../objectives/metrics.js";

/**
 * What a run tells the world while it works. The terminal, the web page and the API read only these. In order: perhaps `queued`; `prepare`;
 * `start` once the first step can be taken; steps, evaluations and checkpoints; and `end` or `failed` as the last. Notices may come anywhere.
 */
export type RunEvent =
  | StageEvent
  | QueuedEvent
  | PrepareEvent
  | ProgressEvent
  | StartEvent
  | StepEvent
  | EvalEvent
  | CheckpointEvent
  | NoticeEvent
  | EndEvent
  | FailedEvent;

/**
 * An event as `events.jsonl` of the run's folder has it, one JSON object a line. `time` is ISO 8601 in UTC and later than that of every line
 * before, by a millisecond where the clock does not say so: whoever knows the last one that they read can go on from there.
 */
export type RecordedEvent = RunEvent & {
  readonly time: string;
  /** Of a pipeline's events, as they are passed on: the stage that they are of, such as `2-rm`. The stage's own file does not say it. */
  readonly stage?: string;
};

/** What a run is about: known before anything of it is done. */
export interface RunSubject {
  readonly outputDir: string;
  readonly model: string;
  readonly method: string;
  readonly objective: string;
  readonly backend: string;
}

/** A stage of a pipeline comes next; its run's events follow, unless it is done since an earlier time. In no file. */
export interface StageEvent {
  readonly type: "stage";
  /** Number and objective, as its folder is called. */
  readonly name: string;
  /** From 1. */
  readonly number: number;
  readonly of: number;
  readonly objective: string;
  readonly outputDir: string;
  readonly isDone: boolean;
}

/** The run waits for somebody to begin it. */
export interface QueuedEvent extends RunSubject {
  readonly type: "queued";
}

/** A process has begun: it finds the model, reads the data, builds. */
export interface PrepareEvent extends RunSubject {
  readonly type: "prepare";
  readonly pid: number;
  readonly host: string;
  /** The same as in the folder's lock while this process holds it. */
  readonly lock: string;
}

/** How far a long preparation has come: a download, in bytes, or work on rows. Shown, not kept. */
export type ProgressEvent = { readonly type: "progress"; readonly what: string } & (
  | { readonly doneBytes: number; readonly totalBytes: number }
  | { readonly doneRows: number; readonly totalRows: number }
);

/** What a machine says of itself, such as `isa`, `threads` and `dtype`: shown, and copied into the results. */
export type MachineFacts = Readonly<Record<string, string | number>>;

/** Everything is ready: the first step comes next. */
export interface StartEvent {
  readonly type: "start";
  readonly trainRows: number;
  readonly evalRows: number;
  readonly totalSteps: number;
  readonly resumedFromStep: number;
  readonly trainableParams: number;
  readonly allParams: number;
  readonly machine: MachineFacts;
  /** What the whole process will need at most, where somebody can tell in advance, and what there is. */
  readonly predictedPeakBytes?: number;
  readonly availableBytes?: number;
  /** The model that what trains is compared with, where it is: in words, and the sha256 of all that it is made of. */
  readonly reference?: { readonly name: string; readonly sha256: string };
}

/** One finished optimizer step. */
export interface StepEvent {
  readonly type: "step";
  readonly step: number;
  readonly totalSteps: number;
  readonly epoch: number;
  /** Mean over what the step's losses sum over: its supervised tokens, or its rows where labels belong to them; of several terms, the weighted sum of means. */
  readonly loss: number;
  readonly gradNorm: number;
  readonly learningRate: number;
  /** Tokens trained on in this step, none of them padding. */
  readonly tokens: number;
  /** Absent where labels belong to whole rows. */
  readonly supervisedTokens?: number;
  /** What the objective tells of the step beside its loss: each a mean over the step. */
  readonly metrics?: Metrics;
  readonly tokensPerSecond: number;
  /** Since the run's first step began, without the time between a stop and going on. */
  readonly elapsedMs: number;
  readonly remainingMs: number;
  readonly peakMemoryBytes: number;
}

/** The held-out rows were evaluated. */
export interface EvalEvent {
  readonly type: "eval";
  readonly step: number;
  readonly epoch: number;
  readonly evalLoss: number;
  /** What the objective tells of held-out rows beside their loss. */
  readonly metrics?: Metrics;
  /** Where no evaluation before was as good: its number of what `metric_for_best_model` names. */
  readonly best?: number;
  readonly elapsedMs: number;
}

/** A checkpoint is whole on the disk. */
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

/** The run came to its end, or was stopped; what was trained is saved. */
export interface EndEvent {
  readonly type: "end";
  readonly interrupted: boolean;
  /** It ended before its last step, as evaluations no longer got better (`early_stopping_steps`). */
  readonly stoppedEarly?: true;
  readonly results: RunResults;
}

/** The run came to nothing; checkpoints that it saved are good. */
export interface FailedEvent {
  readonly type: "failed";
  /** `code` of an AttuneError; "bug" for any other error. */
  readonly code: string;
  readonly message: string;
}

/** `all_results.json`, in which the facts of `machine` stand among the rest. Names are the wire's: LLaMA-Factory's where it has one. */
export interface RunResults {
  readonly epoch: number;
  /** The mean over all steps. */
  readonly train_loss: number;
  /** Of the first step and the last, unsmoothed; absent where nothing trained. */
  readonly first_loss?: number;
  readonly last_loss?: number;
  readonly eval_loss?: number;
  /** Of the last evaluation. In the files of a run each number has its own key, such as `eval_accuracy`. */
  readonly eval_metrics?: Metrics;
  /** Where what is saved are the weights of the best evaluation: after which step it was, its number of `metric_for_best_model`, and their checkpoint. */
  readonly best_global_step?: number;
  readonly best_metric?: number;
  readonly best_model_checkpoint?: string;
  /** What the answers to held-out rows came to: in the files of a run each number has its own key, such as `predict_bleu-4`. */
  readonly predictions?: Readonly<Record<string, number>>;
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
  /** Of the reference's files: those of its weights, and the settings of the adapters among them. */
  readonly reference_sha256?: string;
  readonly machine: MachineFacts;
  /** From the start of the process to the end of the first optimizer step. */
  readonly seconds_to_first_step: number;
}
