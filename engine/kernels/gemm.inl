// Matrix products: c (i, j) = scale · Σ over depth of left (i, d) · right (d, j), blocked and packed after Goto & van de Geijn 2008 and
// BLIS.
//
// Right panels of a block of columns stay in a core's L2 while left panels pass by, each through L1; blocks of depth are added up in c, in
// order. A tile of c is computed whole by one task, so no result depends on the number of threads. Three products are too narrow for this
// and are bound by memory: few lines on one side with rows along the depth (dot products, gemm_dot.inl); few lines on one side with the
// depth across the rows (gemm_outer.inl). The test for these looks at shapes only.
#pragma once
#include "gemm_bf16.inl"
#include "gemm_dot.inl"
#include "gemm_outer.inl"
#include "gemm_pack.inl"
#include "gemm_tile.inl"

constexpr int64_t depth_block = 512;
constexpr int64_t row_block = 4096;               // rows of packed left factor held at a time
constexpr int64_t column_block = 2048;            // columns of packed right factor held at a time
constexpr int64_t panel_bytes_in_l2 = 256 * 1024; // right panels of one task

/// How panels are made and multiplied: by f32 instructions, on exact or rounded numbers. gemm_bf16.inl has the others.
template <Format format>
struct F32Panels {
  static constexpr int rows = tile_rows, columns = tile_columns;
  static constexpr bool rounded = format == FORMAT_ROUNDED;
  using DotRows = F32Rows<rounded>;

  static int64_t units(int64_t depth) { return depth; }
  static void begin_task() {}
  static void end_task() {}

  static void pack_left(const Operand& x, int64_t line, int64_t lines, int64_t depth, int64_t count, uint32_t* to) {
    pack<rows, format>(x, line, lines, depth, count, count, to);
  }
  static void pack_right(const Operand& x, int64_t line, int64_t lines, int64_t depth, int64_t count, uint32_t* to) {
    pack<columns, format>(x, line, lines, depth, count, count, to);
  }
  static void multiply(int64_t units, const uint32_t* left, const uint32_t* right, const TileOutput& c, int valid_rows, int valid_columns) {
    packed_tiles<MultiplyFloats>.by_rows[valid_rows - 1](units, reinterpret_cast<const float*>(left), reinterpret_cast<const float*>(right),
                                                         columns, c, valid_columns);
  }

  static constexpr int64_t multiplications = tile_rows * tile_columns; // of a round
  static void multiply_registers(int64_t rounds) {
    Vec sum[2 * tile_rows] = {}; // as many as a tile has: enough to hide an instruction's latency
    const Vec x = broadcast(0.5f);
    for (int64_t round = 0; round < rounds; round++) {
#pragma GCC unroll 32
      for (Vec& s : sum) {
        s += s * x;
        asm volatile("" : ATTUNE_IN_VECTOR_REGISTER(s)); // or the compiler would find a shorter way
      }
    }
  }
};

#if defined(__AMX_BF16__)
using Bf16Panels = AmxPanels<HardwareTiles>;
#elif defined(__AVX512BF16__)
using Bf16Panels = PairPanels;
#else
using Bf16Panels = F32Panels<FORMAT_ROUNDED>;
#endif

/// A block of depth: as even as whole blocks of both factors allow.
static int64_t even_depth_block(const Product& p) {
  const int64_t parts = ceil_div(p.depth, depth_block + depth_block / 4);
  return round_up(ceil_div(p.depth, parts), larger(32, larger(dtype_info[p.left.type].block, dtype_info[p.right.type].block)));
}

template <class Panels>
static void multiply_packed(const Product& p) {
  // Panels are packed in groups that begin at whole blocks of every type.
  constexpr int64_t left_group = Panels::rows * 4, right_group = larger(pack_chunk, Panels::columns);
  const int64_t depth_step = even_depth_block(p);
  const int64_t units_step = Panels::units(depth_step);
  const int64_t row_step = smaller(row_block / Panels::rows * Panels::rows, round_up(p.rows, Panels::rows));
  const int64_t column_step = smaller(column_block, round_up(p.columns, right_group));
  uint32_t* left = static_cast<uint32_t*>(shared_scratch(0, size_t(row_step * units_step) * 4));
  uint32_t* right = static_cast<uint32_t*>(shared_scratch(1, size_t(column_step * units_step) * 4));

  for (int64_t row0 = 0; row0 < p.rows; row0 += row_step) {
    const int64_t rows = smaller(row_step, p.rows - row0);
    for (int64_t depth0 = 0; depth0 < p.depth; depth0 += depth_step) {
      const int64_t depth = smaller(depth_step, p.depth - depth0);
      const int64_t units = Panels::units(depth);
      for (int64_t column0 = 0; column0 < p.columns; column0 += column_step) {
        const int64_t columns = smaller(column_step, p.columns - column0);

        const int64_t left_groups = column0 == 0 ? ceil_div(rows, left_group) : 0;
        const int64_t right_groups = ceil_div(columns, right_group);
        parallel(left_groups + right_groups, [&](int64_t task, int) {
          if (task < right_groups) {
            const int64_t i = task * right_group;
            Panels::pack_right(p.right, column0 + i, smaller(right_group, columns - i), depth0, depth, right + i * units);
          } else {
            const int64_t i = (task - right_groups) * left_group;
            Panels::pack_left(p.left, row0 + i, smaller(left_group, rows - i), depth0, depth, left + i * units);
          }
        });

        // Cut into tasks so that right panels fit L2 and every thread gets several.
        const int64_t task_columns = smaller(round_up(columns, Panels::columns),
                                             larger(Panels::columns, panel_bytes_in_l2 / (units * 4) / Panels::columns * Panels::columns));
        const int64_t across = ceil_div(columns, task_columns);
        const int64_t wanted = ceil_div(thread_count() * 4, across);
        const int64_t task_rows = Panels::rows * larger(1, smaller(16, ceil_div(rows, Panels::rows) / wanted));
        const int64_t down = ceil_div(rows, task_rows);
        parallel(across * down, [&](int64_t task, int) {
          const int64_t j0 = task / down * task_columns, j1 = smaller(columns, j0 + task_columns);
          const int64_t i0 = task % down * task_rows, i1 = smaller(rows, i0 + task_rows);
          Panels::begin_task();
          for (int64_t i = i0; i < i1; i += Panels::rows)
            for (int64_t j = j0; j < j1; j += Panels::columns) {
              TileOutput c = p.out;
              c.at += (row0 + i) * c.row + (column0 + j) * c.column;
              c.accumulate |= depth0 > 0;
              Panels::multiply(units, left + i * units, right + j * units, c, int(smaller(Panels::rows, i1 - i)),
                               int(smaller(Panels::columns, j1 - j)));
            }
          Panels::end_task();
        });
      }
    }
  }
}

/// Rows become columns: fewer numbers of a tile are wasted if the shorter side lies on the tile's shorter side.
static Product transposed(const Product& p) {
  Product t = p;
  t.left = p.right, t.right = p.left;
  t.rows = p.columns, t.columns = p.rows;
  t.out.row = p.out.column, t.out.column = p.out.row;
  return t;
}

/// A sum of nothing.
static void clear(const Product& p) {
  if (p.out.accumulate) return;
  for (int64_t i = 0; i < p.rows; i++)
    for (int64_t j = 0; j < p.columns; j++) p.out.at[i * p.out.row + j * p.out.column] = 0.0f;
}

template <class Panels>
static void multiply_on(const Product& p) {
  if (is_dot_product(p)) multiply_dot<typename Panels::DotRows>(p);
  else if (is_outer_product(p)) multiply_outer<Panels::rounded>(p);
  else multiply_packed<Panels>(p);
}

static void multiply(const Product& given, int compute) {
  if (given.depth == 0) return clear(given);
  const Product p = given.columns < given.rows && given.columns <= few_lines ? transposed(given) : given;
  switch (compute) {
  case COMPUTE_F32: return multiply_on<F32Panels<FORMAT_F32>>(p);
  case COMPUTE_BF16: return multiply_on<Bf16Panels>(p);
  case COMPUTE_EMULATED_AMX: return multiply_on<AmxPanels<EmulatedTiles>>(p);
  }
}

static void matmul(const float* x, const void* w, int w_type, float* y, int64_t m, int64_t n, int64_t k, float scale, bool accumulate,
                   int compute) {
  multiply({{x, F32, k, true}, {w, w_type, k, true}, m, n, k, {y, n, 1, scale, accumulate}}, compute);
}

static void matmul_input_grad(const float* dy, const void* w, int w_type, float* dx, int64_t m, int64_t n, int64_t k, float scale,
                              bool accumulate, int compute) {
  multiply({{dy, F32, n, true}, {w, w_type, k, false}, m, k, n, {dx, k, 1, scale, accumulate}}, compute);
}

static void matmul_weight_grad(const float* dy, const float* x, float* dw, int64_t m, int64_t n, int64_t k, float scale, bool accumulate,
                               int compute) {
  multiply({{dy, F32, n, false}, {x, F32, k, false}, n, k, m, {dw, k, 1, scale, accumulate}}, compute);
}

template <class Panels>
static double limit_of(int64_t rounds) {
  parallel(thread_count(), [=](int64_t, int) {
    Panels::begin_task();
    Panels::multiply_registers(rounds);
    Panels::end_task();
  });
  return 2.0 * Panels::multiplications * static_cast<double>(rounds) * thread_count();
}

static double limit(int64_t rounds, int compute) {
  return compute == COMPUTE_F32 ? limit_of<F32Panels<FORMAT_F32>>(rounds) : limit_of<Bf16Panels>(rounds);
}

static constexpr GemmKernels gemm_kernels = {matmul, matmul_input_grad, matmul_weight_grad, limit};
