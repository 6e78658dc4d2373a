import { scope, Tensor } from "../core/tensor.js";
import { DivergedError } from "../errors.js";

/** How the next token is drawn from the logits. Steps in transformers' order: repetition penalty, temperature, top-k, top-p. */
export interface SamplingOptions {
  /** 0 takes the most likely token; above, logits are divided by it. */
  readonly temperature: number;
  /** Only the most likely tokens whose chances add up to this (nucleus: Holtzman et al. 2020, arXiv:1904.09751). */
  readonly topP: number;
  /** Only so many of the most likely tokens; 0 for all. */
  readonly topK: number;
  /** Above 1, tokens that stand in the text already become less likely (Keskar et al. 2019, arXiv:1909.05858, §4.1). */
  readonly repetitionPenalty: number;
}

export const greedy: SamplingOptions = { temperature: 0, topP: 1, topK: 0, repetitionPenalty: 1 };

/** How to draw from one row of logits. */
export interface Draw {
  readonly sampling: SamplingOptions;
  /** In [0, 1): chooses among the chances, laid one behind the other from the likeliest token on. */
  readonly uniform: number;
  /** Tokens that the repetition penalty is for, each once. */
  readonly seen: Iterable<number>;
  /** The temperature of the log-probabilities; null where none are wanted. */
  readonly logProbTemperature: number | null;
}

/** A token and log softmax(logits / T) of it, before penalty and cuts; 0 where none was wanted. */
export interface TokenLogProb {
  readonly id: number;
  readonly logProb: number;
}

/** A drawn token; `top`: the likeliest ones, the first first. */
export interface Sample extends TokenLogProb {
  readonly top: readonly TokenLogProb[];
}

/**
 * Draws a token from each row of logits (rows, V), and tells its log-probability and those of the `top` likeliest where they are wanted. Nothing else
 * leaves the engine. A row that says nothing (a logit is NaN, or the largest is infinite) gives its error instead.
 */
export async function sampleRows(logits: Tensor, draws: readonly Draw[], top: number): Promise<(Sample | DivergedError)[]> {
  const { rows, columns: vocab, device } = logits;
  const numbers = draws.flatMap(({ sampling: { temperature, topP, topK, repetitionPenalty }, uniform, logProbTemperature }) => [
    ...[temperature, topP, topK, repetitionPenalty, uniform, logProbTemperature ?? 0],
  ]);
  const places = draws.flatMap(({ sampling, seen }, row) =>
    sampling.repetitionPenalty === 1 ? [] : Array.from(seen, (id) => row * vocab + id),
  );
  const drawn = scope(() => {
    const y = Tensor.empty(device, [rows, 2 * (1 + top)]);
    device.kernels.sample(logits.id, Float64Array.from(numbers), Int32Array.from(places), y.id, rows, vocab, top);
    return y;
  });
  try {
    const values = await drawn.read();
    return draws.map((_, row) => {
      const pairs = Array.from({ length: 1 + top }, (_, i): TokenLogProb => {
        const at = 2 * (row * (1 + top) + i);
        return { id: values[at]!, logProb: values[at + 1]! };
      });
      const { id, logProb } = pairs[0]!;
      return id < 0 ? divergedAt(logProb) : { id, logProb, top: pairs.slice(1) };
    });
  } finally {
    drawn.dispose();
  }
}

/** Throws DivergedError for a logit that is not finite. */
export function requireFinite(logit: number): void {
  if (!Number.isFinite(logit)) throw divergedAt(logit);
}

function divergedAt(logit: number): DivergedError {
  return new DivergedError(`the model's logits are ${logit}: its weights, or those of its adapter, are damaged or have diverged`);
}
