// Products with few lines on one side and rows along the depth on the other: y = x Wᵀ with a few rows of x (decoding), x Aᵀ and dy B with a
// few columns (LoRA). Every stored row of the long side is read once, expanded in cache if need be, and multiplied as it lies, so the work
// is bound by memory. An element of c is summed in the same order whatever the number of lines on either side.
#pragma once
#include "gemm_pack.inl"

constexpr int64_t few_lines = 32;
constexpr int64_t few_lines_bf16 = 12; // where there are bf16 instructions, packing for them soon pays

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int dot_columns = 4; // 16 sums and 8 numbers in 32 registers
#else
constexpr int dot_columns = 2; // 8 sums and 6 numbers in 16 registers
#endif
constexpr int dot_rows = 4;

/// The first `count` < lanes floats, then zeros.
static inline Vec load_part(const float* p, int64_t count) {
#if defined(__AVX512F__)
  return Vec(_mm512_maskz_loadu_ps(__mmask16((1u << count) - 1), p));
#else
  Vec v{};
  __builtin_memcpy(&v, p, size_t(count) * 4);
  return v;
#endif
}

/// The sum of `lanes` floats: halves are added to each other until one is left.
static inline float sum_of_lanes(const float* part) {
  const char* p = reinterpret_cast<const char*>(part);
#if ATTUNE_LANES == 16
  const Vec4 four = (load4(p) + load4(p + 32)) + (load4(p + 16) + load4(p + 48));
#elif ATTUNE_LANES == 8
  const Vec4 four = load4(p) + load4(p + 16);
#else
  const Vec4 four = load4(p);
#endif
  return (four[0] + four[2]) + (four[1] + four[3]);
}

/// c (i, j) = a (i) · b (j) for R rows of a and C rows of b, `stride` floats apart.
template <int R, int C>
static void dot_tile(int64_t depth, const float* const* a, const float* b, int64_t b_stride, const TileOutput& c) {
  Vec sum[R][C] = {};
  const int64_t whole = depth / lanes * lanes;
  for (int64_t d = 0; d < whole; d += lanes) {
    Vec row[R];
#pragma GCC unroll 8
    for (int i = 0; i < R; i++) row[i] = load(a[i] + d);
#pragma GCC unroll 8
    for (int j = 0; j < C; j++) {
      const Vec column = load(b + j * b_stride + d);
#pragma GCC unroll 8
      for (int i = 0; i < R; i++) sum[i][j] += row[i] * column;
    }
  }
  if (whole < depth) {
#pragma GCC unroll 8
    for (int j = 0; j < C; j++) { // every loop over the sums is unrolled, or they would not stay in registers
      const Vec column = load_part(b + j * b_stride + whole, depth - whole);
#pragma GCC unroll 8
      for (int i = 0; i < R; i++) sum[i][j] += load_part(a[i] + whole, depth - whole) * column;
    }
  }
  float part[R][C][lanes];
#pragma GCC unroll 8
  for (int i = 0; i < R; i++)
#pragma GCC unroll 8
    for (int j = 0; j < C; j++) store(part[i][j], sum[i][j]);
  for (int i = 0; i < R; i++)
    for (int j = 0; j < C; j++) {
      const float dot = sum_of_lanes(part[i][j]) * c.scale;
      float& at = c.at[i * c.row + j * c.column];
      at = c.accumulate ? at + dot : dot;
    }
}

using DotTile = void (*)(int64_t depth, const float* const* a, const float* b, int64_t b_stride, const TileOutput& c);

template <int R>
static constexpr DotTile dot_tiles_of(int columns) {
  return columns == 1 ? dot_tile<R, 1> : columns == 2 ? dot_tile<R, 2> : columns == 3 ? dot_tile<R, 3> : dot_tile<R, dot_columns>;
}
static constexpr DotTile dot_tile_for(int rows, int columns) {
  return rows == 1   ? dot_tiles_of<1>(columns)
         : rows == 2 ? dot_tiles_of<2>(columns)
         : rows == 3 ? dot_tiles_of<3>(columns)
                     : dot_tiles_of<4>(columns);
}

/// Whether one side has few lines and the other rows along the depth. The short side may lie across the depth: it is turned while it is
/// copied.
static bool is_dot_product(const Product& p, int64_t few) {
  return p.rows <= few && p.right.rows_are_lines && (p.left.rows_are_lines || p.left.type == F32);
}

/// The short side (p.left) as rows along the depth, in f32.
template <bool rounded>
static void copy_lines(const Operand& x, int64_t lines, int64_t depth, float* to) {
  if (x.rows_are_lines) {
    for (int64_t i = 0; i < lines; i++, to += depth) {
      const float* row = row_as_f32<rounded>(x, i, 0, depth, to);
      if (row != to) memcpy(to, row, size_t(depth) * 4);
    }
    return;
  }
  for (int64_t d = 0; d < depth; d++) {
    float line[few_lines];
    const float* row = row_as_f32<rounded>(x, d, 0, lines, line);
    for (int64_t i = 0; i < lines; i++) to[i * depth + d] = row[i];
  }
}

template <bool rounded>
static void multiply_dot(const Product& p) {
  float* few = static_cast<float*>(shared_scratch(0, size_t(p.rows * p.depth) * 4));
  copy_lines<rounded>(p.left, p.rows, p.depth, few);

  const int64_t task_columns = round_up(larger(dot_rows, smaller(64, p.columns / (thread_count() * 8))), dot_rows);
  parallel(ceil_div(p.columns, task_columns), [&](int64_t task, int thread) {
    float* buffer = static_cast<float*>(scratch(thread, size_t(dot_rows * p.depth) * 4));
    const int64_t end = smaller(p.columns, (task + 1) * task_columns);
    for (int64_t j = task * task_columns; j < end; j += dot_rows) {
      const int many = int(smaller(dot_rows, end - j));
      const float* rows[dot_rows];
      for (int i = 0; i < many; i++) rows[i] = row_as_f32<rounded>(p.right, j + i, 0, p.depth, buffer + i * p.depth);
      for (int64_t i = 0; i < p.rows; i += dot_columns) {
        const TileOutput c = {p.out.at + i * p.out.row + j * p.out.column, p.out.column, p.out.row, p.out.scale, p.out.accumulate};
        dot_tile_for(many, int(smaller(dot_columns, p.rows - i)))(p.depth, rows, few + i * p.depth, p.depth, c);
      }
    }
  });
}
