import { scope, type Tensor } from "../core/tensor.js";
import type { Example } from "../data/example.js";
import type { CausalLM } from "../models/causal-lm.js";
import { packSequences } from "../models/token-batch.js";
import { nextToken } from "../objectives/next-token.js";
import { type ChatFormat, renderPrompt } from "../text/supervised.js";

/** What a model says, to be held against what it says after a change. */
export interface Measurement {
  /** At the last positions of each probe, one row behind the other. */
  readonly logits: Float32Array;
  /** Mean over the supervised tokens of the held-out rows; null without rows. */
  readonly loss: number | null;
}

/** What a change of weights did to a model. */
export interface Drift {
  /** Largest |difference| of a logit, and how many were compared. */
  readonly maxLogitDifference: number;
  readonly logits: number;
  /** Share of positions at which the likeliest token is still the same. */
  readonly sameToken: number;
  readonly lossBefore: number | null;
  readonly lossAfter: number | null;
}

const questions: readonly string[] = [
  "What is the capital of France?",
  "Write a short poem about the sea.",
  "Explain in two sentences why the sky is blue.",
  "Translate to German: The train leaves at half past nine.",
];
const maxProbes = 4;
const maxProbeTokens = 256;
const positionsOfProbe = 16;

/** Sequences to compare logits on: held-out rows if there are any, else built-in questions as the template writes them. */
export function probesFor(chat: ChatFormat, heldOut: readonly Example[]): Int32Array[] {
  if (heldOut.length > 0) return heldOut.slice(0, maxProbes).map(({ ids }) => ids.subarray(0, maxProbeTokens));
  return questions.map((content) => renderPrompt(chat, { messages: [{ role: "user", content }] }).subarray(0, maxProbeTokens));
}

export async function measure(model: CausalLM, probes: readonly Int32Array[], heldOut: readonly Example[]): Promise<Measurement> {
  const { vocabSize } = model.shape;
  const counts = probes.map(({ length }) => Math.min(length, positionsOfProbe));
  const logits = new Float32Array(counts.reduce((sum, count) => sum + count, 0) * vocabSize);
  let at = 0;
  for (const [i, ids] of probes.entries()) {
    const rows = Int32Array.from({ length: counts[i]! }, (_, row) => ids.length - counts[i]! + row);
    logits.set(await taken(scope(() => model.logits(packSequences([ids]), rows))), at);
    at += rows.length * vocabSize;
  }
  return { logits, loss: heldOut.length === 0 ? null : await meanLoss(model, heldOut) };
}

async function meanLoss(model: CausalLM, rows: readonly Example[]): Promise<number> {
  let [sum, count] = [0, 0];
  for (const row of rows) {
    const batch = nextToken.collate([row]);
    sum += (await taken(scope(() => nextToken.loss(model, batch))))[0]!;
    count += batch.count;
  }
  return sum / count;
}

async function taken(tensor: Tensor): Promise<Float32Array> {
  const values = await tensor.read();
  tensor.dispose();
  return values;
}

export function driftBetween(before: Measurement, after: Measurement, vocabSize: number): Drift {
  const positions = before.logits.length / vocabSize;
  let [largest, same] = [0, 0];
  for (let row = 0; row < positions; row++) {
    const [a, b] = [before.logits, after.logits].map((logits) => logits.subarray(row * vocabSize, (row + 1) * vocabSize));
    let [bestA, bestB] = [0, 0];
    for (let i = 0; i < vocabSize; i++) {
      const difference = Math.abs(a![i]! - b![i]!);
      if (!(difference <= largest)) largest = difference; // NaN stays
      if (a![i]! > a![bestA]!) bestA = i;
      if (b![i]! > b![bestB]!) bestB = i;
    }
    if (bestA === bestB) same++;
  }
  return {
    maxLogitDifference: largest,
    logits: before.logits.length,
    sameToken: same / positions,
    lossBefore: before.loss,
    lossAfter: after.loss,
  };
}
