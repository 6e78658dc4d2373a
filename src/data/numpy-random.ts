const mask64 = (1n << 64n) - 1n;
const mask128 = (1n << 128n) - 1n;
const multiplier = 0x2360ed051fc65da44385df649fccf645n;

/**
 * NumPy's `default_rng(seed).random()`: PCG64, seeded by SeedSequence. For draws that have to be those of another program; attune's own are `Rng`'s.
 * `seed` is a whole number from 0. Source: O'Neill 2014 (PCG XSL RR 128/64); NumPy 2, numpy/random/bit_generator.pyx (SeedSequence) and src/pcg64.
 */
export class NumpyRandom {
  #state = 0n;
  readonly #increment: bigint;

  constructor(seed: number) {
    const [a, b, c, d] = seedSequence(seed) as [bigint, bigint, bigint, bigint];
    this.#increment = ((((c << 64n) | d) << 1n) & mask128) | 1n;
    this.#step();
    this.#state = (this.#state + ((a << 64n) | b)) & mask128;
    this.#step();
  }

  /** From 0 (included) to 1 (excluded), with 53 random bits. */
  next(): number {
    this.#step();
    const folded = (this.#state >> 64n) ^ (this.#state & mask64);
    const turn = this.#state >> 122n;
    const bits = ((folded >> turn) | (folded << (64n - turn))) & mask64;
    return Number(bits >> 11n) * 2 ** -53;
  }

  #step(): void {
    this.#state = (this.#state * multiplier + this.#increment) & mask128;
  }
}

/** Four words of 64 bits. */
function seedSequence(seed: number): bigint[] {
  const entropy = [seed >>> 0, Math.floor(seed / 2 ** 32) >>> 0];
  let hash = 0x43b0d7e5;
  const hashed = (value: number) => {
    const mixed = value ^ hash;
    hash = Math.imul(hash, 0x931e8875);
    const product = Math.imul(mixed, hash);
    return (product ^ (product >>> 16)) >>> 0;
  };
  const pool = Array.from({ length: 4 }, (_, i) => hashed(entropy[i] ?? 0));
  for (let from = 0; from < 4; from++)
    for (let to = 0; to < 4; to++) {
      if (from === to) continue;
      const mixed = (Math.imul(0xca01f9dd, pool[to]!) - Math.imul(0x4973f715, hashed(pool[from]!))) | 0;
      pool[to] = (mixed ^ (mixed >>> 16)) >>> 0;
    }

  hash = 0x8b51f9dd;
  const words = Array.from({ length: 8 }, (_, i) => {
    const mixed = pool[i % 4]! ^ hash;
    hash = Math.imul(hash, 0x58f38ded);
    const product = Math.imul(mixed, hash);
    return BigInt((product ^ (product >>> 16)) >>> 0);
  });
  return [0, 1, 2, 3].map((i) => words[2 * i]! | (words[2 * i + 1]! << 32n));
}
