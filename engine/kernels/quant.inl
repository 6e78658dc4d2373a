// Stored numbers to f32. For GGUF's types every product of a scale and an integer below fits 24 bits (q6_k rounds once), so fused or not,
// on every ISA, the result is the same: what gguf-py's `dequantize` gives, bit for bit. The other 4-bit types give what bitsandbytes'
// `dequantize_4bit` does.
#pragma once
#include "quant_tables.inl"

template <class To, class From>
static inline To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "a bit cast keeps the size");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

static inline float from_bits(uint32_t u) { return bit_cast<float>(u); }

static inline float from_f16(uint16_t h) {
#if defined(__F16C__)
  return _cvtsh_ss(h);
#else
  return attune::from_f16(h);
#endif
}

static inline float from_bf16(uint16_t h) { return from_bits(uint32_t(h) << 16); }

/// The next `lanes` bytes, each in a lane.
static inline VecInt load_bytes(const uint8_t* p) {
#if defined(__AVX512F__)
  return VecInt(_mm512_maskz_cvtepu8_epi32(0xffff, _mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#elif defined(__AVX2__)
  return VecInt(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#else
  return VecInt{p[0], p[1], p[2], p[3]};
#endif
}

static inline VecInt load_signed_bytes(const int8_t* p) { return load_bytes(reinterpret_cast<const uint8_t*>(p)) << 24 >> 24; }

static inline Vec to_floats(VecInt v) { return __builtin_convertvector(v, Vec); }

static inline void expand_block(const BlockQ8_0& b, float* y) {
  const float d = from_f16(b.d);
  for (int i = 0; i < 32; i += lanes) store(y + i, d * to_floats(load_signed_bytes(b.q + i)));
}

static inline void expand_block(const BlockQ4_0& b, float* y) {
  const float d = from_f16(b.d);
  for (int i = 0; i < 16; i += lanes) {
    const VecInt q = load_bytes(b.q + i);
    store(y + i, d * to_floats((q & 15) - 8));
    store(y + i + 16, d * to_floats((q >> 4) - 8));
  }
}

static inline void expand_block(const BlockQ4_1& b, float* y) {
  const float d = from_f16(b.d), m = from_f16(b.m);
  for (int i = 0; i < 16; i += lanes) {
    const VecInt q = load_bytes(b.q + i);
    store(y + i, d * to_floats(q & 15) + m);
    store(y + i + 16, d * to_floats(q >> 4) + m);
  }
}

/// Fifth bits of `lanes` elements from `first` on, in place: 0 or 16.
static inline VecInt fifth_bits(const uint8_t high[4], int first) {
  VecInt bit;
  for (int i = 0; i < lanes; i++) bit[i] = first + i;
  int32_t all;
  memcpy(&all, high, 4); // little-endian, as every machine that attune runs on
  return (all >> bit & 1) << 4;
}

static inline void expand_block(const BlockQ5_0& b, float* y) {
  const float d = from_f16(b.d);
  for (int i = 0; i < 16; i += lanes) {
    const VecInt q = load_bytes(b.q + i);
    store(y + i, d * to_floats(((q & 15) | fifth_bits(b.high, i)) - 16));
    store(y + i + 16, d * to_floats(((q >> 4) | fifth_bits(b.high, i + 16)) - 16));
  }
}

static inline void expand_block(const BlockQ5_1& b, float* y) {
  const float d = from_f16(b.d), m = from_f16(b.m);
  for (int i = 0; i < 16; i += lanes) {
    const VecInt q = load_bytes(b.q + i);
    store(y + i, d * to_floats((q & 15) | fifth_bits(b.high, i)) + m);
    store(y + i + 16, d * to_floats((q >> 4) | fifth_bits(b.high, i + 16)) + m);
  }
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
  const uint8_t* bytes = b.q;
  for (int group = 0; group < 8; group += 2, bytes += 32, y += 64) {
    const ScaleMin low = scale_min(b.scales, group, d, dmin), high = scale_min(b.scales, group + 1, d, dmin);
    for (int i = 0; i < 32; i += lanes) {
      const VecInt q = load_bytes(bytes + i);
      store(y + i, low.scale * to_floats(q & 15) - low.min);
      store(y + i + 32, high.scale * to_floats(q >> 4) - high.min);
    }
  }
}

static inline void expand_block(const BlockQ5_K& b, float* y) {
  const float d = from_f16(b.d), dmin = from_f16(b.dmin);
  const uint8_t* bytes = b.q;
  for (int group = 0; group < 8; group += 2, bytes += 32, y += 64) {
    const ScaleMin low = scale_min(b.scales, group, d, dmin), high = scale_min(b.scales, group + 1, d, dmin);
    for (int i = 0; i < 32; i += lanes) {
      const VecInt q = load_bytes(bytes + i), fifths = load_bytes(b.high + i) >> group;
      store(y + i, low.scale * to_floats((q & 15) | (fifths & 1) << 4) - low.min);
      store(y + i + 32, high.scale * to_floats((q >> 4) | (fifths & 2) << 3) - high.min);
    }
  }
}

static inline void expand_block(const BlockQ6_K& b, float* y) {
  const float d = from_f16(b.d);
  const uint8_t *low = b.low, *high = b.high;
  const int8_t* scales = b.scales;
  for (int half = 0; half < 2; half++, low += 64, high += 32, scales += 8, y += 128) {
    for (int i = 0; i < 32; i += lanes) { // four runs of 32: low nibbles of two runs of bytes, then their high nibbles
      const VecInt a = load_bytes(low + i), c = load_bytes(low + 32 + i), top = load_bytes(high + i);
      const int8_t* scale = scales + i / 16;
      store(y + i, d * scale[0] * to_floats(((a & 15) | (top & 3) << 4) - 32));
      store(y + i + 32, d * scale[2] * to_floats(((c & 15) | (top >> 2 & 3) << 4) - 32));
      store(y + i + 64, d * scale[4] * to_floats(((a >> 4) | (top >> 4 & 3) << 4) - 32));
      store(y + i + 96, d * scale[6] * to_floats(((c >> 4) | top >> 6 << 4) - 32));
    }
  }
}

typedef uint8_t Bytes16 __attribute__((vector_size(16)));

#if defined(__clang__)
#define ATTUNE_SHUFFLE_BYTES(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define ATTUNE_SHUFFLE_BYTES(a, b, ...) __builtin_shuffle(a, b, Bytes16{__VA_ARGS__})
#endif

/// y (i) = table[low four bits of index (i)] · factor, for 16 numbers.
static inline void look_up(const float table[16], Bytes16 index, float factor, float* y) {
#if defined(__AVX512F__)
  const __m512i lanes_of = _mm512_maskz_cvtepu8_epi32(0xffff, bit_cast<__m128i>(index));
  store(y, Vec(_mm512_maskz_permutexvar_ps(0xffff, lanes_of, _mm512_loadu_ps(table))) * factor);
#elif defined(__AVX2__)
  const __m256 first = _mm256_loadu_ps(table), second = _mm256_loadu_ps(table + 8);
  for (int i = 0; i < 16; i += 8) {
    const __m128i eight = i == 0 ? bit_cast<__m128i>(index) : _mm_srli_si128(bit_cast<__m128i>(index), 8);
    const __m256i lanes_of = _mm256_cvtepu8_epi32(eight);
    const __m256 in_second = _mm256_castsi256_ps(_mm256_slli_epi32(lanes_of, 28)); // the fourth bit becomes the sign
    const __m256 a = _mm256_permutevar8x32_ps(first, lanes_of), b = _mm256_permutevar8x32_ps(second, lanes_of);
    store(y + i, Vec(_mm256_blendv_ps(a, b, in_second)) * factor);
  }
#else
  for (int i = 0; i < 16; i++) y[i] = table[index[i] & 15] * factor;
#endif
}

/// The 64 numbers of a block of bitsandbytes' types.
static inline void expand_4bit(const uint8_t q[32], const float table[16], float absmax, float* y) {
  for (int i = 0; i < 32; i += 16) {
    Bytes16 low;
    memcpy(&low, q + i, 16);
    const Bytes16 high = low >> 4;
    look_up(table, ATTUNE_SHUFFLE_BYTES(high, low, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23), absmax, y + 2 * i);
    look_up(table, ATTUNE_SHUFFLE_BYTES(high, low, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31), absmax, y + 2 * i + 16);
  }
}

static inline float absmax_of(const SuperBlock4Bit& super, const Block4Bit& block) {
  return unfused(dynamic_map.value[block.absmax] * super.scale) + super.offset;
}

static void expand_super_blocks(const Table4Bit& table, const SuperBlock4Bit* supers, int64_t first, float* y, int64_t count) {
  for (int64_t i = first / 64; i < (first + count) / 64; i++, y += 64) {
    const SuperBlock4Bit& super = supers[i / 256];
    const Block4Bit& block = super.blocks[i % 256];
    expand_4bit(block.q, table.value, absmax_of(super, block), y);
  }
}

static void expand_f32_blocks(const Table4Bit& table, const Block4BitF32* blocks, int64_t first, float* y, int64_t count) {
  for (int64_t i = first / 64; i < (first + count) / 64; i++, y += 64) expand_4bit(blocks[i].q, table.value, blocks[i].absmax, y);
}

template <class Block, int size>
static void expand_blocks(const void* array, int64_t first, float* y, int64_t count) {
  const Block* block = static_cast<const Block*>(array) + first / size;
  for (int64_t i = 0; i < count; i += size) expand_block(*block++, y + i);
}

static void expand_f16(const uint16_t* x, float* y, int64_t count) {
  int64_t whole = 0;
#if defined(__F16C__)
  whole = count / 8 * 8;
  for (int64_t i = 0; i < whole; i += 8)
    _mm256_storeu_ps(y + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x + i))));
#endif
  for (int64_t i = whole; i < count; i++) y[i] = from_f16(x[i]);
}

static void expand_bf16(const uint16_t* x, float* y, int64_t count) {
  for (int64_t i = 0; i < count; i++) y[i] = from_bf16(x[i]);
}

static void expand(int dtype, const void* array, int64_t first, float* y, int64_t count) {
  switch (dtype) {
  case F32: __builtin_memcpy(y, static_cast<const float*>(array) + first, size_t(count) * 4); break;
  case F16: expand_f16(static_cast<const uint16_t*>(array) + first, y, count); break;
  case BF16: expand_bf16(static_cast<const uint16_t*>(array) + first, y, count); break;
  case Q8_0: expand_blocks<BlockQ8_0, 32>(array, first, y, count); break;
  case Q4_0: expand_blocks<BlockQ4_0, 32>(array, first, y, count); break;
  case Q4_1: expand_blocks<BlockQ4_1, 32>(array, first, y, count); break;
  case Q5_0: expand_blocks<BlockQ5_0, 32>(array, first, y, count); break;
  case Q5_1: expand_blocks<BlockQ5_1, 32>(array, first, y, count); break;
  case Q4_K: expand_blocks<BlockQ4_K, 256>(array, first, y, count); break;
  case Q5_K: expand_blocks<BlockQ5_K, 256>(array, first, y, count); break;
  case Q6_K: expand_blocks<BlockQ6_K, 256>(array, first, y, count); break;
  case NF4: expand_super_blocks(nf4_table, static_cast<const SuperBlock4Bit*>(array), first, y, count); break;
  case FP4: expand_super_blocks(fp4_table, static_cast<const SuperBlock4Bit*>(array), first, y, count); break;
  case NF4_F32: expand_f32_blocks(nf4_table, static_cast<const Block4BitF32*>(array), first, y, count); break;
  case FP4_F32: expand_f32_blocks(fp4_table, static_cast<const Block4BitF32*>(array), first, y, count); break;
  default: break;
  }
}
