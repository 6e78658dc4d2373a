import { loadPrompts, type PromptRow } from "../../data/prompt-rows.js";
import { ConfigError } from "../../errors.js";
import type { Reward } from "../../rewards/reward.js";
import { checkRewards, type RewardItem, rewardsOf } from "../../rewards/rewards.js";
import type { Tokenizer } from "../../text/tokenizer/tokenizer.js";
import type { Circumstances, DataSource } from "../objective.js";

/** Who reads answers, and who judges them. */
export interface Judges {
  readonly tokenizer: Tokenizer;
  readonly rewards: readonly Reward[];
  /** Tells the user what they should know. */
  warn(message: string): void;
}

interface RewardSettings {
  readonly rewards: readonly RewardItem[];
}

/** The prompts of some data sets, once the rewards have shown that they can judge answers to them. Throws ConfigError, DataError. */
export async function readPrompts(
  dataset: readonly string[],
  { files, tokenize: { cutoffLen, onBadRow = "error" }, chat, tokenizer, rewardFunctions = {}, warn }: DataSource,
  { rewards }: RewardSettings,
): Promise<PromptRow[]> {
  const rows = await loadPrompts(dataset, { files, chat: chat(), cutoffLen, onBadRow, warn });
  await checkRewards(rewardsOf(rewards, { tokenizer, functions: rewardFunctions }), rows, warn);
  return rows;
}

/** Throws ConfigError where the recipe names no reward. */
export function judgesOf(
  stage: string,
  { rewards }: RewardSettings,
  { tokenizer, rewardFunctions = {}, warn }: Pick<Circumstances, "tokenizer" | "rewardFunctions" | "warn">,
): Judges {
  if (rewards.length === 0)
    throw new ConfigError(`stage ${stage} learns from rewards, and the recipe has none: name them in rewards (docs/rewards.md)`);
  return { tokenizer, rewards: rewardsOf(rewards, { tokenizer, functions: rewardFunctions }), warn };
}
