// Packing: a panel holds W lines of an operand, depth by depth, so that the tile kernel reads memory in one straight line:
// panel[d · W + i] = line i at depth d. Weights are expanded to f32 (or bf16) here, a few rows at a time, and nowhere else.
#pragma once
#include "gemm_tile.inl"
#include "quant.inl"

/// A factor of a product: `lines` (rows of the left factor, columns of the right one) by `depth`, the dimension that is summed over.
struct Operand {
  const void* data;
  int type;
  int64_t stride;      // elements of a stored row
  bool rows_are_lines; // a stored row is one line; otherwise it is one depth of all lines
};

/// A product c = left · right that is to be computed.
struct Product {
  Operand left, right;
  int64_t rows, columns, depth;
  TileOutput out;
};

/// What a panel is made of: f32; f32 rounded to bf16; or 32-bit units of two bf16, of depths 2d and 2d + 1.
enum Format { FORMAT_F32, FORMAT_ROUNDED, FORMAT_PAIRS };

constexpr int pack_chunk = 256; // elements of a row that are expanded at a time: whole blocks of every type

static constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
static constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static constexpr int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

/// The bits of the nearest bf16, ties to even, in the upper half; NaN stays NaN.
static inline uint32_t rounded_bits(float x) {
  const uint32_t u = bit_cast<uint32_t>(x);
  const uint32_t rounded = u + 0x7fff + (u >> 16 & 1);
  return ((u & 0x7fffffff) > 0x7f800000 ? u | 0x400000 : rounded) & 0xffff0000;
}

/// Part of a stored row as f32: where it lies if it is f32 already, otherwise in `buffer`.
template <bool rounded>
static inline const float* row_as_f32(const Operand& x, int64_t row, int64_t column, int64_t count, float* buffer) {
  const int64_t first = row * x.stride + column;
  if (x.type == F32 && !rounded) return static_cast<const float*>(x.data) + first;
  expand(x.type, x.data, first, buffer, count);
  if (rounded && x.type != BF16)
    for (int64_t i = 0; i < count; i++) buffer[i] = from_bits(rounded_bits(buffer[i]));
  return buffer;
}

static inline void round_to_bf16(const float* from, uint16_t* to, int64_t count) {
  int64_t i = 0;
#if defined(__AVX512BF16__)
  // Takes subnormal numbers for zero; so do the instructions that will multiply these.
  for (; i + 16 <= count; i += 16) {
    const __m256i rounded = bit_cast<__m256i>(_mm512_cvtneps_pbh(_mm512_loadu_ps(from + i)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), rounded);
  }
#endif
  for (; i < count; i++) to[i] = uint16_t(rounded_bits(from[i]) >> 16);
}

/// Part of a stored row as bf16, with a zero behind an odd count.
static inline const uint16_t* row_as_bf16(const Operand& x, int64_t row, int64_t column, int64_t count, uint16_t* buffer) {
  if (x.type == BF16 && count % 2 == 0) return static_cast<const uint16_t*>(x.data) + row * x.stride + column;
  float wide[pack_chunk];
  round_to_bf16(row_as_f32<false>(x, row, column, count, wide), buffer, count);
  buffer[count] = 0;
  return buffer;
}

typedef float Vec4 __attribute__((vector_size(16)));
typedef float UnalignedVec4 __attribute__((vector_size(16), aligned(1), may_alias));

#if defined(__clang__)
#define ATTUNE_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
typedef int32_t Vec4Int __attribute__((vector_size(16)));
#define ATTUNE_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Vec4Int{__VA_ARGS__})
#endif

static inline Vec4 load4(const char* p) { return *reinterpret_cast<const UnalignedVec4*>(p); }
static inline void store4(void* p, Vec4 v) { *reinterpret_cast<UnalignedVec4*>(p) = v; }

/// Units from `begin` on of four rows become columns: to[u · W + i] = from[i][begin + u].
template <int W>
static inline void transpose_four(const char* const from[4], int64_t begin, int64_t units, uint32_t* to) {
  const char *r0 = from[0] + begin * 4, *r1 = from[1] + begin * 4, *r2 = from[2] + begin * 4, *r3 = from[3] + begin * 4;
  int64_t u = 0;
  for (; u + 4 <= units; u += 4, to += 4 * W) {
    const Vec4 a = load4(r0 + u * 4), b = load4(r1 + u * 4), c = load4(r2 + u * 4), d = load4(r3 + u * 4);
    const Vec4 ab0 = ATTUNE_SHUFFLE(a, b, 0, 4, 1, 5), ab1 = ATTUNE_SHUFFLE(a, b, 2, 6, 3, 7);
    const Vec4 cd0 = ATTUNE_SHUFFLE(c, d, 0, 4, 1, 5), cd1 = ATTUNE_SHUFFLE(c, d, 2, 6, 3, 7);
    store4(to, ATTUNE_SHUFFLE(ab0, cd0, 0, 1, 4, 5));
    store4(to + W, ATTUNE_SHUFFLE(ab0, cd0, 2, 3, 6, 7));
    store4(to + 2 * W, ATTUNE_SHUFFLE(ab1, cd1, 0, 1, 4, 5));
    store4(to + 3 * W, ATTUNE_SHUFFLE(ab1, cd1, 2, 3, 6, 7));
  }
  for (; u < units; u++, to += W)
    for (int i = 0; i < 4; i++) memcpy(to + i, from[i] + (begin + u) * 4, 4);
}

/// Where a piece of a stored row lies in the format's units.
template <Format format>
static inline const char* row_units(const Operand& x, int64_t row, int64_t column, int64_t count, float* buffer) {
  if (format == FORMAT_PAIRS) return reinterpret_cast<const char*>(row_as_bf16(x, row, column, count, reinterpret_cast<uint16_t*>(buffer)));
  return reinterpret_cast<const char*>(row_as_f32<format == FORMAT_ROUNDED>(x, row, column, count, buffer));
}

constexpr int depth_per_unit(Format format) { return format == FORMAT_PAIRS ? 2 : 1; }

/// Lines that are stored rows: transposed four lines at a time, in pieces short enough for the panel's part to stay in L1. Where `lines` is
/// no multiple of four, the last four overlap.
template <int W, Format format>
static void pack_stored_lines(const Operand& x, int64_t line, int lines, int64_t depth, int64_t count, int64_t units, uint32_t* panel) {
  constexpr int per_unit = depth_per_unit(format);
  constexpr int64_t piece = 64;
  float buffer[W][pack_chunk + 2];
  if (lines < W || units * per_unit > count) memset(panel, 0, size_t(units) * W * 4);
  for (int64_t d = 0; d < count; d += pack_chunk, panel += pack_chunk / per_unit * W) {
    const int64_t part = smaller(pack_chunk, count - d), part_units = ceil_div(part, per_unit);
    const char* from[W];
    for (int i = 0; i < lines; i++) from[i] = row_units<format>(x, line + i, depth + d, part, buffer[i]);
    for (int64_t u = 0; u < part_units; u += piece) {
      const int64_t many = smaller(piece, part_units - u);
      if (lines < 4) {
        for (int64_t e = u; e < u + many; e++)
          for (int i = 0; i < lines; i++) memcpy(panel + e * W + i, from[i] + e * 4, 4);
        continue;
      }
      for (int i = 0; i < lines; i += 4) {
        const int first = i + 4 > lines ? lines - 4 : i;
        transpose_four<W>(from + first, u, many, panel + u * W + first);
      }
    }
  }
}

/// One depth of lines that lie side by side, in units: for pairs of bf16, two depths, the second of them zero behind the end.
template <Format format>
struct UnitRow {
  const float* units;
  float buffer[pack_chunk];

  UnitRow(const Operand& x, int64_t line, int64_t lines, int64_t depth, int64_t count, int64_t unit) {
    if constexpr (format == FORMAT_PAIRS) {
      uint16_t low_buffer[pack_chunk + 1], high_buffer[pack_chunk + 1] = {};
      const uint16_t *low = row_as_bf16(x, depth + 2 * unit, line, lines, low_buffer), *high = high_buffer;
      if (2 * unit + 1 < count) high = row_as_bf16(x, depth + 2 * unit + 1, line, lines, high_buffer);
      for (int64_t i = 0; i < lines; i++) buffer[i] = from_bits(low[i] | uint32_t(high[i]) << 16);
      units = buffer;
    } else {
      units = row_as_f32<format == FORMAT_ROUNDED>(x, depth + unit, line, lines, buffer);
    }
  }
};

/// Lines side by side in stored rows: a row is expanded once and dealt out to up to pack_chunk / W panels.
template <int W, Format format>
static void pack_stored_depths(const Operand& x, int64_t line, int64_t lines, int64_t depth, int64_t count, int64_t units,
                               uint32_t* panels) {
  for (int64_t u = 0; u < units; u++) {
    if (u * depth_per_unit(format) >= count) {
      for (int64_t i = 0; i < lines; i += W) memset(panels + i * units + u * W, 0, W * 4);
      continue;
    }
    const UnitRow<format> row(x, line, lines, depth, count, u);
    for (int64_t i = 0; i < lines; i += W) {
      uint32_t* to = panels + i * units + u * W;
      const int64_t valid = smaller(W, lines - i);
      if (valid == W) memcpy(to, row.units + i, W * 4); // of a known size: a few vectors
      else memcpy(to, row.units + i, size_t(valid) * 4);
      for (int64_t j = valid; j < W; j++) to[j] = 0;
    }
  }
}

/// Packs `lines` lines from `line` on, `count` deep from `depth` on, into panels of W · units: panel after panel, filled up with zeros.
template <int W, Format format>
static void pack(const Operand& x, int64_t line, int64_t lines, int64_t depth, int64_t count, int64_t units, uint32_t* panels) {
  if (x.rows_are_lines) {
    for (int64_t i = 0; i < lines; i += W)
      pack_stored_lines<W, format>(x, line + i, int(lines - i < W ? lines - i : W), depth, count, units, panels + i * units);
  } else {
    constexpr int group = pack_chunk / W * W;
    for (int64_t i = 0; i < lines; i += group)
      pack_stored_depths<W, format>(x, line + i, lines - i < group ? lines - i : group, depth, count, units, panels + i * units);
  }
}
