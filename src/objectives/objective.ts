import type { z } from "zod";
import type { Rng } from "../core/rng.js";
import type { Tensor } from "../core/tensor.js";
import type { DatasetOptions, TokenizeOptions } from "../data/dataset.js";
import type { Row } from "../data/example.js";
import type { LanguageModel } from "../models/language-model.js";
import type { RewardFunctions } from "../rewards/functions.js";
import type { ChatFormat } from "../text/supervised.js";
import type { TextFile, Tokenizer } from "../text/tokenizer/tokenizer.js";
import type { SharedBase } from "../tuners/shared-base.js";
import type { Metrics } from "./metrics.js";

/**
 * What is minimised, as a recipe names it: how data becomes examples, and the task that they make. Knows nothing of tuners, and nobody asks
 * which objective it is.
 */
export interface Objective<R extends Row = Row, Config = unknown> {
  /** Value of `stage` in a recipe. */
  readonly name: string;
  /** One line for help and documentation. */
  readonly summary: string;
  /** Settings that only this objective reads: flags, YAML checks, UI forms and docs are made from it. */
  readonly config: z.ZodType<Config>;
  /** Names that other trainers give to its settings, and to those of other methods too. */
  readonly otherNames?: Readonly<Record<string, string>>;
  /** Settings of every recipe that are taken otherwise here: within bounds and with defaults of its own. */
  readonly narrows?: z.ZodType;
  /** What docs/recipe.md says below the settings, in Markdown. */
  readonly notes?: string;
  /** Settings that say what is measured, and change nothing about any step: a run that is resumed may change them. */
  readonly measures?: readonly string[];
  /** The command of attune that uses what was trained. */
  readonly usedBy: string;
  /**
   * The settings by which later stages of a pipeline get what was made, where it judges a policy and is none: those of them that a stage has. Absent:
   * later stages begin from it.
   */
  handsOver?(folder: string, result: "adapter" | "model"): Readonly<Record<string, string>>;
  /** Rows always fill sequences of `cutoff_len`, whatever `packing` says; or, where false, never. */
  readonly packs?: boolean;
  /** What the learning rate of a tuner is multiplied by where a recipe names none; 1 where not given. */
  readonly rateFactor?: number;
  /** Throws ModelError if a model lacks what the objective needs of it. */
  check?(model: LanguageModel): void;
  /** The examples of some data sets. Throws DataError, ConfigError. */
  read(dataset: readonly string[], source: DataSource, config: Config): Promise<R[]>;
  /** What is minimised on these examples. Throws DataError, ConfigError. */
  task(examples: readonly R[], config: Config, circumstances: Circumstances<R>): Task<R>;
}

/** What a task is made for, beside the rows that train. */
export interface Circumstances<R extends Row = Row> {
  /** config.json of the base model. */
  readonly base: Readonly<Record<string, unknown>>;
  readonly heldOut: readonly R[];
  readonly tokenizer: Tokenizer;
  /** The settings that every recipe has, for objectives that narrow some. */
  readonly common?: Readonly<Record<string, unknown>>;
  /** Functions of the program that trains, by the names that rewards of the recipe have. */
  readonly rewardFunctions?: RewardFunctions | undefined;
  /** Tells the user what they should know. */
  warn(message: string): void;
}

/** What examples are made with: the common settings of a recipe and the model's way to write text. */
export interface DataSource {
  readonly files: Omit<DatasetOptions, "dataset">;
  readonly tokenize: TokenizeOptions;
  readonly tokenizer: Tokenizer;
  /** The tokenizer with a chat template, which is chosen, and saved with the result, once somebody asks for it. */
  chat(): ChatFormat;
  readonly rewardFunctions?: RewardFunctions | undefined;
  /** Tells the user what they should know. */
  warn(message: string): void;
}

/** What every batch tells the loop. */
export interface Batch {
  /** Tokens that go through the model, none of them padding. */
  readonly tokens: number;
  /** What each term of the loss sums over, by the term's name: supervised tokens, rows, pairs. */
  readonly counts: Readonly<Record<string, number>>;
  /** How many of the tokens are supervised; absent where what is learned belongs to whole rows. */
  readonly supervisedTokens?: number;
}

/** Something to be averaged: the sum of it, and over how many. */
export interface Total {
  readonly sum: number;
  readonly count: number;
}

/** A part of the loss, summed over a batch and never averaged. */
export type Term = RecordedTerm | ComputedTerm;

/** A part whose arithmetic is the engine's. */
export interface RecordedTerm {
  /** A scalar. */
  readonly sum: Tensor;
  /** How much its mean counts; 1 where not given. */
  readonly weight?: number;
}

/** A part that is a pure function of numbers which the model gave, such as log-probabilities: its backward begins with what the function says. */
export interface ComputedTerm {
  readonly of: Tensor;
  /** What else is read and not differentiated, such as the log-probabilities of a reference. */
  readonly given?: readonly Tensor[];
  readonly weight?: number;
  /** `values` are those of `of`, `given` those of `given`; the gradient of the sum has one number for each value. Metrics are averaged over the step. */
  loss(
    values: Float32Array,
    ...given: Float32Array[]
  ): {
    readonly sum: number;
    readonly gradient: Float32Array;
    readonly metrics?: Readonly<Record<string, Total>>;
  };
}

/** The numbers of a term. */
export interface TermValue {
  readonly sum: number;
  readonly weight?: number | undefined;
  readonly metrics?: Readonly<Record<string, Total>> | undefined;
}

/**
 * An objective with its settings and its data known: all that a training step needs. What is minimised is Σ over terms of weight · (Σ over the
 * step's micro-batches of sum) / (Σ of counts). Only `Sums` divides, by what the whole step counts: so accumulated micro-batches equal one batch.
 */
export interface Task<R extends Row = Row, B extends Batch = Batch> {
  /** config.json of the model that trains, where it is not the base's: one with another head. */
  readonly modelConfig?: Readonly<Record<string, unknown>>;
  /** Its terms ask for the base alone: a method that trains weights of the base then trains copies of them, which takes more memory. */
  readonly usesBase?: boolean;
  /** What its terms ask `base.withReference` about; absent where they ask nothing, or the base alone (`usesBase`). */
  readonly reference?: ReferenceSettings;
  /** A value head trains beside the model, and is saved beside it: a Linear of one output, `base.beside` while what trains is in its places. */
  readonly valueHead?: boolean;
  /** What a resumed run must find as it was, beside rows and settings. */
  readonly identity?: unknown;
  /** What an adapter is trained for, in PEFT's words (TaskType); CAUSAL_LM where not given. */
  readonly taskType?: string;
  /** What has to lie beside the result for it to be used, other than the tokenizer. */
  readonly files?: readonly TextFile[];
  collate(examples: readonly R[]): B;
  /** The row as it would be with at most so many tokens, for an estimate of memory: it need not make sense. */
  shorten(row: R, tokens: number): R;
  /**
   * What is minimised, by name, each under a count of the batch. `model` has what trains in its places; a reference is `base.withReference(…)`.
   * Synchronous: work is only queued.
   */
  terms(model: LanguageModel, batch: B, base: SharedBase): Readonly<Record<string, Term>>;
  /**
   * The rows with what the reference says of them, to be computed once: `terms` then asks no reference about them. `withReference` runs a body with the
   * reference in its places; `onRows` hears how many rows are done. If `signal` fires it throws the signal's reason.
   */
  keepReference?(
    rows: readonly R[],
    withReference: <T>(body: (model: LanguageModel) => T) => T,
    at: { readonly signal: AbortSignal; onRows(done: number): void },
  ): Promise<readonly R[]>;
  /** How many optimizer steps are made of one roll-out; 1 where not given. */
  readonly stepsPerRound?: number;
  /** How many steps' worth of rows one roll-out is of; 1 where not given. */
  readonly bufferSize?: number;
  /**
   * Makes experience of a round's rows: optimizer steps × micro-batches × rows, `stepsPerRound` of the first. Must depend on the weights, the rows
   * and `at` alone, so that a resumed run makes the same. If `at.signal` fires, what it gives is dropped; it may throw the signal's reason.
   * Metrics belong to each of the round's steps.
   */
  rollOut?(rows: readonly R[], at: RoundStart, base: SharedBase): Promise<Experience<R>>;
  /** What outlives a round, for checkpoints: JSON. A run that goes on gets it back before its first round. */
  readonly state?: TaskState;
  /** Asked after each round and each evaluation: why the run should end here; null if it should go on. */
  whyStop?(): string | null;
  /** What a roll-out decodes of its rows at most, for an estimate of memory; absent where it decodes nothing. */
  readonly decodes?: {
    promptOf(row: R): Int32Array;
    /** Answers to each prompt. */
    readonly count: number;
    readonly maxNewTokens: number;
    /** Answers that are decoded at once. */
    readonly slots: number;
  };
  /** What a row asks and what its answer should be, for tasks that learn to answer; null for a row that has no answer, or nothing before it. */
  question?(row: R): Question | null;
  /** A new evaluation, where held-out rows tell more than their loss. */
  evaluation?(): Evaluation<B>;
  /** Weights that other programs look for in files of their own, beside the result and in every checkpoint. Collected at once, and written into a folder. */
  weightFiles?(model: LanguageModel): (folder: string) => Promise<void>;
  /** What held-out rows, of which there may be none, tell of the result: asked once training has ended. Null if the signal ended it. */
  report?(base: SharedBase, name: string, heldOut: readonly R[], at: ReportSettings): Promise<Report | null>;
}

export interface ReportSettings {
  /** Rows of a batch. */
  readonly batchSize: number;
  readonly signal: AbortSignal;
}

export interface Report {
  /** For the folder of the result. */
  readonly files: readonly TextFile[];
  readonly notices: readonly { readonly level: "info" | "warning"; readonly message: string }[];
}

/** Which model the reference is, and when it is asked. */
export interface ReferenceSettings {
  /** Another model than what training begins from; null for that. `adapters`, by commas, are merged into it. */
  readonly model: {
    readonly name: string;
    readonly adapters: string | null;
    readonly quantizationBit: 4 | 8 | null;
  } | null;
  /** Whether it is asked about every row before training (`Task.keepReference`), and never again. */
  readonly isAskedOnce: boolean;
}

/** Numbers that a task keeps from round to round, such as a coefficient that adapts. */
export interface TaskState {
  save(): unknown;
  /** Throws CheckpointError for what it did not save. */
  load(saved: unknown): void;
}

/** Where a roll-out stands in the run. */
export interface RoundStart {
  /** From 0. */
  readonly round: number;
  /** Optimizer steps that the weights have behind them. */
  readonly step: number;
  /** How many rows the plan puts into each micro-batch of the round. */
  readonly batchSizes: readonly number[];
  /** What trains, by its name on the base. */
  readonly policy: string;
  /** Its own numbers, which depend on the run's seed and the round alone. */
  readonly rng: Rng;
  readonly signal: AbortSignal;
}

/** What a roll-out gives to train on. */
export interface Experience<R extends Row = Row> {
  readonly steps: readonly (readonly (readonly R[])[])[];
  readonly metrics?: Readonly<Record<string, Total>>;
  /** Called once nothing drops it any more, before its first step: what outlives the round may change now. */
  taken?(): void;
}

/** Tokens of a prompt, and of the answer that is wanted. */
export interface Question {
  readonly prompt: Int32Array;
  readonly label: Int32Array;
}

/** Keeps the types of rows and settings while the list forgets them. */
export function defineObjective<R extends Row, Config>(objective: Objective<R, Config>): Objective<R, Config> {
  return objective;
}

/** What an evaluation may need to know where it goes on after the forward pass. */
export interface EvaluatedAt {
  /** What is evaluated, by its name on the base; null for the base alone. */
  readonly policy: string | null;
  /** Optimizer steps that it has behind it; absent where nobody counts. */
  readonly step?: number | undefined;
  readonly signal: AbortSignal;
}

/** Takes in held-out batches one by one. */
export interface Evaluation<B extends Batch = Batch> {
  /** Queues the work on a batch, while the model is what is evaluated; what it returns reads the values of the task's terms. */
  add(model: LanguageModel, batch: B, base: SharedBase, at: EvaluatedAt): () => Promise<Readonly<Record<string, TermValue>>>;
  metrics(): Metrics;
}
