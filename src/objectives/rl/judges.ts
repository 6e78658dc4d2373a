import { existsSync } from "node:fs";
import { loadPrompts, type PromptRow } from "../../data/prompt-rows.js";
import { ConfigError } from "../../errors.js";
import type { Reward } from "../../rewards/reward.js";
import { gateFolderOf, sitsOnBase } from "../../rewards/reward-model.js";
import { checkRewards, type RewardItem, type RewardSettings, rewardItems, rewardsOf } from "../../rewards/rewards.js";
import type { Tokenizer } from "../../text/tokenizer/tokenizer.js";
import type { Circumstances, DataSource } from "../objective.js";
import { gateProblem, readGate } from "../rm/gate.js";

/** Who reads answers, and who judges them. */
export interface Judges {
  readonly tokenizer: Tokenizer;
  readonly rewards: readonly Reward[];
  /** Whether one of them sits on the base as it was: `Task.usesBase`. */
  readonly usesBase?: boolean;
  /** Judge held-out answers only. */
  readonly gold?: readonly Reward[];
  /** Prompts of which samples are shown, and where. */
  readonly heldOut?: readonly PromptRow[];
  readonly outputDir?: string;
  /** Tells the user what they should know. */
  warn(message: string): void;
}

/** The prompts of some data sets, once the rewards have shown that they can judge answers to them. Throws ConfigError, DataError. */
export async function readPrompts(
  dataset: readonly string[],
  { files, tokenize: { cutoffLen, onBadRow = "error" }, chat, tokenizer, rewardFunctions = {}, warn }: DataSource,
  config: RewardSettings,
): Promise<PromptRow[]> {
  const rewards = rewardItems(config);
  await checkGates(rewards, config.ignore_reward_gate === true, warn);
  const rows = await loadPrompts(dataset, { files, chat: chat(), cutoffLen, onBadRow, warn });
  await checkRewards(rewardsOf(rewards, { tokenizer, functions: rewardFunctions }), rows, warn);
  return rows;
}

/**
 * Throws ConfigError for a reward model that is not known to be better than judges that read nothing, unless the recipe says to train on it all the same:
 * then it is told.
 */
async function checkGates(rewards: readonly RewardItem[], isIgnored: boolean, warn: (message: string) => void): Promise<void> {
  for (const reward of rewards) {
    const folder = gateFolderOf(reward);
    if (folder === null) continue;
    const problem = gateProblem(existsSync(folder) ? await readGate(folder) : null, folder);
    if (problem === null) continue;
    if (!isIgnored)
      throw new ConfigError(`rewards: ${reward.name}: ${problem}. To train on it all the same: ignore_reward_gate: true`);
    warn(`the reward ${reward.name} is trained on although it has not passed: ${problem}`);
  }
}

/** Throws ConfigError where the recipe names no reward. */
export function judgesOf(
  stage: string,
  config: RewardSettings,
  { tokenizer, rewardFunctions = {}, warn }: Pick<Circumstances, "tokenizer" | "rewardFunctions" | "warn">,
): Judges {
  const rewards = rewardItems(config);
  if (rewards.length === 0)
    throw new ConfigError(`stage ${stage} learns from rewards, and the recipe has none: name them in rewards (docs/rewards.md)`);
  return {
    tokenizer,
    rewards: rewardsOf(rewards, { tokenizer, functions: rewardFunctions }),
    usesBase: rewards.some(sitsOnBase),
    warn,
  };
}
