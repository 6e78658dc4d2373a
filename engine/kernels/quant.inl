// Stored numbers to f32. Every product of a scale and an integer below fits 24 bits (q6_k rounds once), so fused or not, on every ISA,
// the result is the same: what gguf-py's `dequantize` gives, bit for bit.
#pragma once

template <class To, class From>
static inline To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "a bit cast keeps the size");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

static inline float from_bits(uint32_t u) { return bit_cast<float>(u); }

/// Exact. f16's exponent is moved under f32's and corrected by a multiplication, which makes subnormals right as well.
static inline float from_f16(uint16_t h) {
  const float magnitude = from_bits(uint32_t(h & 0x7fff) << 13) * 0x1p112f;
  const uint32_t special = (h & 0x7c00) == 0x7c00 ? 0x7f800000u : 0u; // infinity or NaN
  return from_bits(bit_cast<uint32_t>(magnitude) | special | uint32_t(h & 0x8000) << 16);
}

static inline float from_bf16(uint16_t h) { return from_bits(uint32_t(h) << 16); }

static inline void expand_block(const BlockQ8_0& b, float* y) {
  const float d = from_f16(b.d);
  for (int i = 0; i < 32; i++) y[i] = d * b.q[i];
}

static inline void expand_block(const BlockQ4_0& b, float* y) {
  const float d = from_f16(b.d);
  for (int i = 0; i < 16; i++) y[i] = d * ((b.q[i] & 15) - 8);
  for (int i = 0; i < 16; i++) y[i + 16] = d * ((b.q[i] >> 4) - 8);
}

static inline void expand_block(const BlockQ4_1& b, float* y) {
  const float d = from_f16(b.d), m = from_f16(b.m);
  for (int i = 0; i < 16; i++) y[i] = d * (b.q[i] & 15) + m;
  for (int i = 0; i < 16; i++) y[i + 16] = d * (b.q[i] >> 4) + m;
}

/// Fifth bits of a block, moved to bit 4 of a byte each.
static inline void fifth_bits(const uint8_t high[4], uint8_t bit4[32]) {
  for (int byte = 0; byte < 4; byte++)
    for (int i = 0; i < 8; i++) bit4[byte * 8 + i] = (high[byte] >> i & 1) << 4;
}

static inline void expand_block(const BlockQ5_0& b, float* y) {
  const float d = from_f16(b.d);
  uint8_t bit4[32];
  fifth_bits(b.high, bit4);
  for (int i = 0; i < 16; i++) y[i] = d * (((b.q[i] & 15) | bit4[i]) - 16);
  for (int i = 0; i < 16; i++) y[i + 16] = d * (((b.q[i] >> 4) | bit4[i + 16]) - 16);
}

static inline void expand_block(const BlockQ5_1& b, float* y) {
  const float d = from_f16(b.d), m = from_f16(b.m);
  uint8_t bit4[32];
  fifth_bits(b.high, bit4);
  for (int i = 0; i < 16; i++) y[i] = d * ((b.q[i] & 15) | bit4[i]) + m;
  for (int i = 0; i < 16; i++) y[i + 16] = d * ((b.q[i] >> 4) | bit4[i + 16]) + m;
}

struct ScaleMin {
  float scale, min;
};

/// Scale and minimum of the `i`-th 32 elements of a super-block. The first four of each lie in the low 6 bits of bytes 0–3 and 4–7; the
/// other four have their low 4 bits in bytes 8–11 (scale below, minimum above) and their high 2 bits on top of bytes 0–3 and 4–7.
static inline ScaleMin scale_min(const uint8_t s[12], int i, float d, float dmin) {
  if (i < 4) return {d * (s[i] & 63), dmin * (s[i + 4] & 63)};
  return {d * ((s[i + 4] & 15) | s[i - 4] >> 6 << 4), dmin * (s[i + 4] >> 4 | s[i] >> 6 << 4)};
}

static inline void expand_block(const BlockQ4_K& b, float* y) {
  const float d = from_f16(b.d), dmin = from_f16(b.dmin);
  const uint8_t* q = b.q;
  for (int i = 0; i < 8; i += 2, q += 32, y += 64) {
    const ScaleMin low = scale_min(b.scales, i, d, dmin), high = scale_min(b.scales, i + 1, d, dmin);
    for (int j = 0; j < 32; j++) y[j] = low.scale * (q[j] & 15) - low.min;
    for (int j = 0; j < 32; j++) y[j + 32] = high.scale * (q[j] >> 4) - high.min;
  }
}

static inline void expand_block(const BlockQ5_K& b, float* y) {
  const float d = from_f16(b.d), dmin = from_f16(b.dmin);
  const uint8_t* q = b.q;
  for (int i = 0; i < 8; i += 2, q += 32, y += 64) {
    const ScaleMin low = scale_min(b.scales, i, d, dmin), high = scale_min(b.scales, i + 1, d, dmin);
    for (int j = 0; j < 32; j++) y[j] = low.scale * ((q[j] & 15) | (b.high[j] >> i & 1) << 4) - low.min;
    for (int j = 0; j < 32; j++) y[j + 32] = high.scale * (q[j] >> 4 | (b.high[j] >> (i + 1) & 1) << 4) - high.min;
  }
}

static inline void expand_block(const BlockQ6_K& b, float* y) {
  const float d = from_f16(b.d);
  const uint8_t *low = b.low, *high = b.high;
  const int8_t* scales = b.scales;
  for (int half = 0; half < 2; half++, low += 64, high += 32, scales += 8, y += 128) {
    for (int part = 0; part < 4; part++) { // 32 elements each: low nibbles of two runs of 32 bytes, then their high nibbles
      const uint8_t* nibbles = low + (part & 1) * 32;
      const int shift = part / 2 * 4;
      for (int i = 0; i < 32; i++) {
        const int q = (nibbles[i] >> shift & 15) | (high[i] >> part * 2 & 3) << 4;
        y[part * 32 + i] = d * scales[part * 2 + i / 16] * (q - 32);
      }
    }
  }
}

template <class Block, int size>
static void expand_blocks(const void* src, float* dst, int64_t count) {
  const Block* block = static_cast<const Block*>(src);
  for (int64_t i = 0; i < count; i += size) expand_block(*block++, dst + i);
}

static void expand(int dtype, const void* src, float* dst, int64_t count) {
  switch (dtype) {
  case F32: __builtin_memcpy(dst, src, size_t(count) * 4); break;
  case F16: {
    const uint16_t* h = static_cast<const uint16_t*>(src);
    for (int64_t i = 0; i < count; i++) dst[i] = from_f16(h[i]);
    break;
  }
  case BF16: {
    const uint16_t* h = static_cast<const uint16_t*>(src);
    for (int64_t i = 0; i < count; i++) dst[i] = from_bf16(h[i]);
    break;
  }
  case Q8_0: expand_blocks<BlockQ8_0, 32>(src, dst, count); break;
  case Q4_0: expand_blocks<BlockQ4_0, 32>(src, dst, count); break;
  case Q4_1: expand_blocks<BlockQ4_1, 32>(src, dst, count); break;
  case Q5_0: expand_blocks<BlockQ5_0, 32>(src, dst, count); break;
  case Q5_1: expand_blocks<BlockQ5_1, 32>(src, dst, count); break;
  case Q4_K: expand_blocks<BlockQ4_K, 256>(src, dst, count); break;
  case Q5_K: expand_blocks<BlockQ5_K, 256>(src, dst, count); break;
  case Q6_K: expand_blocks<BlockQ6_K, 256>(src, dst, count); break;
  default: break;
  }
}

static constexpr QuantKernels quant_kernels = {expand};
