// Element types. Codes and sizes equal src/engine/dtype.ts. Blocks of GGUF's types are laid out as in GGUF, byte for byte.
// Included by the per-ISA files too: C headers only, nothing with external linkage.
#pragma once
#include <stdint.h>

namespace attune {

enum DType : int { F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, Q6_K, NF4, FP4, NF4_F32, FP4_F32, DTYPE_COUNT };

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

// bitsandbytes' 4-bit types: x = table[q] · absmax of the block. Element 2i of a block is the high nibble of byte i, 2i + 1 the low one.
struct Block4Bit { // absmax = dynamic map[code] · scale + offset, which stand in front of every 256 blocks
  uint8_t absmax;
  uint8_t q[32];
};
struct SuperBlock4Bit { // the last of an array may have fewer blocks
  float scale, offset;
  Block4Bit blocks[256];
};
struct Block4BitF32 {
  float absmax;
  uint8_t q[32];
};

#pragma pack(pop)

struct DTypeInfo {
  const char* name;
  int block;  // elements that are stored together
  int bytes;  // bytes of a block
  int header; // bytes in front of every `headed` blocks
  int headed;
};

static constexpr DTypeInfo dtype_info[DTYPE_COUNT] = {
    {"f32", 1, 4, 0, 1},        {"f16", 1, 2, 0, 1},        {"bf16", 1, 2, 0, 1},       {"q8_0", 32, 34, 0, 1},     {"q4_0", 32, 18, 0, 1},
    {"q4_1", 32, 20, 0, 1},     {"q5_0", 32, 22, 0, 1},     {"q5_1", 32, 24, 0, 1},     {"q4_k", 256, 144, 0, 1},   {"q5_k", 256, 176, 0, 1},
    {"q6_k", 256, 210, 0, 1},   {"nf4", 64, 33, 8, 256},    {"fp4", 64, 33, 8, 256},    {"nf4_f32", 64, 36, 0, 1},  {"fp4_f32", 64, 36, 0, 1},
};

/// Bytes of an array of `count` elements, whole blocks.
static constexpr int64_t bytes_of(int type, int64_t count) {
  const DTypeInfo& info = dtype_info[type];
  const int64_t blocks = count / info.block;
  return blocks * info.bytes + (blocks + info.headed - 1) / info.headed * info.header;
}

static_assert(sizeof(BlockQ8_0) == 34 && sizeof(BlockQ4_0) == 18 && sizeof(BlockQ4_1) == 20 && sizeof(BlockQ5_0) == 22 &&
              sizeof(BlockQ5_1) == 24 && sizeof(BlockQ4_K) == 144 && sizeof(BlockQ5_K) == 176 && sizeof(BlockQ6_K) == 210 &&
              sizeof(SuperBlock4Bit) == 8 + 256 * 33 && sizeof(Block4BitF32) == 36,
              "block layouts must have no padding");

} // namespace attune
