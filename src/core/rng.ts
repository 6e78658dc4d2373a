/**
 * Seeded random numbers: xoshiro128**, seeded through SplitMix32-style mixing.
 * Source: Blackman & Vigna 2021, "Scrambled linear pseudorandom number generators"; https://prng.di.unimi.it/xoshiro128starstar.c
 * The state is four 32-bit words, so a checkpoint can hold it and a resumed run draws the same numbers.
 */
export class Rng {
  readonly #s = new Uint32Array(4);

  constructor(seed: number) {
    let z = seed >>> 0;
    for (let i = 0; i < 4; i++) {
      z = (z + 0x9e3779b9) >>> 0;
      this.#s[i] = mix(z);
    }
  }

  /** A generator whose numbers depend on this one's seed and on `label` alone, not on how many numbers were drawn elsewhere. */
  static for(seed: number, label: string): Rng {
    let hash = mix(seed >>> 0);
    for (let i = 0; i < label.length; i++) hash = mix((hash ^ label.charCodeAt(i)) >>> 0);
    return new Rng(hash);
  }

  get state(): number[] {
    return Array.from(this.#s);
  }

  set state(words: readonly number[]) {
    this.#s.set(words);
  }

  uint32(): number {
    const s = this.#s;
    const s1 = s[1]!;
    const result = Math.imul(rotl(Math.imul(s1, 5), 7), 9) >>> 0;
    s[2]! ^= s[0]!;
    s[3]! ^= s1;
    s[1]! ^= s[2]!;
    s[0]! ^= s[3]!;
    s[2]! ^= s1 << 9;
    s[3] = rotl(s[3]!, 11);
    return result;
  }

  /** 64 random bits: the seed of one dropout mask. */
  uint64(): bigint {
    return (BigInt(this.uint32()) << 32n) | BigInt(this.uint32());
  }

  /** In [0, 1), with 53 random bits. */
  float(): number {
    return ((this.uint32() >>> 5) * 0x4000000 + (this.uint32() >>> 6)) / 2 ** 53;
  }

  uniform(low: number, high: number): number {
    return low + (high - low) * this.float();
  }

  /** Standard normal (Box–Muller). */
  normal(): number {
    return Math.sqrt(-2 * Math.log(1 - this.float())) * Math.cos(2 * Math.PI * this.float());
  }

  /** An integer in [0, limit). */
  below(limit: number): number {
    return Math.floor(this.float() * limit);
  }
}

function rotl(x: number, k: number): number {
  return (x << k) | (x >>> (32 - k));
}

/** The finalizer of MurmurHash3. */
function mix(h: number): number {
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return (h ^ (h >>> 16)) >>> 0;
}
