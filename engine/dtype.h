// Element types. Codes and block layouts equal src/engine/dtype.ts; layouts are GGUF's, byte for byte.
// Included by the per-ISA files too: C headers only, nothing with external linkage.
#pragma once
#include <stdint.h>

namespace attune {

enum DType : int { F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, Q6_K, DTYPE_COUNT };

#pragma pack(push, 1)

// d and m are f16. Element i and element i + 16 of a 4-bit block share byte i (low and high nibble).
struct BlockQ8_0 { // x = d · q
  uint16_t d;
  int8_t q[32];
};
struct BlockQ4_0 { // x = d · (q − 8)
  uint16_t d;
  uint8_t q[16];
};
struct BlockQ4_1 { // x = d · q + m
  uint16_t d, m;
  uint8_t q[16];
};
struct BlockQ5_0 { // x = d · (q − 16); bit i of `high` is the fifth bit of element i
  uint16_t d;
  uint8_t high[4];
  uint8_t q[16];
};
struct BlockQ5_1 { // x = d · q + m
  uint16_t d, m;
  uint8_t high[4];
  uint8_t q[16];
};

// Super-blocks of 256. `scales` packs eight 6-bit scales and eight 6-bit minima, one of each for 32 elements.
struct BlockQ4_K { // x = d · scale · q − dmin · min
  uint16_t d, dmin;
  uint8_t scales[12];
  uint8_t q[128];
};
struct BlockQ5_K { // as Q4_K, with the fifth bits in `high`
  uint16_t d, dmin;
  uint8_t scales[12];
  uint8_t high[32];
  uint8_t q[128];
};
struct BlockQ6_K { // x = d · scale · (q − 32), one scale for 16 elements; low four bits in `low`, two more in `high`
  uint8_t low[128];
  uint8_t high[64];
  int8_t scales[16];
  uint16_t d;
};

#pragma pack(pop)

struct DTypeInfo {
  const char* name;
  int block; // elements that are stored together
  int bytes; // bytes of a block
};

static constexpr DTypeInfo dtype_info[DTYPE_COUNT] = {
    {"f32", 1, 4},    {"f16", 1, 2},    {"bf16", 1, 2},    {"q8_0", 32, 34},   {"q4_0", 32, 18},   {"q4_1", 32, 20},
    {"q5_0", 32, 22}, {"q5_1", 32, 24}, {"q4_k", 256, 144}, {"q5_k", 256, 176}, {"q6_k", 256, 210},
};

static_assert(sizeof(BlockQ8_0) == 34 && sizeof(BlockQ4_0) == 18 && sizeof(BlockQ4_1) == 20 && sizeof(BlockQ5_0) == 22 &&
              sizeof(BlockQ5_1) == 24 && sizeof(BlockQ4_K) == 144 && sizeof(BlockQ5_K) == 176 && sizeof(BlockQ6_K) == 210,
              "block layouts must have no padding");

} // namespace attune
