import type { z } from "zod";
import type { Tensor } from "../core/tensor.js";
import type { DatasetOptions, TokenizeOptions } from "../data/dataset.js";
import type { Row } from "../data/example.js";
import type { LanguageModel } from "../models/language-model.js";
import type { ChatFormat } from "../text/supervised.js";
import type { TextFile, Tokenizer } from "../text/tokenizer/tokenizer.js";

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
  /** The command of attune that uses what was trained. */
  readonly usedBy: string;
  /** Rows always fill sequences of `cutoff_len`, whatever `packing` says. */
  readonly packs?: boolean;
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
  /** Tells the user what they should know. */
  warn(message: string): void;
}

/** What every batch tells the loop. */
export interface Batch {
  /** Tokens that go through the model, none of them padding. */
  readonly tokens: number;
  /** What the loss sums over: supervised tokens, rows, or pairs. */
  readonly count: number;
  /** How many of the tokens are supervised; absent where what is learned belongs to whole rows. */
  readonly supervisedTokens?: number;
}

/**
 * An objective with its settings and its data known: all that a training step needs. Only the training loop divides, once a step, by the whole
 * step's count: so accumulated micro-batches equal one batch.
 */
export interface Task<R extends Row = Row, B extends Batch = Batch> {
  /** config.json of the model that trains, where it is not the base's: one with another head. */
  readonly modelConfig?: Readonly<Record<string, unknown>>;
  /** What a resumed run must find as it was, beside rows and settings. */
  readonly identity?: unknown;
  /** What has to lie beside the result for it to be used, other than the tokenizer. */
  readonly files?: readonly TextFile[];
  collate(examples: readonly R[]): B;
  /** The row as it would be with at most so many tokens, for an estimate of memory: it need not make sense. */
  shorten(row: R, tokens: number): R;
  /** The loss summed over the batch, a scalar. Never a mean. */
  loss(model: LanguageModel, batch: B): Tensor;
  /** A new evaluation, where held-out rows tell more than their loss. */
  evaluation?(): Evaluation<B>;
}

/** Keeps the types of rows and settings while the list forgets them. */
export function defineObjective<R extends Row, Config>(objective: Objective<R, Config>): Objective<R, Config> {
  return objective;
}

/** Takes in held-out batches one by one. */
export interface Evaluation<B extends Batch = Batch> {
  /** Returns the loss summed over the batch. */
  add(model: LanguageModel, batch: B): Promise<number>;
  metrics(): Metrics;
}

/** Numbers by name, in groups where there are many of a kind. */
export interface Metrics {
  readonly [name: string]: number | Metrics;
}
