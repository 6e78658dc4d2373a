import { Rng } from "../core/rng.js";
import { scope, type Tensor } from "../core/tensor.js";
import { ConfigError } from "../errors.js";
import { asCausalLM, type CausalLM } from "../models/causal-lm.js";
import { continueSequences } from "../models/token-batch.js";
import type { KVCache } from "../nn/kv-cache.js";
import type { Held, SharedBase } from "../tuners/shared-base.js";
import { type Draw, type SamplingOptions, sampleRows, type TokenLogProb } from "./sampling.js";

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

/** A request that waits or runs. */
interface Task {
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
  /** Index of its slot; -1 while it waits. */
  slot: number;
}

/** What a slot of the cache holds, and for whom. */
interface Slot {
  task: Task | null;
  /** Tokens whose keys and values it holds, under which adapter. */
  tokens: number[];
  adapter: unknown;
  /** Number of the step in which it was last used. */
  usedAt: number;
}

/** Tokens that slots without a request keep together at most, lest old conversations fill the memory; the latest one may have more. */
const keptTokens = 8192;
/** Tokens of an answer for which there is room from the beginning. */
const firstTokens = 256;

/**
 * Decodes requests over one base, each with its own adapter, seed, sampling and stop rules. Requests come and go between steps: whatever waits
 * joins as soon as a slot is free, prompts and single tokens in the same forward pass, one pass for each adapter.
 *
 * A slot keeps what it holds after its request has ended. A request whose prompt begins in the same way, under the same adapter, goes on from
 * there, or from a copy where the slot is in use; several with one prompt compute it once.
 *
 * What a request draws follows from its seed and the logits alone. Logits are those of a request decoded by itself up to rounding: products of more
 * rows may add in another order.
 */
export class Decoder {
  readonly #base: SharedBase;
  readonly #slots: Slot[];
  #cache: KVCache | null = null;
  readonly #waiting: Task[] = [];
  readonly #tasks = new Map<Request, Task>();
  readonly #arrivals = new Map<Request, (DecodedToken | FailedRequest)[]>();
  #step = 0;
  #stepping: Promise<unknown> | null = null;

  constructor(base: SharedBase, { slots }: { slots: number }) {
    this.#base = base;
    this.#slots = Array.from({ length: slots }, () => ({ task: null, tokens: [], adapter: null, usedAt: 0 }));
  }

  get isIdle(): boolean {
    return this.#tasks.size === 0;
  }

  /**
   * Throws ConfigError if the adapter is not there, the prompt is empty or leaves no room for an answer, or a number is out of its range, ModelError if
   * the model is none that generates.
   */
  add(request: Request): void {
    if (this.#tasks.has(request)) throw new ConfigError("the request is being decoded already");
    checkNumbers(request);
    const { prompt, adapter = null, maxNewTokens, sampling, seed } = request;
    const held = this.#base.hold(adapter);
    try {
      const { virtual, positions } = held.with((model) => {
        const { vocabSize, maxPositions } = asCausalLM(model, "decoding").shape;
        const outside = prompt.find((id) => id < 0 || id >= vocabSize);
        if (outside !== undefined) throw new ConfigError(`the prompt has token ${outside}, and the vocabulary ${vocabSize}`);
        if ((request.logProbs?.top ?? 0) > vocabSize)
          throw new ConfigError(`top log-probabilities: ${request.logProbs!.top} are more than the vocabulary of ${vocabSize}`);
        this.#cache ??= model.newCache(this.#slots.length);
        return { virtual: model.virtualTokens, positions: maxPositions - model.virtualTokens };
      });
      if (prompt.length === 0) throw new ConfigError("the prompt has no tokens");
      if (prompt.length >= positions)
        throw new ConfigError(`the prompt has ${prompt.length} tokens, and ${positions} fit with the answer: shorten it`);
      const task: Task = {
        ...{ request, held, virtual, rng: new Rng(seed), answer: [], slot: -1, pending: prompt, reusedTokens: 0 },
        limit: Math.min(prompt.length + maxNewTokens, positions),
        seen: sampling.repetitionPenalty === 1 ? null : new Set(prompt),
      };
      this.#tasks.set(request, task);
      this.#waiting.push(task);
    } catch (error) {
      held.release();
      throw error;
    }
  }

  /** Takes a request out, finished or not. */
  cancel(request: Request): void {
    const task = this.#tasks.get(request);
    if (task !== undefined) this.#end(task);
  }

  /**
   * The tokens of one request, as they come. Any number of requests may be decoded in this way at once. Ends early once the signal is aborted;
   * whoever leaves the loop cancels the request. Throws as `add` does, and what made the request fail.
   */
  async *decode(request: Request, signal?: AbortSignal): AsyncGenerator<DecodedToken> {
    this.add(request);
    const arrived: (DecodedToken | FailedRequest)[] = [];
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
    } finally {
      this.#arrivals.delete(request);
      this.cancel(request);
    }
  }

  /** One new token for every running request: one forward pass for each adapter. Who asks while a step is under way gets that one's result. */
  step(): Promise<(DecodedToken | FailedRequest)[]> {
    const step = (this.#stepping as ReturnType<Decoder["step"]> | null) ?? this.#run();
    this.#stepping = step;
    return step;
  }

  /** Forgets what slots without a request hold: to be called when weights have changed. */
  forget(): void {
    for (const [index, { task }] of this.#slots.entries()) if (task === null) this.#empty(index);
  }

  /** Ends all requests and frees the cache. */
  dispose(): void {
    for (const request of [...this.#tasks.keys()]) this.cancel(request);
    this.#arrivals.clear();
    for (const slot of this.#slots) slot.tokens = [];
    this.#cache?.dispose();
    this.#cache = null;
  }

  async #run(): Promise<(DecodedToken | FailedRequest)[]> {
    try {
      this.#step++;
      const failed = this.#admit();
      const passes = new Map<unknown, Task[]>();
      for (const { task } of this.#slots)
        if (task !== null) passes.set(task.held.adapter, [...(passes.get(task.held.adapter) ?? []), task]);
      const results = [...failed, ...(await Promise.all([...passes.values()].map((batch) => this.#pass(batch)))).flat()];
      for (const result of results) this.#arrivals.get(result.request)?.push(result);
      return results;
    } finally {
      this.#stepping = null;
    }
  }

  /** Gives slots to those that wait, and rows of the cache to all that need more. */
  #admit(): FailedRequest[] {
    if (this.#tasks.size === 0) return [];
    const cache = this.#cache!;
    const newcomers: Task[] = [];
    const forks: { task: Task; from: number }[] = [];
    const sources = new Set<number>();
    for (const task of this.#slots.some((slot) => slot.task === null) ? [...this.#waiting] : []) {
      const free = [...this.#slots.keys()].filter((index) => this.#slots[index]!.task === null && !sources.has(index));
      if (free.length === 0) break;
      const { prompt } = task.request;
      const match = this.#longestMatch(task);
      const soon = newcomers.filter(({ held }) => held.adapter === task.held.adapter).map((other) => other.request.prompt);
      const sharedSoon = Math.max(0, ...soon.map((other) => sharedPrefix(prompt, other)));
      if (2 * (sharedSoon - match.length) >= prompt.length - match.length) continue; // the next step finds it computed
      const { slot, isCopy } = this.#choose(free, match);
      if (isCopy) {
        this.#empty(slot);
        cache.begin(slot, task.virtual);
        if (match.length > 0) {
          sources.add(match.slot);
          this.#slots[match.slot]!.usedAt = this.#step;
          forks.push({ task, from: match.slot });
        }
      } else {
        this.#slots[slot]!.tokens.length = match.length;
        cache.truncate(slot, match.length);
      }
      Object.assign(this.#slots[slot]!, { task, adapter: task.held.adapter });
      Object.assign(task, { slot, reusedTokens: match.length, pending: prompt.subarray(match.length) });
      this.#waiting.splice(this.#waiting.indexOf(task), 1);
      newcomers.push(task);
    }
    const failed = this.#reserve(sources);
    for (const { task, from } of forks) {
      if (task.slot < 0) continue; // it has failed
      cache.fork(from, task.slot, task.reusedTokens);
      const { tokens } = this.#slots[task.slot]!;
      for (const id of task.request.prompt.subarray(0, task.reusedTokens)) tokens.push(id);
    }
    return failed;
  }

  /** The slot that holds most of the beginning of a prompt; at least one token of it is left to compute. */
  #longestMatch({ request: { prompt }, held }: Task): { slot: number; length: number } {
    let best = { slot: -1, length: 0 };
    for (const [slot, { tokens, adapter }] of this.#slots.entries()) {
      if (tokens.length === 0 || adapter !== held.adapter) continue;
      const length = sharedPrefix(prompt, tokens);
      if (length > best.length) best = { slot, length };
    }
    return best;
  }

  /** The slot for a request: the one that it goes on from, if that is free and loses less than it gives; else an empty or the oldest one. */
  #choose(free: readonly number[], { slot, length }: { slot: number; length: number }): { slot: number; isCopy: boolean } {
    const others = free.filter((index) => index !== slot);
    const isFree = others.length < free.length;
    if (isFree && (others.length === 0 || 2 * length >= this.#slots[slot]!.tokens.length)) return { slot, isCopy: false };
    const age = (index: number) => (this.#slots[index]!.tokens.length === 0 ? -1 : this.#slots[index]!.usedAt);
    return { slot: others.reduce((oldest, index) => (age(index) < age(oldest) ? index : oldest)), isCopy: true };
  }

  /** Rows for the next tokens of all that run. What slots without a request keep makes way first; then those fail that get none. */
  #reserve(sources: ReadonlySet<number>): FailedRequest[] {
    const cache = this.#cache!;
    const running = this.#slots.flatMap(({ task }) => (task === null ? [] : [task]));
    const wanted = new Map<number, number>();
    for (const { slot, limit, request, pending, reusedTokens, answer } of running) {
      const needed = answer.length === 0 ? reusedTokens + pending.length : cache.lengthOf(slot) + pending.length;
      if (needed <= cache.capacityOf(slot)) continue;
      const ample = answer.length === 0 ? needed + Math.max(firstTokens, request.prompt.length) : 2 * needed;
      wanted.set(slot, Math.min(limit, ample));
    }
    try {
      cache.reserve(wanted);
      return [];
    } catch {
      for (const [index, { task }] of this.#slots.entries()) if (task === null && !sources.has(index)) this.#empty(index);
    }
    return running.flatMap((task) => {
      try {
        cache.reserve(new Map([...wanted].filter(([slot]) => slot === task.slot)));
        return [];
      } catch (error) {
        return [this.#fail(task, error)];
      }
    });
  }

  /** One forward pass. If it fails, each request is tried alone, so that only those fail that cannot be served. */
  async #pass(batch: readonly Task[]): Promise<(DecodedToken | FailedRequest)[]> {
    let logits: Tensor;
    try {
      logits = this.#forward(batch);
    } catch (error) {
      for (const { slot } of batch) this.#cache!.truncate(slot, this.#slots[slot]!.tokens.length);
      if (batch.length === 1) return [this.#fail(batch[0]!, error)];
      return (await Promise.all(batch.map((task) => this.#pass([task])))).flat();
    }
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
      return batch.flatMap((task, i) => {
        if (this.#tasks.get(task.request) !== task) return []; // cancelled meanwhile
        const sample = samples[i]!;
        return [sample instanceof Error ? this.#fail(task, sample) : this.#take(task, sample)];
      });
    } catch (error) {
      return batch.filter(({ request }) => this.#tasks.has(request)).map((task) => this.#fail(task, error));
    } finally {
      logits.dispose();
    }
  }

  /** Logits (rows, V) after the last pending token of each. */
  #forward(batch: readonly Task[]): Tensor {
    const slots = batch.map(({ slot }) => slot);
    const pending = batch.map((task) => task.pending);
    const logits = batch[0]!.held.with((model) =>
      scope(() => {
        const tokens = continueSequences(this.#cache!, slots, pending);
        const lastRows = Int32Array.from(tokens.segments, ({ qStart, qLength }) => qStart + qLength - 1);
        return (model as CausalLM).logits(tokens, lastRows);
      }),
    );
    for (const [i, index] of slots.entries()) {
      const slot = this.#slots[index]!;
      for (const id of pending[i]!) slot.tokens.push(id);
      slot.usedAt = this.#step;
    }
    return logits;
  }

  #take(task: Task, { id, logProb, top }: TokenLogProb & { readonly top: readonly TokenLogProb[] }): DecodedToken {
    const { request, answer, reusedTokens, limit, seen } = task;
    const isStop = request.stopIds.has(id);
    if (!isStop) {
      answer.push(id);
      seen?.add(id);
      task.pending = Int32Array.of(id);
    }
    const hasEnded = isStop || request.stop?.(answer) === true;
    const finished = hasEnded ? "stop" : isFull() ? "length" : null;
    if (finished !== null) this.#end(task);
    const logProbs = request.logProbs && { logProb, ...(request.logProbs.top && { top: top.slice(0, request.logProbs.top) }) };
    return { request, id, isStop, finished, reusedTokens, ...logProbs };

    function isFull(): boolean {
      return answer.length >= request.maxNewTokens || request.prompt.length + answer.length > limit;
    }
  }

  #fail(task: Task, error: unknown): FailedRequest {
    const { slot, request } = task;
    this.#end(task);
    if (slot >= 0) this.#empty(slot);
    return { request, error };
  }

  #end(task: Task): void {
    this.#tasks.delete(task.request);
    task.held.release();
    if (task.slot >= 0) this.#slots[task.slot]!.task = null;
    else this.#waiting.splice(this.#waiting.indexOf(task), 1);
    task.slot = -1;
    const kept = [...this.#slots.keys()].filter((index) => this.#slots[index]!.task === null);
    kept.sort((a, b) => this.#slots[b]!.usedAt - this.#slots[a]!.usedAt);
    let total = 0;
    for (const [i, index] of kept.entries()) {
      total += this.#slots[index]!.tokens.length;
      if (i > 0 && total > keptTokens) this.#empty(index);
    }
  }

  #empty(index: number): void {
    this.#slots[index]!.tokens = [];
    this.#cache?.clear(index);
  }
}

/** How many tokens of a prompt stand at the beginning of others, the last one never counted. */
function sharedPrefix(prompt: Int32Array, others: ArrayLike<number>): number {
  const most = Math.min(prompt.length - 1, others.length);
  let length = 0;
  while (length < most && prompt[length] === others[length]) length++;
  return length;
}

function checkNumbers({ sampling, logProbs = {} }: Request): void {
  const { temperature, topP, topK, repetitionPenalty } = sampling;
  const check = (name: string, value: number, isGood: boolean, expected: string) => {
    if (!isGood || !Number.isFinite(value)) throw new ConfigError(`${name}: expected ${expected}, got ${value}`);
  };
  check("temperature", temperature, temperature >= 0, "a number of 0 or more");
  check("top_p", topP, topP >= 0 && topP <= 1, "a number from 0 to 1");
  check("top_k", topK, topK >= 0 && Number.isInteger(topK), "a whole number of 0 or more");
  check("repetition_penalty", repetitionPenalty, repetitionPenalty > 0, "a number above 0");
  const { temperature: ofLogProbs = 1, top = 0 } = logProbs;
  check("temperature of log-probabilities", ofLogProbs, ofLogProbs > 0, "a number above 0");
  check("top log-probabilities", top, top >= 0 && Number.isInteger(top), "a whole number of 0 or more");
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

/** Decodes all requests, at most `slots` at a time, and returns the answers in their order. Throws what makes the first one fail. */
export async function decodeAll(base: SharedBase, requests: readonly Request[], slots: number): Promise<Completion[]> {
  const decoder = new Decoder(base, { slots: Math.min(slots, requests.length) });
  const tokens = new Map<Request, DecodedToken[]>(requests.map((request) => [request, []]));
  try {
    for (const request of requests) decoder.add(request);
    while (!decoder.isIdle)
      for (const result of await decoder.step()) {
        if ("error" in result) throw result.error;
        tokens.get(result.request)!.push(result);
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
