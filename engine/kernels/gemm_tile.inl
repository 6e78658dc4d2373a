// Register tiles: R rows by two vectors of columns stay in registers while the depth runs by.
#pragma once

// As many sums as the registers hold, with two for the right factor and one for the left.
#if defined(__AVX512F__)
constexpr int tile_rows = 12; // 32 registers
#elif defined(__aarch64__)
constexpr int tile_rows = 12;
#elif defined(__AVX2__)
constexpr int tile_rows = 6; // 16 registers
#else
constexpr int tile_rows = 6;
#endif
constexpr int tile_columns = 2 * lanes;

/// A tile of the output: element (i, j) is at[i · row + j · column], and its sum is multiplied by `scale` and stored or added.
struct TileOutput {
  float* at;
  int64_t row, column;
  float scale;
  bool accumulate;
};

template <int R>
static inline void write_tile(const Vec (&sum)[R][2], const TileOutput& c, int columns) {
  if (c.column == 1 && columns == tile_columns) {
    float* at = c.at;
    if (c.accumulate) {
#pragma GCC unroll 16
      for (int i = 0; i < R; i++, at += c.row) {
        store(at, load(at) + sum[i][0] * c.scale);
        store(at + lanes, load(at + lanes) + sum[i][1] * c.scale);
      }
    } else {
#pragma GCC unroll 16
      for (int i = 0; i < R; i++, at += c.row) {
        store(at, sum[i][0] * c.scale);
        store(at + lanes, sum[i][1] * c.scale);
      }
    }
    return;
  }
  float edge[R][tile_columns];
#pragma GCC unroll 16
  for (int i = 0; i < R; i++) {
    store(edge[i], sum[i][0] * c.scale);
    store(edge[i] + lanes, sum[i][1] * c.scale);
  }
  for (int i = 0; i < R; i++)
    for (int j = 0; j < columns; j++) {
      float& at = c.at[i * c.row + j * c.column];
      at = c.accumulate ? at + edge[i][j] : edge[i][j];
    }
}

/// One step of the depth: a product of f32, or of two pairs of bf16 whose bits lie in the place of an f32.
struct MultiplyFloats {
  static Vec add(Vec sum, float a, Vec b) { return sum + a * b; }
};
#if defined(__AVX512BF16__)
struct MultiplyPairs {
  static Vec add(Vec sum, float a, Vec b) {
    return Vec(_mm512_dpbf16_ps(__m512(sum), bit_cast<__m512bh>(_mm512_set1_ps(a)), bit_cast<__m512bh>(b)));
  }
};
#endif

/// c = a · b with a (i, d) at a[i · a_row + d · a_depth] and b (d, j) at b[d · b_depth + j].
template <class Step, int R, int a_row, int a_depth>
static void multiply_tile(int64_t depth, const float* a, const float* b, int64_t b_depth, const TileOutput& c, int columns) {
  Vec sum[R][2] = {};
#pragma GCC unroll 16
  for (int i = 0; i < R; i++) { // its rows lie far apart; by the end of the sum they will be in cache
    __builtin_prefetch(c.at + i * c.row, 1);
    __builtin_prefetch(c.at + i * c.row + lanes, 1);
  }
  for (int64_t d = 0; d < depth; d++, a += a_depth, b += b_depth) {
    const Vec b0 = load(b), b1 = load(b + lanes);
#pragma GCC unroll 16
    for (int i = 0; i < R; i++) {
      sum[i][0] = Step::add(sum[i][0], a[i * a_row], b0);
      sum[i][1] = Step::add(sum[i][1], a[i * a_row], b1);
    }
  }
  write_tile<R>(sum, c, columns);
}

using MultiplyTile = void (*)(int64_t depth, const float* a, const float* b, int64_t b_depth, const TileOutput& c, int columns);

/// The tile kernels for 1 … tile_rows rows, by rows − 1.
template <class Step, int a_row, int a_depth>
struct TileKernels {
  MultiplyTile by_rows[tile_rows];
  template <int R = 1>
  constexpr void fill() {
    by_rows[R - 1] = multiply_tile<Step, R, a_row, a_depth>;
    if constexpr (R < tile_rows) fill<R + 1>();
  }
  constexpr TileKernels() : by_rows{} { fill(); }
};

/// For a left factor that is packed in panels of tile_rows.
template <class Step>
static constexpr TileKernels<Step, 1, tile_rows> packed_tiles;
