import { scope, type Tensor } from "../core/tensor.js";
import type { Example } from "../data/example.js";
import { evaluate } from "../evaluate/evaluate.js";
import type { CausalLM } from "../models/causal-lm.js";
import { packSequences } from "../models/token-batch.js";
import { nextToken } from "../objectives/next-token.js";
import { type ChatFormat, renderPrompt } from "../text/supervised.js";
import { SharedBase } from "../tuners/shared-base.js";

/** What a change of weights did to a model. */
export interface Drift {
  /** Positions of text at which all logits were compared. */
  readonly positions: number;
  /** Largest and mean |difference| of a logit. */
  readonly maxLogitDifference: number;
  readonly meanLogitDifference: number;
  /** Mean of Σ p log(p / q) over the positions, with p before and q after, in nats. */
  readonly divergence: number;
  /** Share of positions at which the likeliest token is still the same. */
  readonly sameToken: number;
  /** Mean −log p of the next token of the probes. */
  readonly textLossBefore: number;
  readonly textLossAfter: number;
}

/** Text of many kinds, for who gives none: what rounding does to a model shows at some tokens and not at others. */
const passages: readonly string[] = [
  "The lighthouse keeper wrote down the weather every evening: wind from the north-west, rain towards midnight, two ships on the horizon. " +
    "Nobody had asked for the book in thirty years, but he kept it as if somebody would come for it in the morning.",
  "def mean(values):\n    total = 0.0\n    for value in values:\n        total += value\n    return total / len(values) if values else None\n",
  "Water boils at 100 degrees Celsius at sea level. On a mountain of 3,000 metres the air is thinner, and it boils at about 90 degrees, " +
    "so that potatoes take longer to cook.",
  '{"order": 1047, "customer": "M. Okafor", "items": [{"name": "flat white", "size": "large", "count": 2}], "paid": true}\n',
  "Zuerst schnitt sie das Brot, dann stellte sie Butter, Käse und zwei Gläser auf den Tisch und rief ihren Bruder herein.",
  "Chapter 3. Of the taxes on imported goods, and why the merchants of the port opposed them, although their own trade was hardly touched.",
  "12 + 30 = 42, 7 * 8 = 56, and 144 / 12 = 12. The square root of 81 is 9.\n\n| month | sales |\n|---|---|\n| May | 310 |\n| June | 295 |\n",
  "Le train de nuit arrive à Lyon à six heures et demie, si la neige ne bloque pas la vallée.",
  "今天下午我们去公园散步，湖边的树已经开始变黄了。",
  'const byName = new Map(users.map((user) => [user.name, user]));\nif (!byName.has("ann")) throw new Error("no such user");\n',
  "Dear Ms Lindqvist,\n\nthank you for your letter of 4 March. We have looked into the matter, and I am sorry to say that the parcel was lost " +
    "on its way. A new one will leave our house tomorrow.\n\nYours sincerely,\nP. Adeyemi",
  "She had never liked the sea; it was too large, too loud, and it gave nothing back. Still, every summer she found herself on the same bench.",
];
const questions: readonly string[] = ["What is the capital of France?", "Explain in two sentences why the sky is blue."];

/** How much memory the logits of a measurement may take, and within which bounds. */
const measuredBytes = 2 ** 27;
const [fewestPositions, mostPositions] = [256, 512];
/** Rows of data say less at their beginning than passages do. */
const shortestProbe = { data: 128, passage: 32 };

/** Sequences to compare logits on: held-out rows if there are any, else text of many kinds and questions as the template writes them. */
export function probesFor(
  chat: ChatFormat,
  heldOut: readonly Example[],
  { vocabSize, maxPositions }: { readonly vocabSize: number; readonly maxPositions: number },
): Int32Array[] {
  const wanted = Math.min(mostPositions, Math.max(fewestPositions, Math.floor(measuredBytes / (4 * vocabSize))));
  const built = () => [
    ...questions.map((content) => renderPrompt(chat, { messages: [{ role: "user", content }] })),
    ...passages.map((text) => chat.tokenizer.encodeFramed(text)),
  ];
  const shortest = heldOut.length > 0 ? shortestProbe.data : shortestProbe.passage;
  const sequences = heldOut.length > 0 ? heldOut.map(({ ids }) => ids) : built();
  const probes: Int32Array[] = [];
  let positions = 0;
  for (const [i, ids] of sequences.entries()) {
    const share = Math.ceil((wanted - positions) / (sequences.length - i)); // of what is left, for each that is left
    const probe = ids.subarray(0, Math.min(Math.max(share, shortest), wanted - positions, maxPositions));
    if (probe.length > 0) probes.push(probe);
    positions += probe.length;
  }
  return probes;
}

/** (positions, V): a model's logits at every position of the probes, one behind the other. */
export async function logitsOn(model: CausalLM, probes: readonly Int32Array[]): Promise<Float32Array> {
  const { vocabSize } = model.shape;
  const logits = new Float32Array(probes.reduce((sum, { length }) => sum + length, 0) * vocabSize);
  let at = 0;
  for (const ids of probes) {
    const rows = Int32Array.from(ids.keys());
    logits.set(await taken(scope(() => model.logits(packSequences([ids]), rows))), at);
    at += ids.length * vocabSize;
  }
  return logits;
}

/** Mean −log p over the supervised tokens of rows. */
export async function heldOutLoss(model: CausalLM, rows: readonly Example[]): Promise<number> {
  const { loss } = (await evaluate(new SharedBase(model), null, nextToken, rows, { batchSize: 1 }))!; // nobody can end it
  return loss;
}

async function taken(tensor: Tensor): Promise<Float32Array> {
  const values = await tensor.read();
  tensor.dispose();
  return values;
}

/** Compares logits on the same probes. What is not a number stays one. */
export function driftBetween(before: Float32Array, after: Float32Array, probes: readonly Int32Array[]): Drift {
  const next = probes.flatMap((ids) => [...ids.subarray(1), -1]); // the token after each position
  const vocabSize = before.length / next.length;
  let [largest, total, divergence, same, textBefore, textAfter, counted] = [0, 0, 0, 0, 0, 0, 0];
  for (const [row, token] of next.entries()) {
    const [a, b] = [before, after].map((logits) => logits.subarray(row * vocabSize, (row + 1) * vocabSize)) as [
      Float32Array,
      Float32Array,
    ];
    const [normA, normB] = [logSumExp(a), logSumExp(b)];
    let [bestA, bestB] = [0, 0];
    for (let i = 0; i < vocabSize; i++) {
      const difference = Math.abs(a[i]! - b[i]!);
      if (difference > largest || Number.isNaN(difference)) largest = difference;
      total += difference;
      const logP = a[i]! - normA;
      divergence += Math.exp(logP) * (logP - b[i]! + normB);
      if (a[i]! > a[bestA]!) bestA = i;
      if (b[i]! > b[bestB]!) bestB = i;
    }
    if (bestA === bestB) same++;
    if (token < 0) continue;
    textBefore += normA - a[token]!;
    textAfter += normB - b[token]!;
    counted++;
  }
  return {
    positions: next.length,
    maxLogitDifference: largest,
    meanLogitDifference: total / before.length,
    divergence: Math.max(0, divergence / next.length), // but for rounding it is never less
    sameToken: same / next.length,
    textLossBefore: textBefore / counted,
    textLossAfter: textAfter / counted,
  };
}

function logSumExp(logits: Float32Array): number {
  const largest = logits.reduce((a, b) => Math.max(a, b));
  return largest + Math.log(logits.reduce((sum, logit) => sum + Math.exp(logit - largest), 0));
}
