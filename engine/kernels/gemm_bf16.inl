// Panels of bf16: operands are rounded to nearest even while they are packed, sums are f32. AVX512-BF16 multiplies pairs in vector
// registers, AMX in tiles; below these tiers the same rounding is followed by f32 arithmetic, so that "bf16" means one thing everywhere up
// to the order of sums.
//
// How AMX is tested: few machines have it. All of its path but five instructions (packing, blocking, edges) is also compiled over
// EmulatedTiles, which computes what Intel's manual says of these five, and the tests run that on every machine.
#pragma once
#include "gemm_dot.inl"
#include "gemm_pack.inl"

/// What `ldtilecfg` reads, laid out by Intel's manual: 64 bytes, here eight tiles of 16 rows of 64 bytes.
struct TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfig) == 64, "the instruction reads 64 bytes");
alignas(64) static constexpr TileConfig tile_config;

/// Left panels of 32 rows and right panels of 32 columns, multiplied in tiles of 16 × 16 with two tiles of each side at a time. A left
/// panel is cut into pieces of 32 depths, row by row; a right panel is pair-packed as for AVX512-BF16, which is AMX's VNNI layout.
template <class Tiles>
struct AmxPanels {
  static constexpr int rows = 32, columns = 32;
  static constexpr bool rounded = true;
  using DotRows = Bf16Rows;
  static constexpr int tile_units = 16; // pairs in a tile's row

  static int64_t units(int64_t depth) { return round_up(ceil_div(depth, 2), tile_units); }
  static void begin_task() { Tiles::configure(tile_config); }
  static void end_task() { Tiles::release(); }

  static void pack_right(const Operand& x, int64_t line, int64_t lines, int64_t depth, int64_t count, uint32_t* to) {
    pack<columns, FORMAT_PAIRS>(x, line, lines, depth, count, units(count), to);
  }

  static uint32_t* left_unit(uint32_t* panel, int64_t row, int64_t unit) {
    return panel + (unit / tile_units * rows + row) * tile_units + unit % tile_units;
  }

  static void pack_left(const Operand& x, int64_t line, int64_t lines, int64_t depth, int64_t count, uint32_t* to) {
    const int64_t panel_size = rows * units(count), used = ceil_div(count, 2);
    memset(to, 0, size_t(ceil_div(lines, rows) * panel_size) * 4);
    if (x.rows_are_lines) {
      uint16_t buffer[pack_chunk + 2];
      for (int64_t i = 0; i < lines; i++)
        for (int64_t d = 0; d < count; d += pack_chunk) {
          const int64_t part = smaller(pack_chunk, count - d);
          const uint16_t* from = row_as_bf16(x, line + i, depth + d, part, buffer);
          for (int64_t e = 0; e < part; e += 2 * tile_units)
            memcpy(left_unit(to + i / rows * panel_size, i % rows, (d + e) / 2), from + e,
                   size_t(smaller(2 * tile_units, (part - e + 1) / 2 * 2)) * 2);
        }
      return;
    }
    for (int64_t u = 0; u < used; u++)
      for (int64_t i0 = 0; i0 < lines; i0 += pack_chunk) {
        const int64_t part = smaller(pack_chunk, lines - i0);
        const UnitRow<FORMAT_PAIRS> from(x, line + i0, part, depth, count, u);
        for (int64_t i = 0; i < part; i++) memcpy(left_unit(to + (i0 + i) / rows * panel_size, (i0 + i) % rows, u), from.units + i, 4);
      }
  }

  static void multiply(int64_t units, const uint32_t* left, const uint32_t* right, const TileOutput& c, int valid_rows, int valid_columns) {
    Tiles t;
    t.template zero<0>(), t.template zero<1>(), t.template zero<2>(), t.template zero<3>();
    for (int64_t u = 0; u < units; u += tile_units, left += rows * tile_units, right += columns * tile_units) {
      t.template load<4>(left, tile_units * 4);
      t.template load<5>(left + 16 * tile_units, tile_units * 4);
      t.template load<6>(right, columns * 4);
      t.template load<7>(right + 16, columns * 4);
      t.template multiply_add<0, 4, 6>();
      t.template multiply_add<1, 4, 7>();
      t.template multiply_add<2, 5, 6>();
      t.template multiply_add<3, 5, 7>();
    }
    alignas(64) float sum[rows][columns];
    t.template store<0>(&sum[0][0], columns * 4);
    t.template store<1>(&sum[0][16], columns * 4);
    t.template store<2>(&sum[16][0], columns * 4);
    t.template store<3>(&sum[16][16], columns * 4);
    for (int i = 0; i < valid_rows; i++)
      for (int j = 0; j < valid_columns; j++) {
        float& at = c.at[i * c.row + j * c.column];
        at = c.accumulate ? at + sum[i][j] * c.scale : sum[i][j] * c.scale;
      }
  }

  static constexpr int64_t multiplications = 4 * 16 * 16 * 32; // of a round
  static void multiply_registers(int64_t rounds) {
    Tiles t;
    for (int64_t round = 0; round < rounds; round++) {
      t.template multiply_add<0, 4, 6>();
      t.template multiply_add<1, 4, 7>();
      t.template multiply_add<2, 5, 6>();
      t.template multiply_add<3, 5, 7>();
    }
  }
};

/// The tile instructions as the Intel Software Developer's Manual defines them, for tests: even and odd depths of a tile are summed apart
/// by fused multiplications, then added to each other and to c. Subnormal numbers count as zero, before and after each operation.
/// What is a fault of the processor is a trap here: a configuration that does not say just what the tiles below are, and tiles without one.
struct EmulatedTiles {
  uint32_t tile[8][16][16];

  static inline thread_local bool configured = false;
  static void fault_unless(bool right) {
    if (!right) __builtin_trap();
  }
  static void configure(const TileConfig& given) {
    const unsigned char* from = reinterpret_cast<const unsigned char*>(&given);
    asm volatile("" : "+r"(from)::"memory"); // from here on the bytes are what memory holds, not what the compiler knows
    for (int i = 0; i < 64; i++) {
      const int row_bytes = i >= 16 && i < 32 && i % 2 == 0 ? 64 : 0, rows = i >= 48 && i < 56 ? 16 : 0;
      fault_unless(from[i] == (i == 0 ? 1 : row_bytes + rows));
    }
    configured = true;
  }
  static void release() { configured = false; }
  template <int t>
  void zero() {
    fault_unless(configured);
    memset(tile[t], 0, sizeof tile[t]);
  }
  template <int t>
  void load(const void* from, int64_t stride) {
    fault_unless(configured);
    for (int i = 0; i < 16; i++) memcpy(tile[t][i], static_cast<const char*>(from) + i * stride, 64);
  }
  template <int t>
  void store(void* to, int64_t stride) const {
    fault_unless(configured);
    for (int i = 0; i < 16; i++) memcpy(static_cast<char*>(to) + i * stride, tile[t][i], 64);
  }
  static float flush(float x) { return x < 0x1p-126f && x > -0x1p-126f ? x * 0.0f : x; }
  template <int c, int a, int b>
  void multiply_add() {
    fault_unless(configured);
    for (int m = 0; m < 16; m++) {
      float even[16] = {}, odd[16] = {};
      for (int k = 0; k < 16; k++) {
        const uint32_t left = tile[a][m][k];
        for (int n = 0; n < 16; n++) {
          const uint32_t right = tile[b][k][n];
          even[n] = flush(fmaf(flush(from_bits(left << 16)), flush(from_bits(right << 16)), even[n]));
          odd[n] = flush(fmaf(flush(from_bits(left & 0xffff0000)), flush(from_bits(right & 0xffff0000)), odd[n]));
        }
      }
      for (int n = 0; n < 16; n++) tile[c][m][n] = bit_cast<uint32_t>(flush(flush(from_bits(tile[c][m][n])) + flush(even[n] + odd[n])));
    }
  }
};

#if defined(__AMX_BF16__)
/// Not by GCC's intrinsics: they paste the tile's number as text, which a template cannot give them; `_tile_loadconfig` of GCC 12 tells the
/// compiler of 8 of the 64 bytes it reads, and the others may never be stored; and its loads do not say that they read memory.
struct HardwareTiles {
  static void configure(const TileConfig& config) { asm volatile("ldtilecfg %0" ::"m"(config)); }
  static void release() { asm volatile("tilerelease"); }
  template <int t>
  void zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(t));
  }
  template <int t>
  void load(const void* from, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(t) : "memory");
  }
  template <int t>
  void store(void* to, int64_t stride) const {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(t) : "memory");
  }
  template <int c, int a, int b>
  void multiply_add() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(c), "i"(a), "i"(b));
  }
};
#endif

#if defined(__AVX512BF16__)
struct PairPanels {
  static constexpr int rows = tile_rows, columns = tile_columns;
  static constexpr bool rounded = true;
  using DotRows = Bf16Rows;

  static int64_t units(int64_t depth) { return ceil_div(depth, 2); }
  static void begin_task() {}
  static void end_task() {}

  static void pack_left(const Operand& x, int64_t line, int64_t lines, int64_t depth, int64_t count, uint32_t* to) {
    pack<rows, FORMAT_PAIRS>(x, line, lines, depth, count, units(count), to);
  }
  static void pack_right(const Operand& x, int64_t line, int64_t lines, int64_t depth, int64_t count, uint32_t* to) {
    pack<columns, FORMAT_PAIRS>(x, line, lines, depth, count, units(count), to);
  }
  static void multiply(int64_t units, const uint32_t* left, const uint32_t* right, const TileOutput& c, int valid_rows, int valid_columns) {
    packed_tiles<MultiplyPairs>.by_rows[valid_rows - 1](units, reinterpret_cast<const float*>(left), reinterpret_cast<const float*>(right),
                                                        columns, c, valid_columns);
  }

  static constexpr int64_t multiplications = 2 * tile_rows * tile_columns; // of a round
  static void multiply_registers(int64_t rounds) {
    Vec sum[2 * tile_rows] = {};
    const __m512bh x = bit_cast<__m512bh>(broadcast(0.5f));
    for (int64_t round = 0; round < rounds; round++) {
#pragma GCC unroll 32
      for (Vec& s : sum) {
        s = Vec(_mm512_dpbf16_ps(__m512(s), x, x));
        asm volatile("" : ATTUNE_IN_VECTOR_REGISTER(s));
      }
    }
  }
};
#endif
