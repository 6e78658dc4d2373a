import { byteTokenizer } from "../../text/tokenizer/byte-tokenizer.js";
import type { SharedBase } from "../../tuners/shared-base.js";
import type { RewardFunctions } from "../functions.js";
import type { Reward, RewardContext, RewardSample } from "../reward.js";
import { rewardKeys, rewardsOf } from "../rewards.js";

export const tokenizer = byteTokenizer();

/** An answer with a token for each byte, to the question "Q". */
export function sampleOf(answer: string, columns: Readonly<Record<string, unknown>> = {}, where = "rows.jsonl:1"): RewardSample {
  const ids = tokenizer.encode(answer, { special: false });
  return {
    messages: [{ role: "user", content: "Q" }],
    answer,
    prompt: Int32Array.from(tokenizer.encode("Q", { special: false })),
    answerIds: Int32Array.from(ids),
    isFinished: false,
    columns,
    where,
  };
}

/** Rewards that look at nothing but answers need no model. */
export function contextOf(signal: AbortSignal = new AbortController().signal): RewardContext {
  return { base: undefined as unknown as SharedBase, signal };
}

export function rewardFrom(item: object, functions: RewardFunctions = {}): Reward {
  return rewardsOf(rewardKeys.rewards.parse([item]), { tokenizer, functions })[0]!;
}
