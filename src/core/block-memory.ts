const alignment = 64;
const smallLimit = 2 ** 20;
const smallSlabBytes = 8 * 2 ** 20;
const largeSlabBytes = 64 * 2 ** 20;
const hugePage = 2 * 2 ** 20;
/** Slabs of more than any machine has are not followed page by page: they are all resident. */
const mostPages = 2 ** 23;

const roundUp = (bytes: number, unit: number) => Math.ceil(bytes / unit) * unit;

/** A stretch of a slab: free, or held by a block and its views. */
export interface Chunk {
  readonly slab: Slab;
  readonly start: number;
  bytes: number;
  before: Chunk | null;
  after: Chunk | null;
  holders: number;
}

/** Memory that is taken from the system at once. The system gives it page by page, when a page is first written. */
interface Slab {
  readonly number: number;
  readonly bytes: number;
  readonly isSmall: boolean;
  readonly isTouched: Uint8Array;
}

/**
 * The engine's allocator on sizes alone: engine/memory.cpp, choice by choice, so that what it takes from the system for a sequence of calls is
 * known without taking it. A test holds the two together.
 */
export class BlockMemory {
  /** Bytes of live blocks, now and at the highest point. */
  live = 0;
  peak = 0;
  /** Bytes of all slabs, now. */
  reserved = 0;
  /** Bytes of pages that blocks have touched and that the system has not got back, now and at the highest point. */
  resident = 0;
  residentPeak = 0;
  /** Free chunks by size, then by place: small ones, large ones. */
  readonly #free: readonly [Chunk[], Chunk[]] = [[], []];
  #slabs = 0;

  take(asked: number): Chunk {
    const bytes = Math.max(alignment, roundUp(asked, alignment));
    const isSmall = bytes < smallLimit;
    const candidates = this.#freeOf(isSmall);
    let at = firstOfSize(candidates, bytes);
    if (at === candidates.length) {
      const fresh = this.#newSlab(bytes, isSmall);
      at = placeOf(candidates, fresh);
      candidates.splice(at, 0, fresh);
    }
    const [chunk] = candidates.splice(at, 1) as [Chunk];
    if (chunk.bytes > bytes) {
      const { slab, start, after } = chunk;
      const rest: Chunk = { slab, start: start + bytes, bytes: chunk.bytes - bytes, before: chunk, after, holders: 0 };
      if (after !== null) after.before = rest;
      chunk.after = rest;
      chunk.bytes = bytes;
      this.#insert(rest);
    }
    chunk.holders = 1;
    this.live += bytes;
    this.peak = Math.max(this.peak, this.live);
    this.#touch(chunk);
    return chunk;
  }

  giveBack(chunk: Chunk): void {
    if (--chunk.holders > 0) return;
    this.live -= chunk.bytes;
    const { before, after } = chunk;
    let whole = chunk;
    if (before?.holders === 0) {
      this.#remove(before);
      whole = absorb(before, whole);
    }
    if (after?.holders === 0) {
      this.#remove(after);
      whole = absorb(whole, after);
    }
    this.#insert(whole);
  }

  /** What is live is the new peak. */
  resetPeak(): void {
    this.peak = this.live;
    this.residentPeak = this.resident;
  }

  #freeOf(isSmall: boolean): Chunk[] {
    return this.#free[isSmall ? 0 : 1];
  }

  #insert(chunk: Chunk): void {
    const free = this.#freeOf(chunk.slab.isSmall);
    free.splice(placeOf(free, chunk), 0, chunk);
  }

  #remove(chunk: Chunk): void {
    const free = this.#freeOf(chunk.slab.isSmall);
    free.splice(placeOf(free, chunk), 1);
  }

  #newSlab(wanted: number, isSmall: boolean): Chunk {
    const bytes = isSmall ? smallSlabBytes : Math.max(largeSlabBytes, roundUp(wanted, hugePage));
    this.#releaseEmptySlabs(bytes);
    const slab: Slab = {
      number: this.#slabs++,
      bytes,
      isSmall,
      isTouched: new Uint8Array(bytes / hugePage <= mostPages ? bytes / hugePage : 0),
    };
    this.reserved += bytes;
    return { slab, start: 0, bytes, before: null, after: null, holders: 0 };
  }

  /** Before more is taken from the system, slabs that nobody uses go back to it, up to `bytes` of them. */
  #releaseEmptySlabs(bytes: number): void {
    let left = bytes;
    for (const isSmall of [false, true]) {
      const free = this.#freeOf(isSmall);
      for (let at = 0; at < free.length && left > 0; ) {
        const { slab, before, after, bytes: size } = free[at]!;
        if (before !== null || after !== null) {
          at++;
          continue;
        }
        this.reserved -= size;
        this.resident -= hugePage * slab.isTouched.reduce((sum, touched) => sum + touched, 0);
        left -= size;
        free.splice(at, 1);
      }
    }
  }

  #touch({ slab: { isTouched }, start, bytes }: Chunk): void {
    const end = Math.ceil((start + bytes) / hugePage);
    if (isTouched.length === 0) {
      this.resident += bytes;
      this.residentPeak = Math.max(this.residentPeak, this.resident);
      return;
    }
    for (let page = Math.floor(start / hugePage); page < end; page++) {
      if (isTouched[page] === 1) continue;
      isTouched[page] = 1;
      this.resident += hugePage;
    }
    this.residentPeak = Math.max(this.residentPeak, this.resident);
  }
}

function absorb(left: Chunk, right: Chunk): Chunk {
  left.bytes += right.bytes;
  left.after = right.after;
  if (left.after !== null) left.after.before = left;
  return left;
}

function isBefore(a: Chunk, b: Chunk): boolean {
  if (a.bytes !== b.bytes) return a.bytes < b.bytes;
  return a.slab === b.slab ? a.start < b.start : a.slab.number < b.slab.number;
}

/** Where a chunk stands, or would stand, among sorted ones. */
function placeOf(chunks: readonly Chunk[], chunk: Chunk): number {
  return firstWhere(chunks, (other) => !isBefore(other, chunk));
}

function firstOfSize(chunks: readonly Chunk[], bytes: number): number {
  return firstWhere(chunks, (chunk) => chunk.bytes >= bytes);
}

/** Binary search in a sorted list: the index of the first item that fits, and the length of the list if none does. */
function firstWhere(chunks: readonly Chunk[], fits: (chunk: Chunk) => boolean): number {
  let [low, high] = [0, chunks.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (fits(chunks[middle]!)) high = middle;
    else low = middle + 1;
  }
  return low;
}
