import { type Divergence, scoreOf } from "./divergences.js";
import { logOdds, logSigmoid, sigmoid } from "./math.js";

/**
 * Log-probabilities of P pairs, each (P): of whole answers, summed over their tokens; those of the reference are 0 where there is none.
 * Below, h = log π(y|x) − log π_ref(y|x) is an answer's log-ratio, c the chosen and r the rejected answer, |y| its tokens.
 */
export interface PairScores {
  readonly chosen: Float64Array;
  readonly rejected: Float64Array;
  readonly referenceChosen: Float64Array;
  readonly referenceRejected: Float64Array;
  readonly chosenTokens: Float64Array;
  readonly rejectedTokens: Float64Array;
}

export interface PairSettings {
  /** β: how far the model may go from the reference; λ of ORPO. */
  readonly beta: number;
  /** ε: the share of pairs that are taken to be labelled the wrong way round. */
  readonly smoothing: number;
  /** γ of SimPO. */
  readonly gamma: number;
  /** τ of DiscoPOP. */
  readonly tau: number;
  readonly divergence: Divergence;
}

/** What a loss comes to: of each pair, its value and the derivatives by log π of both answers, each (P). */
export interface PairValues {
  readonly losses: Float64Array;
  readonly chosen: Float64Array;
  readonly rejected: Float64Array;
  /** Further numbers of each pair, by the names of TRL's metrics. */
  readonly metrics?: Readonly<Record<string, Float64Array>>;
}

export interface PairLoss {
  readonly summary: string;
  /** Whether it compares with a reference. */
  readonly usesReference: boolean;
  /** Whether ε changes it: `no`, `may`, or `must` be above 0. */
  readonly smoothing: "no" | "may" | "must";
  /** Whether another f-divergence can take the place of the reverse KL. Source: Wang et al. 2023, arXiv:2309.16240; TRL allows the same. */
  readonly takesDivergence: boolean;
  /** What it compares the answers by: sums over tokens, or means. */
  readonly compares: "sums" | "means";
  compute(scores: PairScores, settings: PairSettings): PairValues;
}

/** [loss, derivative by the first argument, by the second]. */
type Value = readonly [loss: number, dChosen: number, dRejected: number];

interface PairAt {
  readonly chosenTokens: number;
  readonly rejectedTokens: number;
}

type OfScores = (chosen: number, rejected: number, settings: PairSettings, at: PairAt) => Value;

/** A loss of one pair's scores: its log-ratios, or what the f-divergence makes of them. */
function ofScores(summary: string, of: OfScores, more: Partial<Pick<PairLoss, "smoothing" | "takesDivergence">> = {}): PairLoss {
  return {
    ...{ summary, usesReference: true, smoothing: "no", takesDivergence: true, compares: "sums", ...more },
    compute: (scores, settings) =>
      perPair(scores, (i) => {
        const [c, dc] = scoreOf(scores.chosen[i]! - scores.referenceChosen[i]!, settings.divergence);
        const [r, dr] = scoreOf(scores.rejected[i]! - scores.referenceRejected[i]!, settings.divergence);
        const [loss, a, b] = of(c, r, settings, {
          chosenTokens: scores.chosenTokens[i]!,
          rejectedTokens: scores.rejectedTokens[i]!,
        });
        return [loss, a * dc, b * dr];
      }),
  };
}

/** A loss of one pair's log-ratios that is no function of the difference of scores alone, and so has no form for other divergences. */
function ofRatios(summary: string, of: OfScores): PairLoss {
  return ofScores(summary, of, { takesDivergence: false });
}

/** A loss of the policy's log-probabilities alone, without a reference: sums over tokens or means, as it compares. */
function ofPolicy(
  summary: string,
  compares: PairLoss["compares"],
  of: OfScores,
  metrics: (chosen: number, rejected: number) => Readonly<Record<string, number>> = () => ({}),
): PairLoss {
  return {
    ...{ summary, usesReference: false, smoothing: "may", takesDivergence: false, compares },
    compute(scores, settings) {
      const { chosenTokens, rejectedTokens } = scores;
      const [n, m] = compares === "means" ? [chosenTokens, rejectedTokens] : [null, null];
      const at = (i: number) => [scores.chosen[i]! / (n?.[i] ?? 1), scores.rejected[i]! / (m?.[i] ?? 1)] as const;
      const values = perPair(scores, (i) => {
        const [loss, a, b] = of(...at(i), settings, { chosenTokens: chosenTokens[i]!, rejectedTokens: rejectedTokens[i]! });
        return [loss, a / (n?.[i] ?? 1), b / (m?.[i] ?? 1)];
      });
      const told = [...scores.chosen.keys()].map((i) => metrics(...at(i)));
      const names = Object.keys(told[0] ?? {});
      return {
        ...values,
        metrics: Object.fromEntries(names.map((name) => [name, Float64Array.from(told, (each) => each[name]!)])),
      };
    },
  };
}

function perPair({ chosen }: PairScores, of: (i: number) => Value): PairValues {
  const values = {
    losses: new Float64Array(chosen.length),
    chosen: new Float64Array(chosen.length),
    rejected: new Float64Array(chosen.length),
  };
  for (let i = 0; i < chosen.length; i++) {
    const [loss, c, r] = of(i);
    values.losses[i] = loss;
    values.chosen[i] = c;
    values.rejected[i] = r;
  }
  return values;
}

/** −log σ(z), smoothed: −(1−ε) log σ(z) − ε log σ(−z); and its derivative. */
function logistic(z: number, smoothing = 0): readonly [loss: number, slope: number] {
  return [-(1 - smoothing) * logSigmoid(z) - smoothing * logSigmoid(-z), sigmoid(z) - 1 + smoothing];
}

/** The pairs from the smallest value to the largest. */
function ascending(values: Float64Array): number[] {
  return [...values.keys()].sort((i, j) => values[i]! - values[j]! || i - j);
}

function differences(a: Float64Array, b: Float64Array): Float64Array {
  return a.map((value, i) => value - b[i]!);
}

/** AOT of two sorted lists: the cDPO form of their differences. Its value at place k belongs to the k-th of the first list. */
function sortedLogistic(first: Float64Array, second: Float64Array, { beta, smoothing }: PairSettings) {
  const [a, b] = [ascending(first), ascending(second)];
  const values = {
    losses: new Float64Array(first.length),
    first: new Float64Array(first.length),
    second: new Float64Array(first.length),
  };
  for (const [k, i] of a.entries()) {
    const [loss, slope] = logistic(beta * (first[i]! - second[b[k]!]!), smoothing);
    values.losses[i] = loss;
    values.first[i] = beta * slope;
    values.second[b[k]!] = -beta * slope;
  }
  return values;
}

const perMicroBatch = "over the pairs of a micro-batch: accumulation is not the same as a larger batch";

/**
 * The losses of `pref_loss`, with β = pref_beta, ε = dpo_label_smoothing, z = β (h_c − h_r).
 * Sources: TRL 1.16, trainer/dpo_trainer.py, experimental/orpo and experimental/cpo; LLaMA-Factory 0.9.5, train/dpo/trainer.py; the papers named at each.
 */
export const pairLosses = {
  /** Rafailov et al. 2023, arXiv:2305.18290, eq. 7; with ε, cDPO (Mitchell 2023), as LLaMA-Factory and TRL up to 0.24 have it. TRL 1.16 leaves ε out here. */
  sigmoid: ofScores(
    "DPO: −log σ(z); with dpo_label_smoothing the same as cdpo",
    (c, r, { beta, smoothing }) => {
      const [loss, slope] = logistic(beta * (c - r), smoothing);
      return [loss, beta * slope, -beta * slope];
    },
    { smoothing: "may" },
  ),
  cdpo: ofScores(
    "cDPO: −(1−ε) log σ(z) − ε log σ(−z)",
    (c, r, { beta, smoothing }) => {
      const [loss, slope] = logistic(beta * (c - r), smoothing);
      return [loss, beta * slope, -beta * slope];
    },
    { smoothing: "must" },
  ),
  /** Zhao et al. 2023, arXiv:2305.10425 (SLiC), on normalized likelihoods as Liu et al. 2023, arXiv:2309.06657. */
  hinge: ofScores("SLiC: max(0, 1 − z)", (c, r, { beta }) => {
    const rest = 1 - beta * (c - r);
    return rest > 0 ? [rest, -beta, beta] : [0, 0, 0];
  }),
  /** Azar et al. 2023, arXiv:2310.12036, eq. 17, with means over tokens: as TRL, confirmed there by the authors. */
  ipo: ofScores("IPO: (h_c/|y_c| − h_r/|y_r| − 1/(2β))²", (c, r, { beta }, { chosenTokens: n, rejectedTokens: m }) => {
    const rest = c / n - r / m - 1 / (2 * beta);
    return [rest * rest, (2 * rest) / n, (-2 * rest) / m];
  }),
  /** DPO of means, as Tulu 3 (Lambert et al. 2024, arXiv:2411.15124). */
  sigmoid_norm: ofScores(
    "DPO of means: −log σ(β (h_c/|y_c| − h_r/|y_r|))",
    (c, r, { beta }, { chosenTokens: n, rejectedTokens: m }) => {
      const [loss, slope] = logistic(beta * (c / n - r / m));
      return [loss, (beta * slope) / n, (-beta * slope) / m];
    },
  ),
  /** Chowdhury et al. 2024, arXiv:2403.00409. */
  robust: ofScores(
    "robust DPO: (−(1−ε) log σ(z) + ε log σ(−z)) / (1−2ε)",
    (c, r, { beta, smoothing: e }) => {
      const z = beta * (c - r);
      const loss = (-(1 - e) * logSigmoid(z) + e * logSigmoid(-z)) / (1 - 2 * e);
      const slope = (-(1 - e) * sigmoid(-z) - e * sigmoid(z)) / (1 - 2 * e);
      return [loss, beta * slope, -beta * slope];
    },
    { smoothing: "must" },
  ),
  /** Ji et al. 2024, arXiv:2402.00856, eq. 16 for two answers. */
  exo_pair: ofScores(
    "EXO: σ(z)(log σ(z) − log(1−ε)) + σ(−z)(log σ(−z) − log ε)",
    (c, r, { beta, smoothing: e }) => {
      const z = beta * (c - r);
      const [p, q] = [sigmoid(z), sigmoid(-z)];
      const [a, b] = [logSigmoid(z) - Math.log1p(-e), logSigmoid(-z) - Math.log(e)];
      const slope = p * q * (a - b);
      return [p * a + q * b, beta * slope, -beta * slope];
    },
    { smoothing: "must" },
  ),
  /** Chen et al. 2024, arXiv:2402.05369. */
  nca_pair: ofRatios("NCA: −log σ(βh_c) − ½ log σ(−βh_c) − ½ log σ(−βh_r)", (c, r, { beta }) => {
    const [x, y] = [beta * c, beta * r];
    const loss = -logSigmoid(x) - 0.5 * logSigmoid(-x) - 0.5 * logSigmoid(-y);
    return [loss, beta * (-sigmoid(-x) + 0.5 * sigmoid(x)), 0.5 * beta * sigmoid(y)];
  }),
  /** Jung et al. 2024, arXiv:2404.04656, without their running δ: `pref_bco_weight` and stage bco have it. */
  bco_pair: ofRatios("BCO without δ: −log σ(βh_c) − log σ(−βh_r)", (c, r, { beta }) => [
    -logSigmoid(beta * c) - logSigmoid(-beta * r),
    -beta * sigmoid(-beta * c),
    beta * sigmoid(beta * r),
  ]),
  /** Wu et al. 2024, arXiv:2405.00675, eq. 4.7 with hard probabilities. */
  sppo_hard: ofRatios("SPPO: (h_c − 1/(2β))² + (h_r + 1/(2β))²", (c, r, { beta }) => {
    const [a, b] = [c - 0.5 / beta, r + 0.5 / beta];
    return [a * a + b * b, 2 * a, 2 * b];
  }),
  /** D'Oosterlinck et al. 2024, arXiv:2408.06266, eq. 7: chosen answers are better than the model's own. */
  apo_zero: ofRatios("APO-zero: 1 − σ(βh_c) + σ(βh_r)", (c, r, { beta }) => {
    const [p, q] = [sigmoid(beta * c), sigmoid(beta * r)];
    return [1 - p + q, -beta * p * (1 - p), beta * q * (1 - q)];
  }),
  /** The same, eq. 8: chosen answers are worse than the model's own. */
  apo_down: ofRatios("APO-down: σ(βh_c) + 1 − σ(z)", (c, r, { beta }) => {
    const [p, q] = [sigmoid(beta * c), sigmoid(beta * (c - r))];
    const slope = q * (1 - q);
    return [p + 1 - q, beta * (p * (1 - p) - slope), beta * slope];
  }),
  /** Lu et al. 2024, arXiv:2406.08414, eq. 5 (LRML). */
  discopop: ofScores("DiscoPOP: m = σ(z/τ), (1−m)(−log σ(z)) + m e^−z", (c, r, { beta, tau }) => {
    const z = beta * (c - r);
    const m = sigmoid(z / tau);
    const [a, b] = [-logSigmoid(z), Math.exp(-z)];
    const slope = ((m * (1 - m)) / tau) * (b - a) - (1 - m) * sigmoid(-z) - m * b;
    return [(1 - m) * a + m * b, beta * slope, -beta * slope];
  }),
  /** Melnyk et al. 2024, arXiv:2406.05882. */
  aot: {
    ...{ summary: `AOT: log-ratios of policy and of reference, each sorted ${perMicroBatch}; cDPO of the differences` },
    ...{ usesReference: true, smoothing: "may", takesDivergence: false, compares: "sums" },
    compute({ chosen, rejected, referenceChosen, referenceRejected }, settings) {
      const policy = differences(chosen, rejected);
      const { losses, first } = sortedLogistic(policy, differences(referenceChosen, referenceRejected), settings);
      return { losses, chosen: first, rejected: first.map((slope) => -slope) };
    },
  },
  aot_unpaired: {
    ...{ summary: `AOT of unpaired answers: h_c and h_r, each sorted ${perMicroBatch}` },
    ...{ usesReference: true, smoothing: "may", takesDivergence: false, compares: "sums" },
    compute({ chosen, rejected, referenceChosen, referenceRejected }, settings) {
      const { losses, first, second } = sortedLogistic(
        differences(chosen, referenceChosen),
        differences(rejected, referenceRejected),
        settings,
      );
      return { losses, chosen: first, rejected: second };
    },
  },
  /**
   * Ethayarajh et al. 2024, arXiv:2402.01306, of pairs, as TRL 0.7 to 0.8 had it and LLaMA-Factory names it: the KL of each side is estimated on the other. It is
   * not differentiated, as the paper says; the mean is over answers, so a pair counts half of both.
   */
  kto_pair: {
    ...{
      summary: `KTO of pairs: ½(1 − σ(β(h_c − KL_r))) + ½(1 − σ(β(KL_c − h_r))), KL the mean of h, at least 0, ${perMicroBatch}`,
    },
    ...{ usesReference: true, smoothing: "no", takesDivergence: false, compares: "sums" },
    compute({ chosen, rejected, referenceChosen, referenceRejected }, { beta }) {
      const [c, r] = [differences(chosen, referenceChosen), differences(rejected, referenceRejected)];
      const [klOfChosen, klOfRejected] = [c, r].map((h) => Math.max(0, h.reduce((sum, x) => sum + x, 0) / h.length));
      return perPair({ chosen } as PairScores, (i) => {
        const [p, q] = [sigmoid(beta * (c[i]! - klOfRejected!)), sigmoid(beta * (klOfChosen! - r[i]!))];
        return [0.5 * (1 - p) + 0.5 * (1 - q), -0.5 * beta * p * (1 - p), 0.5 * beta * q * (1 - q)];
      });
    },
  },
  /** Hong et al. 2024, arXiv:2403.07691, eq. 6 and 7; the likelihood term beside it is `orpo_nll`'s. */
  orpo: {
    ...ofPolicy(
      "ORPO, without a reference: β · −log σ(log-odds of the mean log-probabilities, chosen − rejected), plus the likelihood of the chosen answer (orpo_nll)",
      "means",
      (c, r, { beta }) => {
        const [a, b] = [logOdds(c), logOdds(r)];
        const [loss, slope] = logistic(a.value - b.value);
        return [beta * loss, beta * slope * a.slope, -beta * slope * b.slope];
      },
      (c, r) => {
        const odds = logOdds(c).value - logOdds(r).value;
        return { log_odds_chosen: odds, log_odds_ratio: logSigmoid(odds) };
      },
    ),
    smoothing: "no",
  },
  /** Meng et al. 2024, arXiv:2405.14734, eq. 6. LLaMA-Factory's is this alone; TRL's CPOTrainer adds cpo_alpha · NLL. */
  simpo: ofPolicy(
    "SimPO, without a reference: −log σ(β (mean log π_c − mean log π_r) − simpo_gamma)",
    "means",
    (c, r, { beta, gamma, smoothing }) => {
      const [loss, slope] = logistic(beta * (c - r) - gamma, smoothing);
      return [loss, beta * slope, -beta * slope];
    },
  ),
  /** Xu et al. 2024, arXiv:2401.08417, eq. 3. */
  cpo: ofPolicy(
    "CPO, without a reference: −log σ(β (log π_c − log π_r)), plus cpo_alpha · NLL of the chosen answer",
    "sums",
    (c, r, { beta, smoothing }) => {
      const [loss, slope] = logistic(beta * (c - r), smoothing);
      return [loss, beta * slope, -beta * slope];
    },
  ),
} as const satisfies Readonly<Record<string, PairLoss>>;

export type PairLossName = keyof typeof pairLosses;
