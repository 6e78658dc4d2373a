import type { z } from "zod";
import { RewardError } from "../errors.js";
import type { Tokenizer } from "../text/tokenizer/tokenizer.js";
import { withTimeLimit } from "../text/work-limit.js";
import type { RewardFunctions } from "./functions.js";
import type { Reward, RewardSample } from "./reward.js";

/** A kind of reward, as `type` of an item of a recipe's `rewards` names it. */
export interface RewardKind<Config = unknown> {
  readonly type: string;
  /** One line for documentation. */
  readonly summary: string;
  /** Its own settings, beside name and weight. */
  readonly config: z.ZodType<Config>;
  /** Columns of the rows that it reads. */
  columns?(config: Config): readonly string[];
  /** Gets ready to score. Throws ConfigError. */
  open(config: Config, tools: RewardTools): Promise<Reward["score"]>;
}

/** What rewards are made with, beside the recipe. */
export interface RewardTools {
  readonly tokenizer: Tokenizer;
  /** Functions of the program that trains, by the names that the recipe calls them. */
  readonly functions: RewardFunctions;
  /** The reward's name, for messages. */
  readonly name: string;
}

/** Checks a kind against the type of its own settings, which the list of all kinds does not know. */
export function defineKind<Config>(kind: RewardKind<Config>): RewardKind<Config> {
  return kind;
}

/** What a rule says of one answer. */
export type Rule = (sample: RewardSample) => number | null;

/** For one answer, of the time that this thread works: a thousand times what a rule needs. */
const limitMs = 2000;

/**
 * Scores answers one by one. Throws RewardError where one takes too long: to go on without its score would make the result depend on the machine.
 */
export function byRule(name: string, rule: Rule): Reward["score"] {
  return async (samples) =>
    samples.map((sample) =>
      withTimeLimit(
        limitMs,
        () => rule(sample),
        () =>
          new RewardError(
            `${sample.where}: the reward ${name} worked over ${limitMs / 1000} s on an answer of ${sample.answer.length} characters, and was stopped: a pattern ` +
              "with a repetition in a repetition, such as (a+)+, tries every way to share out the text. Write it otherwise, or lower max_new_tokens.",
          ),
      ),
    );
}
