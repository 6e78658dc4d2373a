// f32 to blocks. Here: bitsandbytes' 4-bit types, with the codes that its `quantize_4bit` gives on a CPU (bitsandbytes 0.50). GGUF's are in
// quantize_gguf.cpp.
#pragma once
#include "quant.inl"
#include "quant_tables.inl"

/// The largest |x|; NaN if there is one.
static inline float largest_magnitude(const float* x, int64_t count) {
  Vec largest{};
  for_vectors(0, count, [&](auto at) {
    const Vec v = at.load(x), size = v < 0.0f ? -v : v;
    largest = (size > largest) | (size != size) ? size : largest;
  });
  float part[lanes], best = 0.0f;
  store(part, largest);
  for (const float size : part) best = size > best || size != size ? size : best;
  return best;
}

/// How many of the middles between neighbours of a sorted table lie below v: the place of the nearest number, the lower one of two.
template <int size>
struct Middles {
  float at[size - 1];

  template <class ValueOfPlace>
  explicit constexpr Middles(const ValueOfPlace& value) : at{} {
    for (int i = 0; i < size - 1; i++) at[i] = (value(i) + value(i + 1)) / 2.0f;
  }

  int below(float v) const {
    int count = 0;
    for (int half = size / 2; half > 0; half /= 2)
      if (at[count + half - 1] < v) count += half;
    return count;
  }
};

template <const Table4Bit& table>
struct Places4Bit {
  static constexpr Middles<16> middles{[](int place) { return table.value[table.by_size[place]]; }};
};

/// Writes the codes of a block and returns its largest magnitude.
template <const Table4Bit& table>
static float quantize_4bit(const float* x, uint8_t q[32]) {
  const float absmax = largest_magnitude(x, 64), inverse = 1.0f / (absmax > 1e-38f ? absmax : 1e-38f);
  int32_t place[64];
  for (int i = 0; i < 64; i += lanes) {
    const Vec v = load(x + i) * inverse;
    VecInt count{};
    for (const float middle : Places4Bit<table>::middles.at) count -= v > middle;
    memcpy(place + i, &count, sizeof count);
  }
  for (int i = 0; i < 32; i++) q[i] = uint8_t(table.by_size[place[2 * i]] << 4 | table.by_size[place[2 * i + 1]]);
  return absmax;
}

static constexpr Middles<256> dynamic_middles{[](int place) { return dynamic_map.value[place]; }};

/// bitsandbytes looks codes of the dynamic map up in a table of 65,536 steps over [-1, 1]: what counts is the step next to v.
static inline uint8_t dynamic_code_by_step(float v) {
  const float step = float(int32_t(unfused((v + 1.0f) * 0.5f * 65535.0f) + 0.5f));
  return uint8_t(dynamic_middles.below(-1.0f + 2.0f * step / 65535.0f));
}

/// Calls body(block, x, thread) for blocks of 64 numbers, with x in f32.
template <class Body>
static void for_blocks_of_64(const void* x, int x_type, int64_t blocks, const Body& body) {
  for_chunks(blocks, chunk_elements / 64, [=](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; block++) {
      float wide[64];
      expand(x_type, x, block * 64, wide, 64);
      body(block, wide);
    }
  });
}

template <const Table4Bit& table>
static void quantize_f32_blocks(const void* x, int x_type, Block4BitF32* y, int64_t count) {
  for_blocks_of_64(x, x_type, count / 64, [=](int64_t i, const float* wide) { y[i].absmax = quantize_4bit<table>(wide, y[i].q); });
}

/// Double quantization. The offset is the mean of all absmax, rounded once; PyTorch sums in f32, in an order that depends on its threads, and
/// may be off by a unit in the last place.
template <const Table4Bit& table>
static void quantize_super_blocks(const void* x, int x_type, SuperBlock4Bit* y, int64_t count) {
  const int64_t blocks = count / 64;
  float* absmax = static_cast<float*>(shared_scratch(0, size_t(blocks) * 4));
  for_blocks_of_64(x, x_type, blocks, [=](int64_t i, const float* wide) {
    absmax[i] = quantize_4bit<table>(wide, y[i / 256].blocks[i % 256].q);
  });
  double sum = 0;
  for (int64_t i = 0; i < blocks; i++) sum += double(absmax[i]);
  const float offset = float(sum / double(blocks));
  for_chunks(blocks, 256, [=](int64_t begin, int64_t end) {
    SuperBlock4Bit& super = y[begin / 256];
    for (int64_t i = begin; i < end; i++) absmax[i] -= offset;
    super.scale = largest_magnitude(absmax + begin, end - begin);
    super.offset = offset;
    const float inverse = 1.0f / super.scale;
    for (int64_t i = begin; i < end; i++)
      super.blocks[i - begin].absmax = super.scale > 0.0f ? dynamic_code_by_step(absmax[i] * inverse) : 0;
  });
}

static void quantize_gguf_blocks(const void* x, int x_type, void* y, int y_type, int64_t count) {
  for_chunks(count, chunk_elements, [=](int64_t begin, int64_t end) {
    constexpr int64_t step = 256; // whole blocks of every type
    for (int64_t i = begin; i < end; i += step) {
      const int64_t n = end - i < step ? end - i : step;
      float wide[step];
      expand(x_type, x, i, wide, n);
      quantize_gguf(y_type, wide, static_cast<char*>(y) + i / dtype_info[y_type].block * dtype_info[y_type].bytes, n);
    }
  });
}

static void quantize(const void* x, int x_type, void* y, int y_type, int64_t count) {
  switch (y_type) {
  case NF4: return quantize_super_blocks<nf4_table>(x, x_type, static_cast<SuperBlock4Bit*>(y), count);
  case FP4: return quantize_super_blocks<fp4_table>(x, x_type, static_cast<SuperBlock4Bit*>(y), count);
  case NF4_F32: return quantize_f32_blocks<nf4_table>(x, x_type, static_cast<Block4BitF32*>(y), count);
  case FP4_F32: return quantize_f32_blocks<fp4_table>(x, x_type, static_cast<Block4BitF32*>(y), count);
  default: return quantize_gguf_blocks(x, x_type, y, y_type, count);
  }
}

static constexpr QuantKernels quant_kernels = {expand, quantize};
