import { scope } from "../core/tensor.js";
import { asCausalLM } from "../models/causal-lm.js";
import { continueSequences } from "../models/token-batch.js";
import type { SharedBase } from "../tuners/shared-base.js";
import { rowsAhead } from "./decoder.js";
import { greedy, sampleRows } from "./sampling.js";
import { sharedPrefix } from "./slots.js";

/** What is decoded: answers to prompts, so many at a time. */
export interface Decoding {
  readonly prompts: readonly Int32Array[];
  /** Answers to each prompt. */
  readonly count: number;
  /** How long each answer becomes at most, and is taken to become. */
  readonly maxNewTokens: number;
  readonly slots: number;
}

/**
 * Takes the steps of a `Decoder` on a symbolic device in which it needs more memory than in those before: the pass over prompts, of which those that
 * begin alike wait for the first of them; each step in which the cache grows; the last. What comes after the first `slots` answers finds a cache that is
 * large enough, or nearly so.
 */
export async function decodeOnShapes(base: SharedBase, adapter: string | null, decoding: Decoding): Promise<void> {
  const { prompts, count, maxNewTokens, slots } = decoding;
  const { first, waiting } = admitted(
    prompts.flatMap((prompt) => Array<Int32Array>(count).fill(prompt)),
    slots,
  );
  const requests = [...first, ...waiting.map(({ prompt }) => prompt)];
  if (requests.length === 0) return;
  const { cache, positions } = base.with(adapter, (model) => {
    const cache = model.newCache(requests.length);
    return { cache, positions: asCausalLM(model, "decoding").shape.maxPositions - model.virtualTokens };
  });
  const limits = requests.map(({ length }) => Math.min(length + maxNewTokens, positions));
  /** The last token of an answer is not read any more. */
  const isRunning = (slot: number) => cache.lengthOf(slot) < limits[slot]! - 1;
  const pass = async (pending: ReadonlyMap<number, Int32Array>) => {
    const which = [...pending.keys()];
    const needed = new Map(which.map((slot) => [slot, cache.lengthOf(slot) + pending.get(slot)!.length]));
    const outgrown = [...needed].filter(([slot, tokens]) => tokens > cache.capacityOf(slot));
    cache.reserve(new Map(outgrown.map(([slot, tokens]) => [slot, rowsAhead(tokens, limits[slot]!)])));
    const logits = base.with(adapter, (model) =>
      scope(() => {
        const tokens = continueSequences(cache, which, [...pending.values()]);
        const last = Int32Array.from(tokens.segments, ({ qStart, qLength }) => qStart + qLength - 1);
        return asCausalLM(model, "decoding").logits(tokens, last);
      }),
    );
    const draw = { sampling: greedy, uniform: 0, seen: [], logProbTemperature: null };
    await sampleRows(logits, Array(which.length).fill(draw), 0);
    logits.dispose();
  };

  try {
    const one = Int32Array.of(0);
    await pass(new Map(first.entries()));
    const second = new Map<number, Int32Array>(first.map((_, slot) => [slot, one]));
    const joining = waiting.map(({ prompt }, i): [number, number] => [first.length + i, prompt.length]);
    cache.reserve(new Map(joining.map(([slot, length]) => [slot, rowsAhead(length, limits[slot]!)])));
    for (const [i, { prompt, from, length }] of waiting.entries()) {
      cache.fork(from, first.length + i, length);
      second.set(first.length + i, prompt.subarray(length));
    }
    await pass(second);
    for (let running = [...requests.keys()].filter(isRunning); running.length > 0; running = running.filter(isRunning)) {
      const left = running.map((slot) => Math.min(cache.capacityOf(slot), limits[slot]! - 1) - cache.lengthOf(slot));
      const quiet = Math.max(0, Math.min(...left) - 1);
      if (quiet > 0) for (const slot of running) cache.extend(slot, quiet);
      await pass(new Map(running.map((slot) => [slot, one])));
    }
  } finally {
    cache.dispose();
  }
}

/** The prompts that the first pass reads, and those that then get the slots that are left, each with what it takes over of one of the first. */
function admitted(prompts: readonly Int32Array[], slots: number) {
  const first: Int32Array[] = [];
  const waiting: { readonly prompt: Int32Array; readonly from: number; readonly length: number }[] = [];
  for (const prompt of prompts) {
    const shared = first.map((other, from) => ({ prompt, from, length: sharedPrefix(prompt, other) }));
    const best = shared.reduce((a, b) => (b.length > a.length ? b : a), { prompt, from: -1, length: 0 });
    if (2 * best.length >= prompt.length) waiting.push(best);
    else if (first.push(prompt) === slots) break;
  }
  return { first, waiting: waiting.slice(0, slots - first.length) };
}
