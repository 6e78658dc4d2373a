import { z } from "zod";
import { Rng } from "../../core/rng.js";
import type { PromptRow } from "../../data/prompt-rows.js";
import { ConfigError } from "../../errors.js";
import { Judge } from "../../rewards/judge.js";
import { sitsOnBase } from "../../rewards/reward-model.js";
import { type RewardItem, rewardKeys, rewardsOf } from "../../rewards/rewards.js";
import type { SharedBase } from "../../tuners/shared-base.js";
import type { Circumstances, RoundStart } from "../objective.js";
import { Health, type HealthSettings, healthKeys } from "./health.js";
import type { Judges } from "./judges.js";
import { rollOut } from "./rollout.js";
import { samplesShown, writeSamples } from "./samples.js";
import type { SamplingSettings } from "./settings.js";

/** What is looked at while a policy learns, in every stage that learns from its own answers. */
export const watchKeys = {
  gold_rewards: rewardKeys.rewards.describe(
    "what judges held-out answers only, as `rewards` does those that are learned from: the policy never sees it, so it tells what a reward model stands for. Metrics: `gold`, `gold/…` (attune's own)",
  ),
  ...healthKeys,
};

export interface WatchSettings extends HealthSettings {
  readonly sample_steps: number | null;
}

/** Who watches, and what they need for it. */
export interface Watch {
  readonly health: Health;
  readonly judges: Judges;
  readonly sampling: SamplingSettings & { readonly judge: Judge };
  /** Judges that the policy does not learn from; null where there are none. */
  readonly gold: Judge | null;
  /** Whether the base can say how far the policy has gone from it. */
  readonly hasReference: boolean;
  readonly outputDir: string | undefined;
  /** To be called before each roll-out: forgets what an estimate of memory has left, and writes samples where they are due. */
  before(at: RoundStart, base: SharedBase): Promise<void>;
}

export interface WatchOptions {
  readonly sampling: SamplingSettings & { readonly judge: Judge };
  readonly hasReference: boolean;
}

/** Throws ConfigError where backing off has nothing to back off with. */
export function watchOf(settings: WatchSettings, judges: Judges, { sampling, hasReference }: WatchOptions): Watch {
  if (settings.on_unhealthy === "back_off" && !hasReference)
    throw new ConfigError(
      "on_unhealthy: back_off makes the KL divergence cost more, and it costs nothing here: give it a weight",
    );
  const { tokenizer, rewards, gold = [], heldOut = [], outputDir, warn } = judges;
  const health = new Health(settings, warn);
  let nextSample = 0;
  return {
    ...{ health, judges, sampling, hasReference, outputDir },
    gold: gold.length > 0 ? new Judge(gold, warn) : null,
    async before({ step, policy, signal }, base) {
      if (step === 0) health.begin();
      const { sample_steps: every } = settings;
      if (every === null || step < nextSample || heldOut.length === 0) return;
      nextSample = step + every;
      const options = { ...sampling, tokenizer, count: 1, policy, rng: Rng.for(0, "samples"), signal };
      await writeSamples(outputDir, step, await rollOut(base, heldOut.slice(0, samplesShown), options), { tokenizer, rewards });
    },
  };
}

/** Those who judge, with what a recipe says of who watches. */
export function watchedBy(
  judges: Judges,
  { gold_rewards }: { readonly gold_rewards: readonly RewardItem[] },
  {
    tokenizer,
    rewardFunctions = {},
    heldOut,
    common,
  }: Pick<Circumstances<PromptRow>, "tokenizer" | "rewardFunctions" | "heldOut" | "common">,
): Judges {
  const { output_dir } = z.object({ output_dir: z.string().optional() }).parse(common ?? {});
  return {
    ...judges,
    usesBase: judges.usesBase === true || gold_rewards.some(sitsOnBase),
    ...{ gold: rewardsOf(gold_rewards, { tokenizer, functions: rewardFunctions }), heldOut },
    ...(output_dir !== undefined && { outputDir: output_dir }),
  };
}
