#pragma once
// Philox4x32-10: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3". Key: the seed. Each counter gives four words; a group of
// 64 elements takes 16 counters, and element e of group g reads word e / 16 of counter 16 g + e % 16, so that vectors need no shuffle.
static inline void philox_group(uint64_t seed, uint64_t group, uint32_t words[4][16]) {
#pragma omp simd
  for (uint32_t j = 0; j < 16; j++) { // the rounds are unrolled, so that this is the loop that becomes vectors
    const uint64_t counter = group * 16 + j;
    uint32_t c0 = static_cast<uint32_t>(counter), c1 = static_cast<uint32_t>(counter >> 32), c2 = 0, c3 = 0;
    uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
#pragma GCC unroll 10
    for (int round = 0; round < 10; round++) {
      const uint64_t a = static_cast<uint64_t>(c0) * 0xD2511F53u, b = static_cast<uint64_t>(c2) * 0xCD9E8D57u;
      c0 = static_cast<uint32_t>(b >> 32) ^ c1 ^ k0;
      c1 = static_cast<uint32_t>(b);
      c2 = static_cast<uint32_t>(a >> 32) ^ c3 ^ k1;
      c3 = static_cast<uint32_t>(a);
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    words[0][j] = c0;
    words[1][j] = c1;
    words[2][j] = c2;
    words[3][j] = c3;
  }
}

/// What keeps a number with the chance 1 − p: its word is at least p · 2³². What is kept is divided by 1 − p.
struct Keeping {
  uint32_t threshold;
  float scale;
  explicit Keeping(double p) : threshold(static_cast<uint32_t>(p * 4294967296.0)), scale(static_cast<float>(1.0 / (1.0 - p))) {} // p < 1
};
