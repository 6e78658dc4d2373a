import type { Message } from "../text/chat-template.js";
import type { SharedBase } from "../tuners/shared-base.js";

/** An answer that a policy gave, as rewards see it. */
export interface RewardSample {
  /** What the prompt says, as a conversation. */
  readonly messages: readonly Message[];
  /** The answer in words, without what ended it. */
  readonly answer: string;
  /** Tokens of the prompt, and of the answer with the token that ended it. */
  readonly prompt: Int32Array;
  readonly answerIds: Int32Array;
  /** Whether the answer ended by itself; false if it was cut at the longest that was allowed. */
  readonly isFinished: boolean;
  /** The columns of the prompt's row that are not the prompt: a reference answer, a label. */
  readonly columns: Readonly<Record<string, unknown>>;
  /** The prompt's row, for messages. */
  readonly where: string;
}

/** A judge of answers. */
export interface Reward {
  /** As metrics name it. */
  readonly name: string;
  /** Its share in the sum of all. */
  readonly weight: number;
  /** Columns of the rows that it reads, where that is known. */
  readonly columns?: readonly string[];
  /** Gets ready, so that what is wrong with it shows before training. Throws ConfigError. `score` does it where nobody did. */
  open?(): Promise<void>;
  /**
   * A number for each sample; null for one that it has nothing to say of. Throws RewardError, with what went wrong and for which sample.
   * `base` is the policy's base with what sits on it, for rewards that are models.
   */
  score(samples: readonly RewardSample[], at: RewardContext): Promise<readonly (number | null)[]>;
}

export interface RewardContext {
  readonly base: SharedBase;
  readonly signal: AbortSignal;
}
