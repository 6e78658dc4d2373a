import { Rng } from "../core/rng.js";
import { scope } from "../core/tensor.js";
import { ConfigError } from "../errors.js";
import type { CausalLM } from "../models/causal-lm.js";
import { continueSequences } from "../models/token-batch.js";
import type { KVCache } from "../nn/kv-cache.js";
import { type SamplingOptions, sample } from "./sampling.js";

export interface Request {
  readonly prompt: Int32Array;
  readonly maxNewTokens: number;
  /** Generation ends with one of these, which is not part of the answer. */
  readonly stopIds: ReadonlySet<number>;
  readonly sampling: SamplingOptions;
  readonly seed: number;
}

export type FinishReason = "stop" | "length";

/** What one step gave one request. */
export interface DecodedToken {
  readonly request: Request;
  /** The new token, or null if it was a stop token. */
  readonly id: number | null;
  readonly finished: FinishReason | null;
}

interface Running {
  readonly request: Request;
  readonly slot: number;
  readonly rng: Rng;
  /** Tokens that the model has not seen yet: the prompt, then each new token. */
  pending: Int32Array;
  readonly answer: number[];
}

/**
 * Decodes several requests at once over one model. Requests come and go between steps: whatever waits joins the batch as soon as a slot is
 * free, prompts and single tokens in the same forward pass.
 */
export class Decoder {
  readonly #model: CausalLM;
  readonly #cache: KVCache;
  readonly #waiting: Request[] = [];
  readonly #running = new Map<Request, Running>();
  readonly #freeSlots: number[];

  /** `capacity` is the most tokens, prompt and answer together, that a request may have. Throws EngineError if memory is short. */
  constructor(model: CausalLM, { slots, capacity }: { slots: number; capacity: number }) {
    this.#model = model;
    this.#cache = model.newCache(slots, capacity);
    this.#freeSlots = Array.from({ length: slots }, (_, i) => slots - 1 - i);
  }

  get isIdle(): boolean {
    return this.#waiting.length === 0 && this.#running.size === 0;
  }

  /** Throws ConfigError if the prompt is empty or leaves no room for an answer. */
  add(request: Request): void {
    const { capacity } = this.#cache;
    if (request.prompt.length === 0) throw new ConfigError("the prompt has no tokens");
    if (request.prompt.length >= capacity)
      throw new ConfigError(`the prompt has ${request.prompt.length} tokens, and ${capacity} fit with the answer: shorten it`);
    this.#waiting.push(request);
  }

  /** Takes a request out, finished or not. */
  cancel(request: Request): void {
    const running = this.#running.get(request);
    if (running !== undefined) this.#release(running);
    const place = this.#waiting.indexOf(request);
    if (place >= 0) this.#waiting.splice(place, 1);
  }

  /** One forward pass: one new token for every running request. */
  async step(): Promise<DecodedToken[]> {
    this.#admit();
    const batch = [...this.#running.values()];
    if (batch.length === 0) return [];
    const { vocabSize } = this.#model.shape;
    const tokens = continueSequences(
      this.#cache,
      batch.map(({ slot }) => slot),
      batch.map(({ pending }) => pending),
    );
    const lastRows = Int32Array.from(tokens.segments, ({ qStart, qLength }) => qStart + qLength - 1);
    const logits = scope(() => this.#model.logits(tokens, lastRows));
    const values = await logits.read();
    logits.dispose();
    return batch
      .filter(({ request }) => this.#running.has(request)) // not cancelled meanwhile
      .map((running) =>
        this.#next(running, values.subarray(batch.indexOf(running) * vocabSize, (batch.indexOf(running) + 1) * vocabSize)),
      );
  }

  dispose(): void {
    this.#cache.dispose();
  }

  #admit(): void {
    while (this.#waiting.length > 0 && this.#freeSlots.length > 0) {
      const request = this.#waiting.shift()!;
      const slot = this.#freeSlots.pop()!;
      this.#running.set(request, { request, slot, rng: new Rng(request.seed), pending: request.prompt, answer: [] });
    }
  }

  #next(running: Running, logits: Float32Array): DecodedToken {
    const { request, answer, rng, slot } = running;
    const seen = request.sampling.repetitionPenalty === 1 ? [] : [...request.prompt, ...answer];
    const id = sample(logits, request.sampling, seen, rng);
    if (request.stopIds.has(id)) {
      this.#release(running);
      return { request, id: null, finished: "stop" };
    }
    answer.push(id);
    running.pending = Int32Array.of(id);
    const isFull = answer.length >= request.maxNewTokens || this.#cache.lengthOf(slot) >= this.#cache.capacity;
    if (isFull) this.#release(running);
    return { request, id, finished: isFull ? "length" : null };
  }

  #release({ request, slot }: Running): void {
    this.#running.delete(request);
    this.#cache.clear(slot);
    this.#freeSlots.push(slot);
  }
}

export interface Completion {
  readonly ids: Int32Array;
  readonly finished: FinishReason;
}

/** Decodes all requests, at most `slots` at a time, and returns the answers in their order. */
export async function decodeAll(model: CausalLM, requests: readonly Request[], slots: number): Promise<Completion[]> {
  const longest = Math.max(0, ...requests.map(({ prompt, maxNewTokens }) => prompt.length + maxNewTokens));
  const decoder = new Decoder(model, {
    slots: Math.min(slots, requests.length),
    capacity: Math.min(longest, model.shape.maxPositions - model.virtualTokens),
  });
  const answers = new Map<Request, number[]>(requests.map((request) => [request, []]));
  const finished = new Map<Request, FinishReason>();
  try {
    for (const request of requests) decoder.add(request);
    while (!decoder.isIdle)
      for (const token of await decoder.step()) {
        if (token.id !== null) answers.get(token.request)!.push(token.id);
        if (token.finished !== null) finished.set(token.request, token.finished);
      }
  } finally {
    decoder.dispose();
  }
  return requests.map((request) => ({ ids: Int32Array.from(answers.get(request)!), finished: finished.get(request)! }));
}
