import { z } from "zod";
import { gatherRows } from "../../../core/ops/rows.js";
import { owned, type Tensor } from "../../../core/tensor.js";
import { shuffled } from "../../../data/batches.js";
import { CheckpointError } from "../../../errors.js";
import type { LanguageModel } from "../../../models/language-model.js";
import { Linear } from "../../../nn/linear.js";
import { sumOf } from "../../../rewards/judge.js";
import type { SharedBase } from "../../../tuners/shared-base.js";
import type { Task, Total } from "../../objective.js";
import type { Judges } from "../judges.js";
import {
  answerLogProbs,
  collatePolicy,
  cut,
  hiddenOf,
  longestAnswer,
  type PolicyBatch,
  type PolicyRow,
  scoreAnswers,
  split,
} from "../policy.js";
import { definePolicyStage, PolicyRounds, policyKeys } from "../policy-stage.js";
import type { SamplingSettings } from "../settings.js";
import { divergences, generalizedAdvantages, klEstimators, tokenRewards, varianceKinds, whitened } from "./advantages.js";
import { type Moments, nextCoefficient, noMoments, normalizedScore, withScores } from "./kl-control.js";
import { type PpoTrajectory, policyLoss, valueLoss } from "./ppo-loss.js";

export const PpoConfig = z.strictObject({
  ...policyKeys,
  ppo_epochs: z.int().min(1).max(100).default(4).describe("how often the answers of a roll-out are trained on"),
  ppo_buffer_size: z
    .int()
    .min(1)
    .max(1000)
    .default(1)
    .describe("how many optimizer steps' worth of prompts one roll-out answers; an epoch over it has so many steps"),
  center_scores: z
    .boolean()
    .default(true)
    .describe(
      "whether scores count from their mean in the first roll-out: values begin at 0, and where every score is below it, learning puts off the end of answers",
    ),
  ppo_score_norm: z.boolean().default(false).describe("give scores mean 0 and deviation 1, over all of the run so far"),
  ppo_whiten_rewards: z
    .boolean()
    .default(false)
    .describe("give the rewards of tokens deviation 1, before advantages are made of them"),
  ppo_target: z
    .number()
    .gt(0)
    .default(6)
    .describe("what the KL divergence from the reference is held to, in nats per answer, where `kl_control` is adaptive"),
  kl_control: z
    .enum(["adaptive", "fixed"])
    .default("adaptive")
    .describe("whether the weight of the divergence follows `ppo_target`, as in LLaMA-Factory; TRL's last PPO: fixed"),
  kl_coef: z
    .number()
    .min(0)
    .default(0.2)
    .describe("what a nat of divergence takes from the rewards, at the start; 0: no reference is kept (TRL's last PPO: 0.05)"),
  kl_horizon: z.number().gt(0).default(10_000).describe("answers in which an adaptive weight changes by at most a fifth"),
  kl_estimator: z
    .enum(klEstimators)
    .default("k1")
    .describe("of the divergence at a token: k1, log π − log π_ref, which may be below 0; or k3, which is not"),
  cliprange: z
    .number()
    .gt(0)
    .max(1)
    .default(0.2)
    .describe("how far from 1 the ratio of a token to the policy that answered counts"),
  cliprange_value: z.number().gt(0).default(0.2).describe("how far from its first estimate a value counts"),
  vf_coef: z.number().min(0).default(0.1).describe("weight of the value loss"),
  gamma: z.number().gt(0).max(1).default(1).describe("what a reward one token later counts"),
  lam: z.number().min(0).max(1).default(0.95).describe("λ of generalized advantage estimation"),
  whiten_variance: z
    .enum(varianceKinds)
    .default("sample")
    .describe(
      "the variance that advantages and rewards are divided by: with Bessel's correction, as in TRL, or without, as in the papers",
    ),
  missing_eos_penalty: z
    .number()
    .gt(0)
    .nullable()
    .default(null)
    .describe("taken from the score of an answer that no stop token ended"),
  ratio_threshold: z.number().gt(1).default(10).describe("answers whose mean ratio is above it are left out of a step"),
});
export type PpoConfig = z.output<typeof PpoConfig>;

type PpoRow = PolicyRow<PpoTrajectory>;
type PpoBatch = PolicyBatch<PpoTrajectory>;

/**
 * Proximal policy optimization: a policy answers, a reward judges whole answers, and a value head on the policy's own trunk says of each token whether
 * the rest came out better than expected. What the policy goes from the reference costs reward at each token.
 * Sources: Schulman et al. 2017; Ziegler et al. 2019; keys and defaults as LLaMA-Factory has them with TRL 0.9.6. Where we differ: no dropout; sampling
 * by temperature alone; scores are centred on those of the policy that began (as Huang et al. 2024, arXiv:2403.17031, centre reward models); means are over the tokens of a step, whatever its micro-batches; advantages are whitened over the whole roll-out.
 */
export const ppo = definePolicyStage<PpoTrajectory, PpoConfig>({
  name: "ppo",
  summary: "makes answers likelier that a reward finds better than a value head expected",
  config: PpoConfig,
  otherNames: { num_ppo_epochs: "ppo_epochs", init_kl_coef: "kl_coef" },
  taskOf: ppoTask,
});

/** What outlives a round. */
const State = z.strictObject({
  kl_coef: z.number().min(0),
  scores: z.strictObject({ count: z.int().min(0), mean: z.number(), variance: z.number().min(0) }),
  /** The mean score of the first roll-out; null before it. */
  center: z.number().nullable(),
});

export function ppoTask(config: PpoConfig & SamplingSettings, judges: Judges): Task<PpoRow, PpoBatch> {
  const { temperature, ppo_epochs: epochs, ppo_buffer_size: bufferSize } = config;
  const hasReference = config.kl_coef > 0;
  const rounds = new PolicyRounds(config, judges, { count: 1, hasReference });
  const { health } = rounds.watch;
  let state: { readonly kl_coef: number; readonly scores: Moments; readonly center: number | null } = {
    ...{ kl_coef: config.kl_coef, scores: noMoments, center: null },
  };
  const longest = trajectoryOf(longestAnswer(config.max_new_tokens));
  const collate = (rows: readonly PpoRow[]) =>
    collatePolicy(
      rows,
      () => [longest],
      (answers) => {
        const tokens = sumOf(answers.map(({ counts, ids }) => (counts ? ids.length : 0)));
        return { policy: tokens, value: tokens };
      },
    );

  return {
    ...rounds.task,
    valueHead: true,
    stepsPerRound: epochs * bufferSize,
    bufferSize,
    collate,

    async rollOut(rows, at, base) {
      const { batchSizes, policy, rng, signal } = at;
      const answered = await rounds.answer(rows, at, base);
      const drawn = answered.map(({ row, answers: [answer] }): PpoRow => {
        return { ...row, answers: [trajectoryOf({ ids: answer!.ids, counts: answer!.reward !== null })] };
      });
      const scored: PpoRow[] = [];
      for (const batch of cut(drawn, batchSizes)) {
        signal.throwIfAborted();
        const laidOut = collate(batch);
        const own = await sayOf(laidOut, base, policy, temperature);
        const reference = hasReference
          ? await scoreAnswers(laidOut, (body) => base.withReference(body), temperature)
          : own.logProbs;
        scored.push(
          ...batch.map((row, i): PpoRow => {
            const known = { old: own.logProbs[i]!, reference: reference[i]!, values: own.values[i]! };
            return { ...row, answers: [{ ...row.answers![0]!, ...known }] };
          }),
        );
      }
      const given = answered.flatMap(({ answers }) => answers);
      const scores = withScores(
        state.scores,
        given.flatMap(({ reward }) => reward ?? []),
      );
      const center = state.center ?? scores.mean;
      const scoreOf = ({ reward, isFinished }: (typeof given)[number]) =>
        (config.ppo_score_norm ? normalizedScore(reward!, scores) : reward! - (config.center_scores ? center : 0)) -
        (isFinished ? 0 : (config.missing_eos_penalty ?? 0));
      const isJudged = given.map(({ reward }) => reward !== null);
      const judged = scored.flatMap(({ answers }, i) => (isJudged[i] ? [{ ...answers![0]!, score: scoreOf(given[i]!) }] : []));
      const { trajectories, metrics } = experienceOf(judged, state.kl_coef * health.factor, config);
      let next = 0;
      const learned = scored.map((row, i): PpoRow => (isJudged[i] ? { ...row, answers: [trajectories[next++]!] } : row));

      const steps = Array.from({ length: epochs }, (_, epoch) => {
        // The first epoch is laid out as it was scored, so that its first ratio is 1.
        const order = epoch === 0 ? learned : shuffled(learned, rng);
        return inSteps(cut(order, batchSizes), bufferSize);
      }).flat();
      const klPerAnswer = metrics.kl_per_answer!.sum / metrics.kl_per_answer!.count;
      const target = config.kl_control === "adaptive" ? config.ppo_target : null;
      const control = { target, horizon: config.kl_horizon, answers: judged.length };
      const made = rounds.experience(answered, steps, { ...metrics, kl_coef: { sum: state.kl_coef, count: 1 } });
      return {
        ...made,
        taken() {
          made.taken();
          state = { kl_coef: nextCoefficient(state.kl_coef, klPerAnswer, control), scores, center };
        },
      };
    },

    terms(model, { branches, answers }, base) {
      const hidden = hiddenOf(model, branches);
      return {
        policy: rounds.term(model, hidden, branches, (logProbs) => policyLoss(logProbs, answers, config)),
        value: {
          of: valuesOf(base, hidden, branches.rows),
          weight: config.vf_coef,
          loss: (values) => valueLoss(values, answers, config),
        },
      };
    },

    state: {
      save: () => ({ ...state, health: health.state.save() }),
      load(saved) {
        const { data, error } = State.extend({ health: z.unknown() }).safeParse(saved);
        if (error) throw new CheckpointError(`the checkpoint's state of stage ppo is damaged: ${z.prettifyError(error)}`);
        const { health: seen, ...own } = data;
        health.state.load(seen);
        state = own;
      },
    },
  };
}

/** An answer before anything is known of it. */
function trajectoryOf({ ids, counts, reference }: Pick<PpoTrajectory, "ids" | "counts" | "reference">): PpoTrajectory {
  const { length } = ids;
  const numbers = { old: new Float32Array(length), values: new Float32Array(length) };
  const estimates = { advantages: new Float64Array(length), returns: new Float64Array(length) };
  return { ids, counts, ...numbers, ...estimates, ...(reference && { reference }) };
}

/** What the value head expects before each token of the answers, (N, 1), given hidden states (T, C). */
function valuesOf({ beside }: SharedBase, hidden: Tensor, rows: Int32Array): Tensor {
  if (!(beside instanceof Linear)) throw new TypeError("stage ppo trains with a value head, and there is none");
  return beside.forward(gatherRows(hidden, rows));
}

/** What the policy says of the answers of a batch, read: log-probabilities and values, one array for each answer. */
async function sayOf({ branches, answers }: PpoBatch, base: SharedBase, policy: string, temperature: number) {
  const { result, free } = owned(() =>
    base.with(policy, (model: LanguageModel) => {
      const hidden = hiddenOf(model, branches);
      return [answerLogProbs(model, hidden, branches, temperature), valuesOf(base, hidden, branches.rows)] as const;
    }),
  );
  try {
    const [logProbs, values] = await Promise.all(result.map((tensor) => tensor.read()));
    return { logProbs: split(logProbs!, answers), values: split(values!, answers) };
  } finally {
    free();
  }
}

/** Answers with their scores become what is learned from them; metrics of the KL divergence are those of the estimator, per token and per answer. */
export function experienceOf(
  answers: readonly (PpoTrajectory & { readonly score: number })[],
  coefficient: number,
  config: Pick<PpoConfig, "kl_estimator" | "ppo_whiten_rewards" | "whiten_variance" | "gamma" | "lam">,
): { trajectories: PpoTrajectory[]; metrics: Record<string, Total> } {
  const kl = answers.map(({ old, reference }) => divergences(old!, reference!, config.kl_estimator));
  const raw = answers.map(({ score }, i) => tokenRewards(score, kl[i]!, coefficient));
  const rewards = config.ppo_whiten_rewards ? whitened(raw, config.whiten_variance, { keepsMean: true }) : raw;
  const estimates = answers.map(({ values }, i) => generalizedAdvantages(rewards[i]!, values, config.gamma, config.lam));
  const advantages = whitened(
    estimates.map((estimate) => estimate.advantages),
    config.whiten_variance,
  );
  const trajectories = answers.map(({ score: _, ...answer }, i): PpoTrajectory => {
    return { ...answer, advantages: advantages[i]!, returns: estimates[i]!.returns };
  });
  const total = kl.reduce((sum, of) => sum + sumOf([...of]), 0);
  const tokens = sumOf(answers.map(({ ids }) => ids.length));
  return {
    trajectories,
    metrics: {
      kl: { sum: total, count: tokens },
      kl_per_answer: { sum: total, count: answers.length },
      "value/explained_variance": { sum: explainedVariance(trajectories), count: 1 },
    },
  };
}

/** 1 − mean((V − R)²) / variance(R): 1 where values say all, below 0 where they say less than nothing. */
function explainedVariance(answers: readonly PpoTrajectory[]): number {
  const returns = answers.flatMap((answer) => [...answer.returns]);
  const values = answers.flatMap((answer) => [...answer.values]);
  const mean = sumOf(returns) / returns.length;
  const variance = sumOf(returns.map((value) => (value - mean) ** 2));
  const errors = sumOf(returns.map((value, i) => (value - values[i]!) ** 2));
  return variance === 0 ? 0 : 1 - errors / variance;
}

/** Micro-batches in so many steps; where there are fewer than steps, as in the last round of an epoch, some are taken again. */
function inSteps<T>(batches: readonly T[], steps: number): T[][] {
  const size = Math.ceil(batches.length / steps);
  const groups = Array.from({ length: Math.ceil(batches.length / size) }, (_, i) => batches.slice(i * size, (i + 1) * size));
  return Array.from({ length: steps }, (_, i) => groups[i % groups.length]!);
}
