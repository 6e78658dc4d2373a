import { ConfigError } from "../../errors.js";
import type { ComputedTerm, Total } from "../objective.js";
import type { DpoConfig, LossName } from "./dpo-config.js";
import { logSigmoid, sigmoid } from "./math.js";
import { lengthDesensitized, type PairBatch, scoresOf } from "./pair-batch.js";
import {
  type PairLoss,
  type PairLossName,
  type PairScores,
  type PairSettings,
  type PairValues,
  pairLosses,
} from "./pair-losses.js";
import type { RunningDelta } from "./running-delta.js";
import { lengthsOf } from "./scoring.js";

interface Weighted {
  readonly loss: PairLoss;
  readonly name: PairLossName;
  readonly weight: number;
}

/** What the settings come to: the losses of pairs, and the weights of the likelihoods beside them. Throws ConfigError for those that do not go together. */
export function lossesOf(config: DpoConfig): {
  pairs: readonly Weighted[];
  nllWeight: number;
  allTokensWeight: number;
  ftx: number;
} {
  const {
    pref_loss,
    loss_weights,
    dpo_label_smoothing: smoothing,
    cpo_alpha,
    orpo_nll,
    pref_bco_weight,
    f_divergence_type,
  } = config;
  if (loss_weights !== null && loss_weights.length !== pref_loss.length)
    throw new ConfigError(
      `loss_weights: expected ${pref_loss.length} weights, one for each loss of pref_loss, got ${loss_weights.length}`,
    );
  const weights = pref_loss.map((name, i) => [name, loss_weights?.[i] ?? 1] as const);
  const pairs = weights.flatMap(([name, weight]): Weighted[] =>
    name === "sft" ? [] : [{ name, weight, loss: pairLosses[name] }],
  );
  if (pairs.length === 0)
    throw new ConfigError("pref_loss: sft alone prefers nothing: name another loss beside it, or take stage sft");

  for (const { name, loss } of pairs) {
    if (loss.smoothing === "must" && smoothing === 0)
      throw new ConfigError(`dpo_label_smoothing: pref_loss ${name} needs it above 0, such as 0.1`);
    if (f_divergence_type !== "reverse_kl" && !loss.takesDivergence)
      throw new ConfigError(`f_divergence_type: pref_loss ${name} has no form for ${f_divergence_type}: leave it out`);
  }
  if (smoothing > 0 && pairs.every(({ loss }) => loss.smoothing === "no"))
    throw new ConfigError(
      `dpo_label_smoothing: pref_loss ${pairs.map(({ name }) => name).join(", ")} does not read it: leave it out`,
    );
  if (pairs.every(({ loss }) => !loss.usesReference)) {
    const { ref_model, precompute_ref_log_probs } = config;
    const asking = { pref_bco_weight: pref_bco_weight > 0, ref_model: ref_model !== null, precompute_ref_log_probs };
    for (const [key, isSet] of Object.entries(asking))
      if (isSet)
        throw new ConfigError(
          `${key}: pref_loss ${pairs.map(({ name }) => name).join(", ")} compares with no reference: leave it out`,
        );
  }

  const weightOf = (of: LossName) => weights.reduce((sum, [name, weight]) => sum + (name === of ? weight : 0), 0);
  return {
    pairs,
    nllWeight: weightOf("sft") + weightOf("cpo") * (cpo_alpha ?? 1) + weightOf("simpo") * (cpo_alpha ?? 0),
    allTokensWeight: orpo_nll === "all_tokens" ? weightOf("orpo") : 0,
    ftx: config.pref_ftx + (orpo_nll === "answer" ? weightOf("orpo") : 0),
  };
}

/** The part of the loss that is averaged over pairs, of the log-probabilities (N) of the answers' tokens; its gradient has one number for each. */
export type PreferenceLoss = (
  batch: PairBatch,
  policy: Float32Array,
  reference: Float32Array | null,
) => ReturnType<ComputedTerm["loss"]>;

/** All that is averaged over pairs, as the settings say. */
export function preferenceLoss(config: DpoConfig, delta: RunningDelta): PreferenceLoss {
  const { pref_beta: beta, ld_alpha, ld_alpha_reference, pref_bco_weight: bcoWeight } = config;
  const { pairs, ftx } = lossesOf(config);
  const settings: PairSettings = {
    beta,
    smoothing: config.dpo_label_smoothing,
    gamma: config.simpo_gamma,
    tau: config.discopop_tau,
    divergence: { name: config.f_divergence_type, alpha: config.f_alpha_divergence_coef },
  };
  const usesReference = pairs.some(({ loss }) => loss.usesReference);
  const usesMeans = pairs.every(({ loss }) => loss.compares === "means");
  return (batch, policy, reference) => {
    const weights = lengthDesensitized(batch, ld_alpha);
    const scores = scoresOf(batch, policy, reference, { policy: weights, reference: ld_alpha_reference ? weights : undefined });
    const values = pairs.map(({ loss }) => loss.compute(scores, settings));
    const total = weightedSum(values.map((value, i) => [value, pairs[i]!.weight]));
    const rewards = rewardsOf(scores, beta, usesReference ? "ratios" : usesMeans ? "means" : "sums");
    if (bcoWeight > 0) {
      mixBco(total, rewards, { beta, weight: bcoWeight, delta: batch.delta ?? delta.mean });
      if (batch.delta !== undefined) delta.add([...rewards.chosen, ...rewards.rejected]);
    }

    const { branches } = batch;
    const lengths = lengthsOf(branches);
    const gradient = new Float32Array(policy.length);
    const chosenMeans = new Float64Array(batch.pairs);
    for (const [i, answer] of branches.answers.entries()) {
      const pair = answer >> 1;
      const isChosen = answer % 2 === 0;
      const slope = (isChosen ? total.chosen : total.rejected)[pair]! * (weights?.[i] ?? 1);
      gradient[i] = slope - (isChosen ? ftx / lengths[answer]! : 0);
      if (isChosen) chosenMeans[pair]! += policy[i]! / lengths[answer]!;
    }
    const sum = sumOf(total.losses) - ftx * sumOf(chosenMeans);
    const mean = (each: Float64Array): Total => ({ sum: sumOf(each), count: batch.pairs });
    const parts = pairs.length === 1 ? [] : pairs.map(({ name }, i) => [`pref_loss/${name}`, mean(values[i]!.losses)] as const);
    return {
      sum,
      gradient,
      metrics: {
        ...metricsOf(scores, rewards),
        ...Object.fromEntries(
          values.flatMap(({ metrics = {} }) => Object.entries(metrics).map(([name, each]) => [name, mean(each)])),
        ),
        ...Object.fromEntries(parts),
        ...(ftx > 0 && { sft_loss: mean(chosenMeans.map((value) => -value)) }),
      },
    };
  };
}

function weightedSum(parts: readonly (readonly [PairValues, number])[]): {
  losses: Float64Array;
  chosen: Float64Array;
  rejected: Float64Array;
} {
  const add = (key: "losses" | "chosen" | "rejected") =>
    parts[0]![0][key].map((_, i) => parts.reduce((sum, [values, weight]) => sum + weight * values[key][i]!, 0));
  return { losses: add("losses"), chosen: add("chosen"), rejected: add("rejected") };
}

interface Rewards {
  readonly chosen: Float64Array;
  readonly rejected: Float64Array;
}

/** β times what is compared: log-ratios to the reference or, without one, log-probabilities or their means, as TRL tells them. */
function rewardsOf(scores: PairScores, beta: number, of: "ratios" | "sums" | "means"): Rewards {
  const side = (own: Float64Array, reference: Float64Array, tokens: Float64Array) =>
    own.map((value, i) => (beta * (value - reference[i]!)) / (of === "means" ? tokens[i]! : 1));
  return {
    chosen: side(scores.chosen, scores.referenceChosen, scores.chosenTokens),
    rejected: side(scores.rejected, scores.referenceRejected, scores.rejectedTokens),
  };
}

/** (L + w · BCO) / (1 + w), in place. Source: LLaMA-Factory, train/dpo/trainer.py (bco_loss). */
function mixBco(
  { losses, chosen, rejected }: { losses: Float64Array; chosen: Float64Array; rejected: Float64Array },
  rewards: Rewards,
  { beta, weight, delta }: { beta: number; weight: number; delta: number },
): void {
  for (const i of losses.keys()) {
    const [c, r] = [rewards.chosen[i]! - delta, rewards.rejected[i]! - delta];
    losses[i] = (losses[i]! - weight * (logSigmoid(c) + logSigmoid(-r))) / (1 + weight);
    chosen[i] = (chosen[i]! - weight * beta * sigmoid(-c)) / (1 + weight);
    rejected[i] = (rejected[i]! + weight * beta * sigmoid(r)) / (1 + weight);
  }
}

function metricsOf({ chosen, rejected }: PairScores, rewards: Rewards): Record<string, Total> {
  const mean = (values: Float64Array): Total => ({ sum: sumOf(values), count: values.length });
  const margins = rewards.chosen.map((reward, i) => reward - rewards.rejected[i]!);
  return {
    "rewards/chosen": mean(rewards.chosen),
    "rewards/rejected": mean(rewards.rejected),
    "rewards/accuracies": mean(margins.map((margin) => (margin > 0 ? 1 : 0))),
    "rewards/margins": mean(margins),
    "logps/chosen": mean(chosen),
    "logps/rejected": mean(rejected),
  };
}

function sumOf(values: Float64Array): number {
  return values.reduce((sum, value) => sum + value, 0);
}
