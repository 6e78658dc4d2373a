// Products with few lines on one side and rows along the depth on the other: y = x Wᵀ with a few rows of x (decoding), x Aᵀ and dy B with a
// few columns (LoRA). Every stored row of the long side is read once, expanded in cache if need be, and multiplied as it lies, so the work
// is bound by memory. An element of c is summed in the same order whatever the number of lines on either side.
#pragma once
#include "gemm_pack.inl"

constexpr int64_t few_lines = 32;

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int dot_columns = 4; // 16 sums and 8 numbers in 32 registers
#else
constexpr int dot_columns = 2; // 8 sums and 6 numbers in 16 registers
#endif
constexpr int dot_rows = 4;

/// How rows are made of an operand, loaded and multiplied: as f32, exact or rounded to bf16.
template <bool rounded>
struct F32Rows {
  using Number = float;
  using Numbers = Vec;
  static constexpr int64_t step = lanes; // numbers in a register

  static const float* row(const Operand& x, int64_t row, int64_t depth, float* buffer) {
    return row_as_f32<rounded>(x, row, 0, depth, buffer);
  }
  static Vec load(const float* p) { return ATTUNE_TIER::load(p); }
  /// The first `count` < step numbers, then zeros.
  static Vec load_part(const float* p, int64_t count) {
#if defined(__AVX512F__)
    return Vec(_mm512_maskz_loadu_ps(__mmask16((1u << count) - 1), p));
#else
    Vec v{};
    __builtin_memcpy(&v, p, size_t(count) * 4);
    return v;
#endif
  }
  static Vec multiply_add(Vec sum, Vec a, Vec b) { return sum + a * b; }
};

#if defined(__AVX512BF16__)
/// Rows of bf16, multiplied in pairs; where they are stored so, as they lie.
struct Bf16Rows {
  using Number = uint16_t;
  using Numbers = __m512bh;
  static constexpr int64_t step = 2 * lanes;

  static const uint16_t* row(const Operand& x, int64_t row, int64_t depth, uint16_t* buffer) {
    if (x.type == BF16) return static_cast<const uint16_t*>(x.data) + row * x.stride;
    for (int64_t d = 0; d < depth; d += pack_chunk) row_as_bf16(x, row, d, smaller(pack_chunk, depth - d), buffer + d);
    return buffer;
  }
  static __m512bh load(const uint16_t* p) { return bit_cast<__m512bh>(_mm512_loadu_si512(p)); }
  static __m512bh load_part(const uint16_t* p, int64_t count) {
    return bit_cast<__m512bh>(_mm512_maskz_loadu_epi16(__mmask32((uint64_t(1) << count) - 1), p));
  }
  static Vec multiply_add(Vec sum, __m512bh a, __m512bh b) { return Vec(_mm512_dpbf16_ps(__m512(sum), a, b)); }
};
#else
using Bf16Rows = F32Rows<true>;
#endif

/// The upper half of a vector is added to the lower one until four lanes are left.
static inline Vec4 fold(Vec v) {
#if ATTUNE_LANES == 16 // the form without a mask makes GCC warn of its own header
  const __m256 half = _mm512_maskz_extractf32x8_ps(0xff, v, 0) + _mm512_maskz_extractf32x8_ps(0xff, v, 1);
  return Vec4(_mm256_castps256_ps128(half) + _mm256_extractf128_ps(half, 1));
#elif ATTUNE_LANES == 8
  return Vec4(_mm256_castps256_ps128(v) + _mm256_extractf128_ps(v, 1));
#else
  return v;
#endif
}

/// The sums of the lanes of four vectors.
static inline Vec4 sums_of_lanes(const Vec (&v)[4]) {
  const Vec4 a = fold(v[0]), b = fold(v[1]), c = fold(v[2]), d = fold(v[3]);
  const Vec4 ab = ATTUNE_SHUFFLE(a, b, 0, 1, 4, 5) + ATTUNE_SHUFFLE(a, b, 2, 3, 6, 7);
  const Vec4 cd = ATTUNE_SHUFFLE(c, d, 0, 1, 4, 5) + ATTUNE_SHUFFLE(c, d, 2, 3, 6, 7);
  return ATTUNE_SHUFFLE(ab, cd, 0, 2, 4, 6) + ATTUNE_SHUFFLE(ab, cd, 1, 3, 5, 7);
}

/// c (i, j) = a (i) · b (j) for R rows of a and C rows of b, `stride` numbers apart.
template <class Rows, int R, int C>
static void dot_tile(int64_t depth, const typename Rows::Number* const* a, const typename Rows::Number* b, int64_t b_stride,
                     const TileOutput& c) {
  Vec sum[C][dot_rows] = {};
  const int64_t whole = depth / Rows::step * Rows::step;
  for (int64_t d = 0; d < whole; d += Rows::step) {
    typename Rows::Numbers row[R];
#pragma GCC unroll 8
    for (int i = 0; i < R; i++) row[i] = Rows::load(a[i] + d);
#pragma GCC unroll 8
    for (int j = 0; j < C; j++) {
      const typename Rows::Numbers column = Rows::load(b + j * b_stride + d);
#pragma GCC unroll 8
      for (int i = 0; i < R; i++) sum[j][i] = Rows::multiply_add(sum[j][i], row[i], column);
    }
  }
  if (whole < depth) {
#pragma GCC unroll 8
    for (int j = 0; j < C; j++) { // every loop over the sums is unrolled, or they would not stay in registers
      const typename Rows::Numbers column = Rows::load_part(b + j * b_stride + whole, depth - whole);
#pragma GCC unroll 8
      for (int i = 0; i < R; i++) sum[j][i] = Rows::multiply_add(sum[j][i], Rows::load_part(a[i] + whole, depth - whole), column);
    }
  }
#pragma GCC unroll 8
  for (int j = 0; j < C; j++) {
    const Vec4 dots = sums_of_lanes(sum[j]) * c.scale;
    float* at = c.at + j * c.column;
    if (R == dot_rows && c.row == 1) {
      store4(at, c.accumulate ? load4(reinterpret_cast<const char*>(at)) + dots : dots);
    } else {
#pragma GCC unroll 8
      for (int i = 0; i < R; i++) at[i * c.row] = c.accumulate ? at[i * c.row] + dots[i] : dots[i];
    }
  }
}

template <class Rows>
using DotTile = void (*)(int64_t depth, const typename Rows::Number* const* a, const typename Rows::Number* b, int64_t b_stride,
                         const TileOutput& c);

template <class Rows, int R>
static constexpr DotTile<Rows> dot_tiles_of(int columns) {
  return columns == 1   ? dot_tile<Rows, R, 1>
         : columns == 2 ? dot_tile<Rows, R, 2>
         : columns == 3 ? dot_tile<Rows, R, 3>
                        : dot_tile<Rows, R, dot_columns>;
}
template <class Rows = F32Rows<false>>
static constexpr DotTile<Rows> dot_tile_for(int rows, int columns) {
  return rows == 1   ? dot_tiles_of<Rows, 1>(columns)
         : rows == 2 ? dot_tiles_of<Rows, 2>(columns)
         : rows == 3 ? dot_tiles_of<Rows, 3>(columns)
                     : dot_tiles_of<Rows, 4>(columns);
}

/// Whether one side has few lines and the other rows along the depth. The short side may lie across the depth: it is turned while it is
/// copied.
static bool is_dot_product(const Product& p) {
  return p.rows <= few_lines && p.right.rows_are_lines && (p.left.rows_are_lines || p.left.type == F32);
}

/// The short side (p.left) as rows along the depth.
template <class Rows>
static void copy_lines(const Operand& x, int64_t lines, int64_t depth, typename Rows::Number* to) {
  using Number = typename Rows::Number;
  if (x.rows_are_lines) {
    for (int64_t i = 0; i < lines; i++, to += depth) {
      const Number* row = Rows::row(x, i, depth, to);
      if (row != to) memcpy(to, row, size_t(depth) * sizeof(Number));
    }
    return;
  }
  for (int64_t d = 0; d < depth; d++) {
    Number line[few_lines + 1];
    const Number* row = Rows::row(x, d, lines, line);
    for (int64_t i = 0; i < lines; i++) to[i * depth + d] = row[i];
  }
}

template <class Rows>
static void multiply_dot(const Product& p) {
  using Number = typename Rows::Number;
  Number* few = static_cast<Number*>(shared_scratch(0, size_t(p.rows * p.depth + 1) * sizeof(Number)));
  copy_lines<Rows>(p.left, p.rows, p.depth, few);

  // Hardware loses track of several rows at once, so they are asked for: those after the next, to L2, a part before each tile. And memory
  // is fastest in long stretches, so tasks are few.
  const int64_t asked_bytes = ceil_div(bytes_of(p.right.type, dot_rows * p.right.stride), ceil_div(p.rows, dot_columns));
  const int64_t task_columns = round_up(larger(dot_rows, smaller(64, p.columns / (thread_count() * 2))), dot_rows);
  parallel(ceil_div(p.columns, task_columns), [&](int64_t task, int thread) {
    Number* buffer = static_cast<Number*>(scratch(thread, size_t(dot_rows * p.depth + 1) * sizeof(Number)));
    const int64_t end = smaller(p.columns, (task + 1) * task_columns);
    for (int64_t j = task * task_columns; j < end; j += dot_rows) {
      const int many = int(smaller(dot_rows, end - j));
      const char* ahead = static_cast<const char*>(p.right.data) + bytes_of(p.right.type, (j + 2 * dot_rows) * p.right.stride);
      const Number* rows[dot_rows];
      for (int i = 0; i < many; i++) rows[i] = Rows::row(p.right, j + i, p.depth, buffer + i * p.depth);
      for (int64_t i = 0; i < p.rows; i += dot_columns) {
        for (const char* to = ahead + asked_bytes; ahead < to; ahead += 64) __builtin_prefetch(ahead, 0, 2);
        const TileOutput c = {p.out.at + i * p.out.row + j * p.out.column, p.out.column, p.out.row, p.out.scale, p.out.accumulate};
        dot_tile_for<Rows>(many, int(smaller(dot_columns, p.rows - i)))(p.depth, rows, few + i * p.depth, p.depth, c);
      }
    }
  });
}
