import type { Reward } from "../../rewards/reward.js";
import type { Tokenizer } from "../../text/tokenizer/tokenizer.js";

/** Who reads answers, and who judges them. */
export interface Judges {
  readonly tokenizer: Tokenizer;
  readonly rewards: readonly Reward[];
}
