import { Rng } from "../core/rng.js";
import { scope, type Tensor } from "../core/tensor.js";
import { ClosedError, ConfigError, DivergedError } from "../errors.js";
import { asCausalLM, type CausalLM } from "../models/causal-lm.js";
import { continueSequences } from "../models/token-batch.js";
import type { Held, SharedBase } from "../tuners/shared-base.js";
import { type Draw, type Sample, type SamplingOptions, sampleRows, type TokenLogProb } from "./sampling.js";
import { Slots, sharedPrefix } from "./slots.js";

export interface Request {
  readonly prompt: Int32Array;
  /** The adapter that answers, from the first token to the last; null, the default, for the base alone. */
  readonly adapter?: string | null;
  readonly maxNewTokens: number;
  /** Generation ends with one of these, which is not part of the answer. */
  readonly stopIds: ReadonlySet<number>;
  /** Whether the answer ends here: asked after each token of what there is so far. */
  readonly stop?: (answer: readonly number[]) => boolean;
  readonly sampling: SamplingOptions;
  readonly seed: number;
  /** Asks for log softmax(logits / temperature) of each token, and for those of the `top` likeliest; by default temperature 1 and none. */
  readonly logProbs?: { readonly temperature?: number; readonly top?: number };
}

export type FinishReason = "stop" | "length";

/** What one step gave one request. */
export interface DecodedToken {
  readonly request: Request;
  readonly id: number;
  /** Whether it is one of the stop tokens, and so no part of the answer. */
  readonly isStop: boolean;
  readonly finished: FinishReason | null;
  /** Where the request asked for them. */
  readonly logProb?: number;
  readonly top?: readonly TokenLogProb[];
  /** How many of the prompt's tokens were computed for an earlier request. */
  readonly reusedTokens: number;
}

/** A request that could not be served. Others go on. */
export interface FailedRequest {
  readonly request: Request;
  readonly error: unknown;
}

export type StepResult = DecodedToken | FailedRequest;

/** A request that waits or runs. */
interface Entry {
  readonly request: Request;
  readonly held: Held;
  readonly rng: Rng;
  /** P */
  readonly virtual: number;
  /** Most tokens that it can come to, prompt and answer together. */
  readonly limit: number;
  readonly answer: number[];
  /** Tokens of prompt and answer, where a repetition penalty needs them. */
  readonly seen: Set<number> | null;
  /** Tokens that the model has not seen yet: what is new of the prompt, then each new token. */
  pending: Int32Array;
  reusedTokens: number;
  /** -1 while it waits, and when it has ended. */
  slot: number;
}

/** When a request gets rows of the cache, it gets them for at least so many more tokens. */
const roomAhead = 256;

/** For how many tokens a request with so many gets rows, that can come to `limit`. */
export const rowsAhead = (tokens: number, limit: number): number => Math.min(limit, tokens + Math.max(roomAhead, tokens));

/**
 * Decodes requests over one base, each with its own adapter, seed, sampling and stop rules. Requests come and go between steps: whatever waits
 * joins as soon as a slot is free, prompts and single tokens in the same forward pass, one pass for each adapter. A prompt goes on from what another
 * request, ended or running, has computed of it; several with one prompt compute it once.
 *
 * What a request draws follows from its seed and the logits alone. Logits are those of a request decoded by itself up to rounding: products of more
 * rows may add in another order.
 */
export class Decoder {
  readonly #base: SharedBase;
  readonly #slotCount: number;
  #slots: Slots | null = null;
  /** Every request that waits or runs, in the order in which they came. */
  readonly #entries = new Map<Request, Entry>();
  readonly #arrivals = new Map<Request, StepResult[]>();
  #stepping: Promise<StepResult[]> | null = null;

  constructor(base: SharedBase, { slots }: { slots: number }) {
    this.#base = base;
    this.#slotCount = slots;
  }

  get isIdle(): boolean {
    return this.#entries.size === 0;
  }

  /**
   * Throws ConfigError if the adapter is not there, the prompt is empty or leaves no room for an answer, or a number is out of its range, ModelError if
   * the model is none that generates.
   */
  add(request: Request): void {
    if (this.#entries.has(request)) throw new ConfigError("the request is being decoded already");
    const { prompt, adapter = null, maxNewTokens, sampling, seed } = request;
    const held = this.#base.hold(adapter);
    try {
      const { virtual, positions } = held.with((model) => {
        const { vocabSize, maxPositions } = asCausalLM(model, "decoding").shape;
        checkNumbers(request, vocabSize);
        this.#slots ??= new Slots(model.newCache(this.#slotCount), this.#slotCount);
        return { virtual: model.virtualTokens, positions: maxPositions - model.virtualTokens };
      });
      if (prompt.length >= positions)
        throw new ConfigError(`the prompt has ${prompt.length} tokens, and ${positions} fit with the answer: shorten it`);
      this.#entries.set(request, {
        ...{ request, held, virtual, rng: new Rng(seed), answer: [], slot: -1, pending: prompt, reusedTokens: 0 },
        limit: Math.min(prompt.length + maxNewTokens, positions),
        seen: sampling.repetitionPenalty === 1 ? null : new Set(prompt),
      });
    } catch (error) {
      held.release();
      throw error;
    }
  }

  /** Cancels a request, whether it waits or runs. */
  cancel(request: Request): void {
    const entry = this.#entries.get(request);
    if (entry !== undefined) this.#end(entry);
  }

  /**
   * The tokens of one request, as they come. Any number of requests may be decoded in this way at once. Ends early once the signal is aborted;
   * whoever leaves the loop cancels the request. Throws as `add` does, what made the request fail, and ClosedError if the decoder is disposed
   * meanwhile.
   */
  async *decode(request: Request, signal?: AbortSignal): AsyncGenerator<DecodedToken> {
    this.add(request);
    const arrived: StepResult[] = [];
    this.#arrivals.set(request, arrived);
    try {
      while (signal?.aborted !== true && this.#arrivals.has(request)) {
        const next = arrived.shift();
        if (next === undefined) {
          await this.step();
          continue;
        }
        if ("error" in next) throw next.error;
        yield next;
        if (next.finished !== null) return;
      }
      if (signal?.aborted !== true) throw new ClosedError("the model was closed before the answer was whole");
    } finally {
      this.#arrivals.delete(request);
      this.cancel(request);
    }
  }

  /** One new token for every running request: one forward pass for each adapter. Who asks while a step is under way gets that one's results. */
  step(): Promise<StepResult[]> {
    this.#stepping ??= this.#run().finally(() => {
      this.#stepping = null;
    });
    return this.#stepping;
  }

  /** Forgets what was computed for requests that have ended: to be called when weights have changed. */
  forget(): void {
    this.#slots?.emptyFree();
  }

  /** Ends all requests and frees the cache. */
  dispose(): void {
    for (const request of [...this.#entries.keys()]) this.cancel(request);
    this.#arrivals.clear();
    this.#slots?.cache.dispose();
    this.#slots = null;
  }

  async #run(): Promise<StepResult[]> {
    if (this.#slots === null) return [];
    this.#admit(this.#slots);
    const failed = this.#reserve(this.#slots);
    const passes = new Map<unknown, Entry[]>();
    for (const entry of this.#entries.values()) {
      if (entry.slot < 0) continue;
      const { adapter } = entry.held;
      if (passes.has(adapter)) passes.get(adapter)!.push(entry);
      else passes.set(adapter, [entry]);
    }
    const decoded = await Promise.all([...passes.values()].map((batch) => this.#pass(batch, this.#slots!)));
    const results = [...failed, ...decoded.flat()];
    for (const result of results) this.#arrivals.get(result.request)?.push(result);
    return results;
  }

  /** Gives slots to those that wait. */
  #admit(slots: Slots): void {
    const newcomers: Entry[] = [];
    for (const entry of this.#entries.values()) {
      if (entry.slot >= 0) continue;
      const { prompt } = entry.request;
      const { adapter } = entry.held;
      const match = slots.find(prompt, adapter);
      const beside = newcomers
        .filter(({ held }) => held.adapter === adapter)
        .map(({ request }) => sharedPrefix(prompt, request.prompt));
      // If a newcomer of this step computes half or more of what a prompt still needs, the prompt waits a step and finds it there.
      if (2 * (Math.max(0, ...beside) - match.length) >= prompt.length - match.length) continue;
      const slot = slots.take(match, adapter, entry.virtual);
      if (slot === null) return;
      Object.assign(entry, { slot, reusedTokens: match.length, pending: prompt.subarray(match.length) });
      newcomers.push(entry);
    }
  }

  /** Gets rows of the cache for the next tokens of all that run; those fail for which there are none. */
  #reserve(slots: Slots): FailedRequest[] {
    const running = [...this.#entries.values()].filter(({ slot }) => slot >= 0);
    const wanted = new Map<number, number>();
    for (const { slot, limit, request, answer } of running) {
      const tokens = request.prompt.length + answer.length;
      if (tokens > slots.cache.capacityOf(slot)) wanted.set(slot, rowsAhead(tokens, limit));
    }
    const failed = slots.reserve(wanted);
    return running.filter(({ slot }) => failed.has(slot)).map((entry) => this.#fail(entry, failed.get(entry.slot)));
  }

  /** One forward pass. If it fails, each request is tried alone, so that only those fail that cannot be served. */
  async #pass(batch: readonly Entry[], slots: Slots): Promise<StepResult[]> {
    let logits: Tensor;
    try {
      logits = forward(batch, slots);
    } catch (error) {
      for (const { slot } of batch) slots.rollBack(slot);
      if (batch.length === 1) return [this.#fail(batch[0]!, error)];
      return (await Promise.all(batch.map((entry) => this.#pass([entry], slots)))).flat();
    }
    const isRunning = (entry: Entry) => this.#entries.get(entry.request) === entry; // not cancelled meanwhile
    try {
      const draws = batch.map(
        ({ request: { sampling, logProbs }, rng, seen }): Draw => ({
          sampling,
          uniform: sampling.temperature === 0 ? 0 : rng.float(),
          seen: seen ?? [],
          logProbTemperature: logProbs === undefined ? null : (logProbs.temperature ?? 1),
        }),
      );
      const samples = await sampleRows(logits, draws, Math.max(...batch.map(({ request }) => request.logProbs?.top ?? 0)));
      return batch.flatMap((entry, i) => (isRunning(entry) ? [this.#take(entry, samples[i]!)] : []));
    } catch (error) {
      return batch.filter(isRunning).map((entry) => this.#fail(entry, error));
    } finally {
      logits.dispose();
    }
  }

  #take(entry: Entry, sample: Sample | DivergedError): StepResult {
    if (sample instanceof DivergedError) return this.#fail(entry, sample);
    const { id, logProb, top } = sample;
    const { request, answer, reusedTokens, limit, seen } = entry;
    const isStop = request.stopIds.has(id);
    let hasEnded = isStop;
    if (!isStop) {
      answer.push(id);
      seen?.add(id);
      entry.pending = Int32Array.of(id);
      try {
        hasEnded = request.stop?.(answer) === true;
      } catch (error) {
        return this.#fail(entry, error);
      }
    }
    const isFull = answer.length >= request.maxNewTokens || request.prompt.length + answer.length > limit;
    const finished = hasEnded ? "stop" : isFull ? "length" : null;
    if (finished !== null) this.#end(entry);
    const logProbs = request.logProbs && { logProb, ...(request.logProbs.top && { top: top.slice(0, request.logProbs.top) }) };
    return { request, id, isStop, finished, reusedTokens, ...logProbs };
  }

  #fail(entry: Entry, error: unknown): FailedRequest {
    const { slot, request } = entry;
    this.#end(entry);
    if (slot >= 0) this.#slots?.empty(slot);
    return { request, error };
  }

  #end(entry: Entry): void {
    this.#entries.delete(entry.request);
    entry.held.release();
    if (entry.slot >= 0) this.#slots?.release(entry.slot);
    entry.slot = -1;
  }
}

/** Logits (rows, V) after the last pending token of each request. They have one adapter. */
function forward(batch: readonly Entry[], slots: Slots): Tensor {
  const logits = batch[0]!.held.with((model) =>
    scope(() => {
      const tokens = continueSequences(
        slots.cache,
        batch.map(({ slot }) => slot),
        batch.map(({ pending }) => pending),
      );
      const lastRows = Int32Array.from(tokens.segments, ({ qStart, qLength }) => qStart + qLength - 1);
      return (model as CausalLM).logits(tokens, lastRows);
    }),
  );
  for (const { slot, pending } of batch) slots.append(slot, pending);
  return logits;
}

function checkNumbers({ prompt, maxNewTokens, sampling, logProbs = {} }: Request, vocabSize: number): void {
  if (prompt.length === 0) throw new ConfigError("the prompt has no tokens");
  const outside = prompt.find((id) => id < 0 || id >= vocabSize);
  if (outside !== undefined) throw new ConfigError(`the prompt has token ${outside}, and the vocabulary ${vocabSize} tokens`);
  const { temperature, topP, topK, repetitionPenalty } = sampling;
  const check = (name: string, value: number, isGood: boolean, expected: string) => {
    if (!isGood || !Number.isFinite(value)) throw new ConfigError(`${name}: expected ${expected}, got ${value}`);
  };
  check("max_new_tokens", maxNewTokens, maxNewTokens >= 1, "a number of 1 or more");
  check("temperature", temperature, temperature >= 0, "a number of 0 or more");
  check("top_p", topP, topP >= 0 && topP <= 1, "a number from 0 to 1");
  check("top_k", topK, topK >= 0 && Number.isInteger(topK), "a whole number of 0 or more");
  check("repetition_penalty", repetitionPenalty, repetitionPenalty > 0, "a number above 0");
  const { temperature: ofLogProbs = 1, top = 0 } = logProbs;
  check("temperature of log-probabilities", ofLogProbs, ofLogProbs > 0, "a number above 0");
  const isTop = top >= 0 && top <= vocabSize && Number.isInteger(top);
  check("top log-probabilities", top, isTop, `a whole number from 0 to the vocabulary's ${vocabSize}`);
}

export interface Completion {
  /** The answer, without a stop token. */
  readonly ids: Int32Array;
  /** The stop token that ended it, if one did. */
  readonly stopId: number | null;
  readonly finished: FinishReason;
  /** Of each token of the answer, then of the stop token if there is one, where the request asked for them. */
  readonly logProbs: Float32Array | null;
  readonly reusedTokens: number;
}

/**
 * Decodes all requests, at most `slots` at a time, and returns the answers in their order. Throws what makes the first one fail, and the signal's reason
 * if it fires.
 */
export async function decodeAll(
  base: SharedBase,
  requests: readonly Request[],
  slots: number,
  signal?: AbortSignal,
): Promise<Completion[]> {
  const decoder = new Decoder(base, { slots: Math.min(slots, requests.length) });
  const tokens = new Map<Request, DecodedToken[]>(requests.map((request) => [request, []]));
  try {
    for (const request of requests) decoder.add(request);
    while (!decoder.isIdle) {
      signal?.throwIfAborted();
      for (const result of await decoder.step()) {
        if ("error" in result) throw result.error;
        tokens.get(result.request)!.push(result);
      }
    }
  } finally {
    decoder.dispose();
  }
  return requests.map((request) => completionOf(request, tokens.get(request)!));
}

function completionOf({ logProbs }: Request, tokens: readonly DecodedToken[]): Completion {
  const last = tokens.at(-1)!;
  return {
    ids: Int32Array.from(tokens.filter(({ isStop }) => !isStop).map(({ id }) => id)),
    stopId: last.isStop ? last.id : null,
    finished: last.finished!,
    logProbs: logProbs === undefined ? null : Float32Array.from(tokens, ({ logProb }) => logProb!),
    reusedTokens: last.reusedTokens,
  };
}
