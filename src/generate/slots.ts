import type { KVCache } from "../nn/kv-cache.js";

interface Slot {
  isTaken: boolean;
  /** Tokens whose keys and values it holds, and under which adapter. */
  tokens: number[];
  adapter: unknown;
  /** When it was last used, on a clock that ticks with every use of any slot. */
  usedAt: number;
  /** The slot, and how much of it, to copy here as soon as this one has rows. */
  copy: { readonly from: number; readonly length: number } | null;
}

/** A slot that holds the first `length` tokens of a prompt; none if that is 0. */
export interface Match {
  readonly slot: number;
  readonly length: number;
}

/**
 * How many tokens all free slots together may hold, so that old conversations do not fill the memory; the latest one may exceed
 * it alone.
 */
const keptTokens = 8192;

/**
 * Which tokens the slots of a cache hold. A slot keeps them after it is given back, so that a prompt that begins in the same way, under the same
 * adapter, goes on from there.
 */
export class Slots {
  readonly cache: KVCache;
  readonly #slots: Slot[];
  #uses = 0;

  constructor(cache: KVCache, count: number) {
    this.cache = cache;
    this.#slots = Array.from({ length: count }, () => ({ isTaken: false, tokens: [], adapter: null, usedAt: 0, copy: null }));
  }

  /** The slot, taken or free, that holds most of the beginning of a prompt; at least one token of the prompt is left to compute. */
  find(prompt: Int32Array, adapter: unknown): Match {
    let best: Match = { slot: -1, length: 0 };
    for (const [slot, { tokens, adapter: own }] of this.#slots.entries()) {
      const length = own === adapter ? sharedPrefix(prompt, tokens) : 0;
      if (length > best.length) best = { slot, length };
    }
    return best;
  }

  /**
   * Takes a slot for a prompt that goes on from `match`, and returns it: the slot of the match if that is free and loses no more than it gives, else
   * an empty or the oldest one, into which `reserve` copies what matches. Null if none is free.
   */
  take({ slot, length }: Match, adapter: unknown, virtual: number): number | null {
    const free = [...this.#free()].filter((index) => !this.#isCopied(index));
    const others = free.filter((index) => index !== slot);
    const taken = this.#slots[slot];
    if (free.includes(slot) && (others.length === 0 || 2 * length >= taken!.tokens.length)) {
      taken!.isTaken = true;
      taken!.tokens.length = length;
      this.cache.truncate(slot, length);
      return slot;
    }
    if (others.length === 0) return null;
    const age = (index: number) => (this.#slots[index]!.tokens.length === 0 ? -1 : this.#slots[index]!.usedAt);
    const oldest = others.reduce((a, b) => (age(b) < age(a) ? b : a));
    this.empty(oldest);
    this.cache.begin(oldest, virtual);
    Object.assign(this.#slots[oldest]!, { isTaken: true, adapter, copy: length > 0 ? { from: slot, length } : null });
    if (length > 0) taken!.usedAt = ++this.#uses;
    return oldest;
  }

  /**
   * Gets rows for so many tokens of each slot named, and copies what taken slots are to hold of others. Where memory is short, what free slots keep
   * makes way first; returns the errors of those slots that get no rows then.
   */
  reserve(wanted: ReadonlyMap<number, number>): ReadonlyMap<number, unknown> {
    const failed = this.#tryReserve(wanted);
    for (const [index, slot] of this.#slots.entries()) {
      const { copy } = slot;
      slot.copy = null;
      if (copy === null || failed.has(index)) continue;
      this.cache.fork(copy.from, index, copy.length);
      slot.tokens = this.#slots[copy.from]!.tokens.slice(0, copy.length);
    }
    return failed;
  }

  /** Says that the cache now holds these tokens after the others of a slot. */
  append(index: number, tokens: Int32Array): void {
    const slot = this.#slots[index]!;
    for (const id of tokens) slot.tokens.push(id);
    slot.usedAt = ++this.#uses;
  }

  /** Lets the cache forget rows that were taken into use for tokens that did not come. */
  rollBack(index: number): void {
    this.cache.truncate(index, this.#slots[index]!.tokens.length);
  }

  /** Makes a slot free. What it holds stays for the next prompt that begins in the same way. */
  release(index: number): void {
    this.#slots[index]!.isTaken = false;
    const kept = [...this.#free()].filter((each) => this.#slots[each]!.tokens.length > 0);
    kept.sort((a, b) => this.#slots[b]!.usedAt - this.#slots[a]!.usedAt);
    let total = 0;
    for (const [i, each] of kept.entries()) {
      total += this.#slots[each]!.tokens.length;
      if (i > 0 && total > keptTokens) this.empty(each);
    }
  }

  empty(index: number): void {
    Object.assign(this.#slots[index]!, { tokens: [], copy: null });
    this.cache.clear(index);
  }

  /** Empties all free slots but those that are to be copied. */
  emptyFree(): void {
    for (const index of this.#free()) if (!this.#isCopied(index)) this.empty(index);
  }

  #tryReserve(wanted: ReadonlyMap<number, number>): ReadonlyMap<number, unknown> {
    try {
      this.cache.reserve(wanted);
      return new Map();
    } catch {
      this.emptyFree();
    }
    const failed = new Map<number, unknown>();
    for (const each of wanted) {
      try {
        this.cache.reserve(new Map([each]));
      } catch (error) {
        failed.set(each[0], error);
      }
    }
    return failed;
  }

  *#free(): Generator<number> {
    for (const [index, { isTaken }] of this.#slots.entries()) if (!isTaken) yield index;
  }

  #isCopied(index: number): boolean {
    return this.#slots.some(({ copy }) => copy?.from === index);
  }
}

/** How many tokens of a prompt stand at the beginning of others; the prompt's last token does not count. */
export function sharedPrefix(prompt: Int32Array, others: ArrayLike<number>): number {
  const most = Math.min(prompt.length - 1, others.length);
  let length = 0;
  while (length < most && prompt[length] === others[length]) length++;
  return length;
}
