// f32 to the blocks of GGUF files, bit by bit as ggml does without an importance matrix.
// Source: ggml/src/ggml-quants.c of llama.cpp (quantize_row_*_ref, make_qkx2_quants, make_qx_quants).
//
// Every sum keeps its order, and the build script compiles this file without fused multiplications: codes lie where rounding decides, and
// those of all machines are to be the same. It is therefore not one of the kernels that are compiled for each tier.
#include "quantize_gguf.h"

#include <cmath>
#include <cstring>

#include "dtype.h"
#include "half.h"

namespace attune {
namespace {

int clamp(int value, int low, int high) { return value < low ? low : value > high ? high : value; }

/// To the nearest whole number, ties to even, for |x| < 2²². NaN gives some number.
int nearest(float x) {
  const float shifted = x + 12582912.0f; // 1.5 · 2²³: whole numbers are all that the mantissa still holds
  int32_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  return (bits & 0x007FFFFF) - 0x00400000;
}

/// The whole part of x ≥ 0, at most `high`. NaN gives 0.
int truncated(float x, int high) { return static_cast<int>(fminf(fmaxf(x, 0.0f), static_cast<float>(high))); }

float inverse_or_zero(float d) { return d != 0.0f ? 1.0f / d : 0.0f; }

/// The number of the largest magnitude, with its sign; the first of several.
float extreme(const float* x, int count) {
  float magnitude = 0.0f, value = 0.0f;
  for (int i = 0; i < count; i++)
    if (fabsf(x[i]) > magnitude) {
      magnitude = fabsf(x[i]);
      value = x[i];
    }
  return value;
}

struct Range {
  float min, max;
};

Range range(const float* x, int count) {
  Range r{x[0], x[0]};
  for (int i = 1; i < count; i++) {
    if (x[i] < r.min) r.min = x[i];
    if (x[i] > r.max) r.max = x[i];
  }
  return r;
}

void quantize_block(const float* x, BlockQ8_0& y) {
  const float d = fabsf(extreme(x, 32)) / 127.0f, inverse = inverse_or_zero(d);
  y.d = to_f16(d);
  for (int i = 0; i < 32; i++) y.q[i] = static_cast<int8_t>(clamp(static_cast<int>(roundf(fmaxf(x[i] * inverse, -128.0f))), -128, 127));
}

void quantize_block(const float* x, BlockQ4_0& y) {
  const float d = extreme(x, 32) / -8.0f, inverse = inverse_or_zero(d);
  y.d = to_f16(d);
  for (int i = 0; i < 16; i++)
    y.q[i] = static_cast<uint8_t>(truncated(x[i] * inverse + 8.5f, 15) | truncated(x[i + 16] * inverse + 8.5f, 15) << 4);
}

void quantize_block(const float* x, BlockQ4_1& y) {
  const Range r = range(x, 32);
  const float d = (r.max - r.min) / 15.0f, inverse = inverse_or_zero(d);
  y.d = to_f16(d);
  y.m = to_f16(r.min);
  for (int i = 0; i < 16; i++)
    y.q[i] = static_cast<uint8_t>(truncated((x[i] - r.min) * inverse + 0.5f, 15) | truncated((x[i + 16] - r.min) * inverse + 0.5f, 15) << 4);
}

/// Low four bits into q, fifth bits into `high`.
template <class Block>
void pack_five_bits(const int (&code)[32], Block& y) {
  uint32_t high = 0;
  for (int i = 0; i < 32; i++) high |= static_cast<uint32_t>(code[i] >> 4) << i;
  std::memcpy(y.high, &high, sizeof high); // little-endian, as every machine that attune runs on
  for (int i = 0; i < 16; i++) y.q[i] = static_cast<uint8_t>((code[i] & 15) | (code[i + 16] & 15) << 4);
}

void quantize_block(const float* x, BlockQ5_0& y) {
  const float d = extreme(x, 32) / -16.0f, inverse = inverse_or_zero(d);
  y.d = to_f16(d);
  int code[32];
  for (int i = 0; i < 32; i++) code[i] = truncated(x[i] * inverse + 16.5f, 31);
  pack_five_bits(code, y);
}

/// A scale and an offset for 32 numbers: x ≈ scale · code − offset with offset ≥ 0.
struct Affine {
  float scale, offset;
};

/// Tries 21 slopes around the one that spans the range; for each, codes by rounding, then scale and minimum by weighted least squares.
/// Keeps the best by weighted square error. Later slopes start from the minimum that is the best so far, as in ggml.
Affine fit_affine(const float* x, uint8_t* code) {
  constexpr int count = 32, top = 15, steps = 20;
  float squares = 0.0f;
  for (int i = 0; i < count; i++) squares += x[i] * x[i];
  const float spread = sqrtf(squares / count);
  float weight[count];
  for (int i = 0; i < count; i++) weight[i] = spread + fabsf(x[i]); // large numbers matter more
  float sum_w = weight[0], sum_x = sum_w * x[0];
  for (int i = 1; i < count; i++) {
    sum_w += weight[i];
    sum_x += weight[i] * x[i];
  }

  auto [min, max] = range(x, count);
  if (min > 0.0f) min = 0.0f;
  if (max == min) {
    std::memset(code, 0, count);
    return {0.0f, -min};
  }
  const auto round_codes = [&](float slope, uint8_t* to) {
    for (int i = 0; i < count; i++) to[i] = static_cast<uint8_t>(clamp(nearest(slope * (x[i] - min)), 0, top));
  };
  const auto error = [&](float scale, float offset, const uint8_t* of) {
    float sum = 0.0f;
    for (int i = 0; i < count; i++) {
      const float miss = scale * static_cast<float>(of[i]) + offset - x[i];
      sum += weight[i] * (miss * miss);
    }
    return sum;
  };

  const float first = top / (max - min);
  float scale = 1.0f / first;
  round_codes(first, code);
  float best = error(scale, min, code);
  for (int step = 0; step <= steps; step++) {
    uint8_t tried[count];
    round_codes((-1.0f + 0.1f * static_cast<float>(step) + top) / (max - min), tried);
    float sum_l = 0.0f, sum_l2 = 0.0f, sum_xl = 0.0f;
    for (int i = 0; i < count; i++) {
      const float l = static_cast<float>(tried[i]), wl = weight[i] * l;
      sum_l += wl;
      sum_l2 += wl * l;
      sum_xl += wl * x[i];
    }
    const float determinant = sum_w * sum_l2 - sum_l * sum_l;
    if (!(determinant > 0.0f)) continue;
    float this_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant, this_min = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
    if (this_min > 0.0f) {
      this_min = 0.0f;
      this_scale = sum_xl / sum_l2;
    }
    const float this_error = error(this_scale, this_min, tried);
    if (this_error < best) {
      best = this_error;
      scale = this_scale;
      min = this_min;
      std::memcpy(code, tried, count);
    }
  }
  return {scale, -min};
}

void quantize_block(const float* x, BlockQ4_K& y) {
  Affine fit[8];
  uint8_t code[256];
  float max_scale = 0.0f, max_offset = 0.0f;
  for (int group = 0; group < 8; group++) {
    fit[group] = fit_affine(x + 32 * group, code + 32 * group);
    max_scale = fmaxf(max_scale, fit[group].scale);
    max_offset = fmaxf(max_offset, fit[group].offset);
  }
  const float inverse_scale = max_scale > 0.0f ? 63.0f / max_scale : 0.0f, inverse_offset = max_offset > 0.0f ? 63.0f / max_offset : 0.0f;
  y.d = to_f16(max_scale / 63.0f);
  y.dmin = to_f16(max_offset / 63.0f);
  const float d = from_f16(y.d), dmin = from_f16(y.dmin);

  int scale[8], offset[8];
  for (int group = 0; group < 8; group++) {
    scale[group] = clamp(static_cast<uint8_t>(nearest(inverse_scale * fit[group].scale)), 0, 63);
    offset[group] = clamp(static_cast<uint8_t>(nearest(inverse_offset * fit[group].offset)), 0, 63);
    const float own_scale = d * static_cast<float>(scale[group]), own_offset = dmin * static_cast<float>(offset[group]);
    if (own_scale == 0.0f) continue;
    for (int i = 32 * group; i < 32 * (group + 1); i++)
      code[i] = static_cast<uint8_t>(clamp(nearest((x[i] + own_offset) / own_scale), 0, 15));
  }
  for (int group = 0; group < 4; group++) { // the layout that scale_min in kernels/quant.inl reads
    y.scales[group] = static_cast<uint8_t>(scale[group] | scale[group + 4] >> 4 << 6);
    y.scales[group + 4] = static_cast<uint8_t>(offset[group] | offset[group + 4] >> 4 << 6);
    y.scales[group + 8] = static_cast<uint8_t>((scale[group + 4] & 15) | (offset[group + 4] & 15) << 4);
  }
  for (int i = 0; i < 128; i++) {
    const uint8_t* pair = code + i / 32 * 64 + i % 32;
    y.q[i] = static_cast<uint8_t>(pair[0] | pair[32] << 4);
  }
}

constexpr float negligible = 1e-15f;

/// A scale for 16 numbers: x ≈ scale · (code − 32) with codes from 0 to 63. Tries 19 slopes; the best by square error weighted by x².
float fit_linear(const float* x, uint8_t* code) {
  constexpr int count = 16, top = 32;
  const float largest = extreme(x, count);
  std::memset(code, 0, count);
  if (fabsf(largest) < negligible) return 0.0f;
  float scale = 0.0f, best = 0.0f;
  for (int turn = 0; turn < 19; turn++) {
    const int step = turn == 0 ? 0 : turn <= 9 ? turn - 10 : turn - 9; // 0, then −9 … −1, then 1 … 9
    const float slope = -(top + 0.1f * static_cast<float>(step)) / largest;
    uint8_t tried[count];
    float sum_xl = 0.0f, sum_l2 = 0.0f;
    for (int i = 0; i < count; i++) {
      const int whole = clamp(nearest(slope * x[i]), -top, top - 1);
      const float l = static_cast<float>(whole), w = x[i] * x[i];
      tried[i] = static_cast<uint8_t>(whole + top);
      sum_xl += w * x[i] * l;
      sum_l2 += w * l * l;
    }
    const bool is_better = sum_l2 > 0.0f && sum_xl * sum_xl > best * sum_l2;
    if (step != 0 && !is_better) continue;
    std::memcpy(code, tried, count);
    scale = sum_l2 != 0.0f ? sum_xl / sum_l2 : 0.0f;
    best = scale * sum_xl;
  }
  return scale;
}

void quantize_block(const float* x, BlockQ6_K& y) {
  float scale[16];
  uint8_t code[256];
  for (int group = 0; group < 16; group++) scale[group] = fit_linear(x + 16 * group, code + 16 * group);
  const float largest = extreme(scale, 16);
  if (fabsf(largest) < negligible) {
    std::memset(&y, 0, sizeof y);
    return;
  }
  const float slope = -128.0f / largest;
  y.d = to_f16(1.0f / slope);
  const float d = from_f16(y.d);
  for (int group = 0; group < 16; group++) {
    y.scales[group] = static_cast<int8_t>(clamp(nearest(slope * scale[group]), -128, 127));
    const float own = d * static_cast<float>(y.scales[group]);
    if (own == 0.0f) continue;
    for (int i = 16 * group; i < 16 * (group + 1); i++) code[i] = static_cast<uint8_t>(clamp(nearest(x[i] / own), -32, 31) + 32);
  }
  for (int half = 0; half < 2; half++)
    for (int i = 0; i < 32; i++) {
      const uint8_t *a = code + 128 * half + i, *b = a + 32, *c = a + 64, *e = a + 96;
      y.low[64 * half + i] = static_cast<uint8_t>((*a & 15) | (*c & 15) << 4);
      y.low[64 * half + 32 + i] = static_cast<uint8_t>((*b & 15) | (*e & 15) << 4);
      y.high[32 * half + i] = static_cast<uint8_t>(*a >> 4 | *b >> 4 << 2 | *c >> 4 << 4 | *e >> 4 << 6);
    }
}

template <class Block, int size>
void quantize_blocks(const float* x, void* y, int64_t count) {
  Block* block = static_cast<Block*>(y);
  for (int64_t i = 0; i < count; i += size) quantize_block(x + i, *block++);
}

} // namespace

void quantize_gguf(int type, const float* x, void* y, int64_t count) {
  switch (type) {
  case Q8_0: return quantize_blocks<BlockQ8_0, 32>(x, y, count);
  case Q4_0: return quantize_blocks<BlockQ4_0, 32>(x, y, count);
  case Q4_1: return quantize_blocks<BlockQ4_1, 32>(x, y, count);
  case Q5_0: return quantize_blocks<BlockQ5_0, 32>(x, y, count);
  case Q4_K: return quantize_blocks<BlockQ4_K, 256>(x, y, count);
  case Q6_K: return quantize_blocks<BlockQ6_K, 256>(x, y, count);
  }
}

} // namespace attune
