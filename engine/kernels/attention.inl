// Softmax attention over tiles of queries × keys, after FlashAttention-2 (Dao 2023, arXiv:2307.08691) with grouped key/value heads: scores
// of one tile at a time stand in scratch. All products run on the register tiles of gemm_tile.inl. What a query may see is one range of
// keys, so masks are ranges too: products skip what no row of a register tile sees, and the rest of a score row is set to zero probability.
// The keys of a segment are those of its prefix and its own, which lie in two places: each is tiled for itself.
#pragma once
#include "gemm_dot.inl"
#include "philox.inl"

constexpr int key_tile = 96;   // a multiple of every tier's tile_rows and tile_columns
constexpr int query_tile = 96; // rows of scores at a time, in the backward pass; the forward pass splits them among the heads of a group

/// For a left factor that is a score tile (rows of queries), and for one that is a score tile turned (rows of keys).
template <class Step>
static constexpr TileKernels<Step, key_tile, 1> score_tiles;
template <class Step>
static constexpr TileKernels<Step, 1, key_tile> turned_score_tiles;

/// What a tile of P and dS is as a factor: rows of queries, and turned: rows of keys, whose depths are queries.
struct ScoreFactors {
  const float *p_turned, *ds, *ds_turned;
};

/// How products are computed. Depths of a factor are counted in units of 32 bits: here an f32 each.
struct FloatProducts {
  using Step = MultiplyFloats;
  static constexpr Format format = FORMAT_F32;
  static constexpr int per_unit = 1;

  static void round_row(float*, int64_t, int64_t) {}
  static ScoreFactors factors(float* p, float* ds, float*, int64_t, int64_t) { return {p, ds, ds}; }
};

// Intel's cores, which have AMX, multiply pairs of bf16 no faster than floats outside of its tiles, and rounding costs more on top: in f32 forward takes
// 0.72, backward 0.65 of the time. AMD's Zen 4 multiplies them twice as fast.
#if defined(__AVX512BF16__) && !defined(__AMX_BF16__)
/// Operands are rounded to bf16, two depths to a unit; sums, scores and probabilities are f32.
struct PairProducts {
  using Step = MultiplyPairs;
  static constexpr Format format = FORMAT_PAIRS;
  static constexpr int per_unit = 2;

  struct Halves {
    __m256i low, high;
  };
  static __m256i* halves(float* row, int64_t j) { return reinterpret_cast<__m256i*>(row + j / 2); }

  /// Elements [begin, end) of a row become bf16 in place; element j then is the j-th half of a unit.
  static void round_row(float* row, int64_t begin, int64_t end) {
    for (int64_t j = begin / lanes * lanes; j < end; j += lanes)
      _mm256_storeu_si256(halves(row, j), bit_cast<__m256i>(_mm512_cvtneps_pbh(_mm512_loadu_ps(row + j))));
  }

  /// P turned takes the place of P, and dS in bf16 that of dS; `spare` becomes dS turned.
  static ScoreFactors factors(float* p, float* ds, float* spare, int64_t queries, int64_t keys) {
    __m512i deal; // a and b, one behind the other, become pairs (a, b)
    for (int i = 0; i < 32; i++) reinterpret_cast<uint16_t*>(&deal)[i] = uint16_t(i / 2 + i % 2 * 16);
    for (int64_t i = 0; i < queries; i += 2) {
      const bool whole = i + 1 < queries;
      float *p0 = p + i * key_tile, *ds0 = ds + i * key_tile, *p1 = p0 + key_tile, *ds1 = ds0 + key_tile;
      for (int64_t j = 0; j < keys; j += lanes) {
        const __m512 zero = _mm512_setzero_ps();
        const __m512i both_p = bit_cast<__m512i>(_mm512_cvtne2ps_pbh(whole ? _mm512_loadu_ps(p1 + j) : zero, _mm512_loadu_ps(p0 + j)));
        const __m512i both_ds = bit_cast<__m512i>(_mm512_cvtne2ps_pbh(whole ? _mm512_loadu_ps(ds1 + j) : zero, _mm512_loadu_ps(ds0 + j)));
        _mm512_storeu_si512(p + i / 2 * key_tile + j, _mm512_permutexvar_epi16(deal, both_p));
        _mm512_storeu_si512(spare + i / 2 * key_tile + j, _mm512_permutexvar_epi16(deal, both_ds));
        const auto own = bit_cast<Halves>(both_ds);
        _mm256_storeu_si256(halves(ds0, j), own.low);
        if (whole) _mm256_storeu_si256(halves(ds1, j), own.high);
      }
    }
    return {p, ds, spare};
  }
};
using Bf16Products = PairProducts;
#else
using Bf16Products = FloatProducts; // rounding would only cost time
#endif

template <class Products>
static constexpr int64_t units(int64_t depth) {
  return ceil_div(depth, Products::per_unit);
}

/// Keys of a segment that lie in one place, and its queries. Keys are counted from the first of them.
struct Stretch {
  int64_t q_start, q_length, k_start, k_length;
  int64_t to_end; // how many keys the segment has from the first of these to its last
  int64_t place;  // of the first of these among the words of dropout
};

static inline Stretch prefix_of(const Segment& s) {
  return {s.q_start, s.q_length, s.prefix_start, s.prefix_length, int64_t(s.prefix_length) + s.k_length, 0};
}

static inline Stretch own_keys(const Segment& s) {
  return {s.q_start, s.q_length, s.k_start, s.k_length, s.k_length, round_up(s.prefix_length, 64)}; // groups of words are not cut
}

struct KeyRange {
  int64_t begin, end;
};

static inline KeyRange visible_keys(const AttentionShape& shape, const Stretch& s, int64_t query) {
  const int64_t last = shape.causal ? query + s.to_end - s.q_length + 1 : s.to_end;
  const int64_t end = larger(0, smaller(s.k_length, last));
  return {shape.window > 0 ? smaller(end, larger(0, last - shape.window)) : 0, end};
}

/// What queries [first, last) see between them, limited to the keys [begin, end) and counted from `begin`; {0, 0} if nothing.
static inline KeyRange visible_keys(const AttentionShape& shape, const Stretch& s, int64_t first, int64_t last, int64_t begin,
                                    int64_t end) {
  const int64_t from = larger(begin, visible_keys(shape, s, first).begin), to = smaller(end, visible_keys(shape, s, last - 1).end);
  return from < to ? KeyRange{from - begin, to - begin} : KeyRange{0, 0};
}

/// The queries among [first, last) that see any of the keys [begin, end), counted from `first`. Ranges move up with the query, so these
/// adjoin.
static inline KeyRange seeing_queries(const AttentionShape& shape, const Stretch& s, int64_t begin, int64_t end, int64_t first,
                                      int64_t last) {
  while (first < last && visible_keys(shape, s, last - 1).begin >= end) last--;
  int64_t from = first;
  while (from < last && visible_keys(shape, s, from).end <= begin) from++;
  return {from - first, last - first};
}

/// Rows of one head: those of `all` (rows, heads, headDim) as an operand whose lines are rows, or whose depths are.
static inline Operand head_rows(const float* all, int64_t heads, int64_t head, int64_t head_dim, bool rows_are_lines) {
  return {all + head * head_dim, F32, heads * head_dim, rows_are_lines};
}

template <class Products, int W>
static inline void pack_panels(const Operand& x, int64_t line, int64_t lines, int64_t depth, int64_t count, float* panels) {
  pack<W, Products::format>(x, line, lines, depth, count, units<Products>(count), reinterpret_cast<uint32_t*>(panels));
}

/// The units that hold a range of depths.
struct UnitRange {
  int64_t begin, count;
};

template <class Products>
static inline UnitRange units_of(KeyRange depths) {
  const int64_t begin = depths.begin / Products::per_unit;
  return {begin, units<Products>(depths.end) - begin};
}

/// A tile of scores (rows, key_tile) = scale · left · rightᵀ for panels packed `depth` deep; only where register tiles see anything.
template <class Products>
static void score_tile(const AttentionShape& shape, const Stretch& s, const float* left, const float* right, int64_t depth, float scale,
                       int64_t query, int64_t queries, int64_t key, int64_t keys, float* scores) {
  const int64_t deep = units<Products>(depth);
  for (int64_t i = 0; i < queries; i += tile_rows) {
    const int rows = int(smaller(tile_rows, queries - i));
    const KeyRange seen = visible_keys(shape, s, query + i, query + i + rows, key, key + keys);
    for (int64_t j = seen.begin / tile_columns * tile_columns; j < seen.end; j += tile_columns)
      packed_tiles<typename Products::Step>.by_rows[rows - 1](deep, left + i * deep, right + j * deep, tile_columns,
                                                              {scores + i * key_tile + j, key_tile, 1, scale, false}, tile_columns);
  }
}

// Forward.

struct AttentionTask {
  int32_t segment, kv_head, query, queries;
};

constexpr int few_rows = 2 * dot_rows;

/// Scores of a few rows by dot products with keys as they lie: packing the keys would cost more than it saves.
static void score_few(const float* const* rows, int count, const float* k, int64_t k_stride, int64_t depth, float scale, int64_t keys,
                      float* scores) {
  for (int i = 0; i < count; i += dot_rows)
    for (int64_t j = 0; j < keys; j += dot_columns)
      dot_tile_for(int(smaller(dot_rows, count - i)), int(smaller(dot_columns, keys - j)))(
          depth, rows + i, k + j * k_stride, k_stride, {scores + i * key_tile + j, key_tile, 1, scale, false});
}

/// What dropout multiplies the probabilities of one row of q and head with, for the places key + [begin, end): 0 or 1 / (1 − p).
/// The bounds are whole vectors. The words are those of the row and the key's place, so that backward draws them again in its own order.
static void draw_mask(const AttentionShape& shape, int64_t row, int64_t key, int64_t begin, int64_t end, float* mask) {
  const Keeping keep(shape.dropout);
  uint32_t words[4][16];
  int64_t group = -1;
  for (int64_t j = begin; j < end; j += lanes) {
    const int64_t at = key + j;
    if (at / 64 != group) philox_group(shape.seed, static_cast<uint64_t>(row) << 26 | static_cast<uint64_t>(group = at / 64), words);
    VecUint word;
    memcpy(&word, &words[0][0] + at % 64, sizeof word);
    store(mask + j, word >= keep.threshold ? broadcast(keep.scale) : Vec{});
  }
}

static void drop_row(const AttentionShape& shape, int64_t row, int64_t key, KeyRange seen, float* probabilities) {
  alignas(64) float mask[key_tile];
  const int64_t begin = seen.begin / lanes * lanes, end = round_up(seen.end, lanes);
  draw_mask(shape, row, key, begin, end, mask);
  for (int64_t j = begin; j < end; j += lanes) store(probabilities + j, load(probabilities + j) * load(mask + j));
}

struct RunningSoftmax {
  float max, sum;
};

/// Scores of a row become probabilities (before division by their sum); what was summed up under a smaller maximum is scaled down.
static inline void soften_row(float* scores, KeyRange seen, RunningSoftmax& row, float* o, int64_t width) {
  const int64_t begin = seen.begin / lanes * lanes, end = round_up(seen.end, lanes);
  for (int64_t j = begin; j < seen.begin; j++) scores[j] = -INFINITY;
  for (int64_t j = seen.end; j < end; j++) scores[j] = -INFINITY;
  Vec most = broadcast(row.max);
  for (int64_t j = begin; j < end; j += lanes) {
    const Vec x = load(scores + j);
    most = x > most ? x : most;
  }
  const float max = max_lanes(most);
  if (max > row.max) {
    const Vec shrink = exp(broadcast(row.max - max)); // 0 for the first keys
    row.sum *= shrink[0];
    row.max = max;
    for (int64_t j = 0; j < width; j += lanes) store(o + j, load(o + j) * shrink);
  }
  Vec sum{};
  for (int64_t j = begin; j < end; j += lanes) {
    const Vec p = exp(load(scores + j) - max);
    store(scores + j, p);
    sum += p;
  }
  row.sum += sum_lanes(sum);
}

template <class Products>
static void attend(const float* q, const float* k, const float* v, float* o, float* lse, const Segment& segment, const AttentionShape& shape,
                   const AttentionTask& task, int thread) {
  const int64_t D = shape.head_dim, group = shape.heads / shape.kv_heads;
  const int64_t width = round_up(D, tile_columns);
  const int64_t kv_stride = shape.kv_heads * D, q_row = segment.q_start + task.query, head0 = task.kv_head * group;
  const bool few = group * task.queries <= few_rows, v_as_it_lies = Products::per_unit == 1 && D % tile_columns == 0;
  // Rows of scores: head by head. Where they are packed, each head's rows begin with a panel.
  const int64_t slots = few ? task.queries : round_up(task.queries, tile_rows), rows = group * slots;

  float* memory = static_cast<float*>(scratch(thread, size_t(rows * (D + key_tile + width) + 2 * key_tile * width + rows * 2 + 64) * 4));
  float* left = memory;
  float* scores = left + rows * D;
  float* sums = scores + rows * key_tile;
  float* keys_packed = sums + rows * width;
  float* values_packed = keys_packed + key_tile * width;
  RunningSoftmax* softmax = reinterpret_cast<RunningSoftmax*>(values_packed + key_tile * width);
  const float* row_at[few_rows];

  memset(sums, 0, size_t(rows * width) * 4);
  for (int64_t r = 0; r < rows; r++) softmax[r] = {-INFINITY, 0.0f};
  for (int64_t h = 0; h < group; h++) {
    if (few)
      for (int64_t i = 0; i < task.queries; i++) row_at[h * slots + i] = q + ((q_row + i) * shape.heads + head0 + h) * D;
    else
      pack_panels<Products, tile_rows>(head_rows(q, shape.heads, head0 + h, D, true), q_row, task.queries, 0, D,
                                       left + h * slots * units<Products>(D));
  }

  const Stretch stretches[] = {prefix_of(segment), own_keys(segment)};
  for (const Stretch& s : stretches) {
    const KeyRange all = visible_keys(shape, s, task.query, task.query + task.queries, 0, s.k_length);
    for (int64_t key = all.begin / key_tile * key_tile; key < all.end; key += key_tile) {
      const int64_t keys = smaller(key_tile, s.k_length - key), k_row = s.k_start + key;
      if (!few) pack_panels<Products, tile_columns>(head_rows(k, shape.kv_heads, task.kv_head, D, true), k_row, keys, 0, D, keys_packed);
      if (!v_as_it_lies)
        pack_panels<Products, tile_columns>(head_rows(v, shape.kv_heads, task.kv_head, D, false), 0, D, k_row, keys, values_packed);
      if (few) score_few(row_at, int(rows), k + k_row * kv_stride + task.kv_head * D, kv_stride, D, shape.scale, keys, scores);
      for (int64_t h = 0; h < group && !few; h++)
        score_tile<Products>(shape, s, left + h * slots * units<Products>(D), keys_packed, D, shape.scale, task.query, task.queries, key,
                             keys, scores + h * slots * key_tile);

      for (int64_t slot = 0; slot < rows; slot += tile_rows) {
        // A tile of few rows has all queries of several heads, otherwise it has consecutive queries of one.
        const int64_t i = few ? 0 : slot % slots;
        const int tile = int(smaller(tile_rows, few ? rows - slot : task.queries - i));
        const KeyRange seen = visible_keys(shape, s, task.query + i, task.query + (few ? task.queries : i + tile), key, key + keys);
        if (seen.begin >= seen.end) continue;
        const UnitRange depths = units_of<Products>(seen);
        const int64_t begin = depths.begin * Products::per_unit, end = begin + depths.count * Products::per_unit;
        for (int r = 0; r < tile; r++) {
          const int64_t query = task.query + (slot + r) % slots;
          const KeyRange own = visible_keys(shape, s, query, query + 1, key, key + keys);
          float* row = scores + (slot + r) * key_tile;
          if (own.begin < own.end) soften_row(row, own, softmax[slot + r], sums + (slot + r) * width, width);
          if (own.begin < own.end && shape.dropout > 0)
            drop_row(shape, (s.q_start + query) * shape.heads + head0 + (slot + r) / slots, s.place + key, own, row);
          for (int64_t j = begin; j < own.begin; j++) row[j] = 0.0f;
          for (int64_t j = larger(own.end, begin); j < end; j++) row[j] = 0.0f;
          Products::round_row(row, begin, end);
        }
        for (int64_t d = 0; d < width; d += tile_columns) {
          const float* right = v_as_it_lies ? v + (k_row + depths.begin) * kv_stride + task.kv_head * D + d
                                            : values_packed + d * units<Products>(keys) + depths.begin * tile_columns;
          score_tiles<typename Products::Step>.by_rows[tile - 1](depths.count, scores + slot * key_tile + depths.begin, right,
                                                                 v_as_it_lies ? kv_stride : tile_columns,
                                                                 {sums + slot * width + d, width, 1, 1.0f, true}, tile_columns);
        }
      }
    }
  }

  for (int64_t h = 0; h < group; h++)
    for (int64_t i = 0; i < task.queries; i++) {
      const RunningSoftmax& row = softmax[h * slots + i];
      const int64_t at = (q_row + i) * shape.heads + head0 + h;
      const float* sum = sums + (h * slots + i) * width;
      const float inverse = row.sum == 0.0f ? 0.0f : 1.0f / row.sum; // a query that sees no key gets 0
      for (int64_t d = 0; d < D; d++) o[at * D + d] = sum[d] * inverse;
      lse[at] = row.sum == 0.0f ? -INFINITY : row.max + logf(row.sum);
    }
}

/// Fills y, but for the rows of the segments where these leave none out.
static void fill_rows(float* y, float value, int64_t rows, int64_t columns, bool all_covered) {
  if (all_covered) return;
  parallel(ceil_div(rows, 64), [&](int64_t task, int) {
    float* row = y + task * 64 * columns;
    const int64_t count = smaller(64, rows - task * 64) * columns;
    for (int64_t i = 0; i < count; i++) row[i] = value;
  });
}

static void attention(const float* q, const float* k, const float* v, float* o, float* lse, const Segment* segments, int64_t segment_count,
                      const AttentionShape& shape, int compute) {
  int64_t covered = 0;
  for (int64_t i = 0; i < segment_count; i++) covered += segments[i].q_length;
  fill_rows(o, 0.0f, shape.q_rows, shape.heads * shape.head_dim, covered == shape.q_rows);
  fill_rows(lse, -INFINITY, shape.q_rows, shape.heads, covered == shape.q_rows);

  const int64_t group = shape.heads / shape.kv_heads;
  const int64_t step = larger(tile_rows, larger(48, smaller(query_tile, 144 / group / tile_rows * tile_rows)));
  int64_t tiles = 0;
  for (int64_t i = 0; i < segment_count; i++) tiles += ceil_div(segments[i].q_length, step);
  AttentionTask* tasks = static_cast<AttentionTask*>(shared_scratch(2, size_t(tiles * shape.kv_heads) * sizeof(AttentionTask)));
  AttentionTask* next = tasks;
  for (int64_t i = 0; i < segment_count; i++) {
    const int64_t length = segments[i].q_length;
    for (int64_t t = ceil_div(length, step) - 1; t >= 0; t--) // the longest first
      for (int64_t h = 0; h < shape.kv_heads; h++)
        *next++ = {int32_t(i), int32_t(h), int32_t(t * step), int32_t(smaller(step, length - t * step))};
  }
  parallel(next - tasks, [&](int64_t i, int thread) {
    const bool rounded = compute != COMPUTE_F32 && group * tasks[i].queries > few_rows;
    (rounded ? attend<Bf16Products> : attend<FloatProducts>)(q, k, v, o, lse, segments[tasks[i].segment], shape, tasks[i], thread);
  });
}

// Backward. With P = exp(S − lse), dP = dO Vᵀ and dS = P ∘ (dP − rowsum(dO ∘ O)):
//   dV = Pᵀ dO     dK = scale · dSᵀ Q     dQ = scale · dS K
// With dropout, whose mask M holds 0 or 1 / (1 − p): dS = P ∘ (M ∘ dP − rowsum(dO ∘ O)), and M ∘ P takes the place of P in dV.
// A segment is cut into chunks of queries and of keys. A task takes one chunk of each for one key/value head and adds to the gradients of
// both; tasks run in rounds in which no chunk occurs twice, so sums have one order and need neither locks nor a second pass. The chunks of a
// prefix meet those of several segments, in rounds after these segments' own.

struct AttentionGradTask {
  int32_t segment, kv_head, query, key;
  bool in_prefix; // where the keys are
};

struct AttentionGradients {
  const float *q, *k, *v, *dout, *lse, *delta;
  float *dq, *dk, *dv;
};

/// Adds rows of width `width` to the rows of one head.
static void add_rows(const float* from, int64_t width, float* to, int64_t to_stride, int64_t rows, int64_t columns) {
  for (int64_t i = 0; i < rows; i++)
    for (int64_t d = 0; d < columns; d++) to[i * to_stride + d] += from[i * width + d];
}

/// Scores and dP of a tile become P and scale · dS. The first row of scores is `row` among the rows of q by heads.
static void score_gradients(const AttentionShape& shape, const Stretch& s, int64_t query, int64_t queries, int64_t key, int64_t keys,
                            const float* lse, const float* delta, int64_t stat_stride, int64_t row, float* p, float* ds) {
  const int64_t used = round_up(keys, lanes);
  alignas(64) float mask[key_tile];
  for (int64_t i = 0; i < queries; i++, p += key_tile, ds += key_tile) {
    const KeyRange seen = visible_keys(shape, s, query + i, query + i + 1, key, key + keys);
    const int64_t begin = seen.begin / lanes * lanes, end = round_up(seen.end, lanes);
    const float row_lse = lse[i * stat_stride], row_delta = delta[i * stat_stride];
    if (shape.dropout > 0 && begin < end) {
      draw_mask(shape, row + i * shape.heads, s.place + key, begin, end, mask);
      for (int64_t j = begin; j < end; j += lanes) {
        const Vec probability = exp(load(p + j) - row_lse), kept = load(mask + j);
        store(ds + j, probability * (load(ds + j) * kept - row_delta) * shape.scale);
        store(p + j, probability * kept);
      }
    } else
      for (int64_t j = begin; j < end; j += lanes) {
        const Vec probability = exp(load(p + j) - row_lse);
        store(ds + j, probability * (load(ds + j) - row_delta) * shape.scale);
        store(p + j, probability);
      }
    for (int64_t j = 0; j < seen.begin; j++) p[j] = ds[j] = 0.0f;
    for (int64_t j = seen.end; j < used; j++) p[j] = ds[j] = 0.0f;
  }
}

template <class Products>
static void attend_grad(const AttentionGradients& g, const Stretch& s, const AttentionShape& shape, const AttentionGradTask& task,
                        int64_t chunk, int thread) {
  const int64_t D = shape.head_dim, group = shape.heads / shape.kv_heads;
  const int64_t width = round_up(D, tile_columns), kv_stride = shape.kv_heads * D, q_stride = shape.heads * D;
  const int64_t keys = smaller(chunk, s.k_length - task.key), queries = smaller(chunk, s.q_length - task.query);
  const int64_t k_row = s.k_start + task.key, key_slots = round_up(keys, key_tile);

  const int64_t panel = query_tile * width, scores = query_tile * key_tile;
  float* memory = static_cast<float*>(scratch(thread, size_t(5 * key_slots * width + 5 * panel + 3 * scores) * 4));
  float* k_lines = memory; // right factor of S = Q Kᵀ
  float* v_lines = k_lines + key_slots * width;
  float* k_depths = v_lines + key_slots * width; // right factor of dQ = dS K
  float* dk = k_depths + key_slots * width;
  float* dv = dk + key_slots * width;
  float* q_lines = dv + key_slots * width;
  float* dout_lines = q_lines + panel;
  float* q_depths = dout_lines + panel;
  float* dout_depths = q_depths + panel;
  float* dq = dout_depths + panel;
  float* p = dq + panel;
  float* ds = p + scores;
  float* spare = ds + scores;

  memset(dk, 0, size_t(2 * key_slots * width) * 4);
  for (int64_t j = 0; j < keys; j += key_tile) {
    const int64_t many = smaller(key_tile, keys - j), lines_at = j * units<Products>(D);
    const Operand k_rows = head_rows(g.k, shape.kv_heads, task.kv_head, D, true), k_columns = {k_rows.data, F32, k_rows.stride, false};
    const Operand v_rows = head_rows(g.v, shape.kv_heads, task.kv_head, D, true);
    pack_panels<Products, tile_columns>(k_rows, k_row + j, many, 0, D, k_lines + lines_at);
    pack_panels<Products, tile_columns>(v_rows, k_row + j, many, 0, D, v_lines + lines_at);
    pack_panels<Products, tile_columns>(k_columns, 0, D, k_row + j, many, k_depths + j * width);
  }

  for (int64_t i = 0; i < queries; i += query_tile) {
    const int64_t rows = smaller(query_tile, queries - i), query = task.query + i, q_row = s.q_start + query;
    const KeyRange all = visible_keys(shape, s, query, query + rows, task.key, task.key + keys);
    if (all.begin >= all.end) continue;
    for (int64_t h = task.kv_head * group; h < (task.kv_head + 1) * group; h++) {
      pack_panels<Products, tile_rows>(head_rows(g.q, shape.heads, h, D, true), q_row, rows, 0, D, q_lines);
      pack_panels<Products, tile_rows>(head_rows(g.dout, shape.heads, h, D, true), q_row, rows, 0, D, dout_lines);
      pack_panels<Products, tile_columns>(head_rows(g.q, shape.heads, h, D, false), 0, D, q_row, rows, q_depths);
      pack_panels<Products, tile_columns>(head_rows(g.dout, shape.heads, h, D, false), 0, D, q_row, rows, dout_depths);
      memset(dq, 0, size_t(rows * width) * 4);

      for (int64_t j = all.begin / key_tile * key_tile; j < all.end; j += key_tile) {
        const int64_t many = smaller(key_tile, keys - j), key = task.key + j;
        score_tile<Products>(shape, s, q_lines, k_lines + j * units<Products>(D), D, shape.scale, query, rows, key, many, p);
        score_tile<Products>(shape, s, dout_lines, v_lines + j * units<Products>(D), D, 1.0f, query, rows, key, many, ds);
        score_gradients(shape, s, query, rows, key, many, g.lse + q_row * shape.heads + h, g.delta + q_row * shape.heads + h, shape.heads,
                        q_row * shape.heads + h, p, ds);
        const ScoreFactors factors = Products::factors(p, ds, spare, rows, round_up(many, lanes));

        for (int64_t c = 0; c < many; c += tile_rows) { // rows of dK and dV
          const int tile = int(smaller(tile_rows, many - c));
          const KeyRange seeing = seeing_queries(shape, s, key + c, key + c + tile, query, query + rows);
          if (seeing.begin >= seeing.end) continue;
          const UnitRange depths = units_of<Products>(seeing);
          const MultiplyTile multiply_turned = turned_score_tiles<typename Products::Step>.by_rows[tile - 1];
          for (int64_t d = 0; d < width; d += tile_columns) {
            const int64_t left = depths.begin * key_tile + c, right = d * units<Products>(rows) + depths.begin * tile_columns;
            const int64_t to = (j + c) * width + d;
            multiply_turned(depths.count, factors.p_turned + left, dout_depths + right, tile_columns, {dv + to, width, 1, 1.0f, true},
                            tile_columns);
            multiply_turned(depths.count, factors.ds_turned + left, q_depths + right, tile_columns, {dk + to, width, 1, 1.0f, true},
                            tile_columns);
          }
        }
        for (int64_t r = 0; r < rows; r += tile_rows) { // rows of dQ
          const int tile = int(smaller(tile_rows, rows - r));
          const KeyRange seen = visible_keys(shape, s, query + r, query + r + tile, key, key + many);
          if (seen.begin >= seen.end) continue;
          const UnitRange depths = units_of<Products>(seen);
          for (int64_t d = 0; d < width; d += tile_columns)
            score_tiles<typename Products::Step>.by_rows[tile - 1](
                depths.count, factors.ds + r * key_tile + depths.begin,
                k_depths + j * width + d * units<Products>(many) + depths.begin * tile_columns, tile_columns,
                {dq + r * width + d, width, 1, 1.0f, true}, tile_columns);
        }
      }
      add_rows(dq, width, g.dq + q_row * q_stride + h * D, q_stride, rows, D);
    }
  }
  add_rows(dk, width, g.dk + k_row * kv_stride + task.kv_head * D, kv_stride, keys, D);
  add_rows(dv, width, g.dv + k_row * kv_stride + task.kv_head * D, kv_stride, keys, D);
}

/// In how many rounds each chunk of a segment's queries meets each of its own keys.
static int64_t rounds_of(const Segment& s, int64_t chunk) { return larger(ceil_div(s.q_length, chunk), ceil_div(s.k_length, chunk)); }

static bool chunks_meet(const AttentionShape& shape, const Stretch& s, int64_t query, int64_t key, int64_t chunk) {
  const KeyRange seen = visible_keys(shape, s, query, smaller(query + chunk, s.q_length), key, smaller(key + chunk, s.k_length));
  return seen.begin < seen.end;
}

/// A chunk of queries meets one of its prefix in some round.
struct PrefixMeeting {
  int32_t segment, query, key, round;
};

/// Each meeting comes in the first round in which neither its queries nor any of its keys' rows take part in another. Returns how many there are.
static int64_t plan_meetings(const Segment* segments, int64_t segment_count, const AttentionShape& shape, int64_t chunk,
                             PrefixMeeting* meetings) {
  int32_t* free_at = static_cast<int32_t*>(shared_scratch(1, size_t(shape.k_rows) * 4)); // of each row of k, the first round
  memset(free_at, 0, size_t(shape.k_rows) * 4);
  for (int64_t i = 0; i < segment_count; i++)
    for (int64_t row = 0; row < segments[i].k_length; row++)
      free_at[segments[i].k_start + row] = int32_t(rounds_of(segments[i], chunk));
  PrefixMeeting* next = meetings;
  for (int64_t i = 0; i < segment_count; i++) {
    const Stretch s = prefix_of(segments[i]);
    for (int64_t query = 0; query < s.q_length; query += chunk) {
      int64_t round = rounds_of(segments[i], chunk);
      for (int64_t key = 0; key < s.k_length; key += chunk) {
        if (!chunks_meet(shape, s, query, key, chunk)) continue;
        int32_t* rows = free_at + s.k_start + key;
        const int64_t count = smaller(chunk, s.k_length - key);
        for (int64_t r = 0; r < count; r++) round = larger(round, rows[r]);
        *next++ = {int32_t(i), int32_t(query), int32_t(key), int32_t(round)};
        round++;
        for (int64_t r = 0; r < count; r++) rows[r] = int32_t(round);
      }
    }
  }
  return next - meetings;
}

static void attention_grad(const float* q, const float* k, const float* v, const float* o, const float* lse, const float* dout, float* dq,
                           float* dk, float* dv, const Segment* segments, int64_t segment_count, const AttentionShape& shape, int compute) {
  const int64_t D = shape.head_dim;
  fill_rows(dq, 0.0f, shape.q_rows, shape.heads * D, false);
  fill_rows(dk, 0.0f, shape.k_rows, shape.kv_heads * D, false);
  fill_rows(dv, 0.0f, shape.k_rows, shape.kv_heads * D, false);

  float* delta = static_cast<float*>(shared_scratch(3, size_t(shape.q_rows * shape.heads) * 4));
  parallel(ceil_div(shape.q_rows, 16), [&](int64_t task, int) {
    const int64_t end = smaller(shape.q_rows, (task + 1) * 16) * shape.heads;
    for (int64_t i = task * 16 * shape.heads; i < end; i++) {
      Vec sum{};
      for_vectors(0, D, [&](auto at) { sum += at.load(dout + i * D) * at.load(o + i * D); });
      delta[i] = sum_lanes(sum);
    }
  });

  const int64_t chunk = D <= 64 ? 288 : 192; // what a chunk of keys packs should fit L2
  int64_t rounds = 0, most = 0, most_meetings = 0;
  for (int64_t i = 0; i < segment_count; i++) {
    const int64_t queries = ceil_div(segments[i].q_length, chunk), keys = ceil_div(segments[i].k_length, chunk);
    rounds = larger(rounds, larger(queries, keys));
    most += smaller(queries, keys);
    most_meetings += queries * ceil_div(segments[i].prefix_length, chunk);
  }
  most += most_meetings;
  PrefixMeeting* meetings = static_cast<PrefixMeeting*>(shared_scratch(0, size_t(most_meetings) * sizeof(PrefixMeeting)));
  const int64_t meeting_count = most_meetings == 0 ? 0 : plan_meetings(segments, segment_count, shape, chunk, meetings);
  for (int64_t i = 0; i < meeting_count; i++) rounds = larger(rounds, meetings[i].round + 1);

  AttentionGradTask* tasks = static_cast<AttentionGradTask*>(shared_scratch(2, size_t(most * shape.kv_heads) * sizeof(AttentionGradTask)));
  const AttentionGradients gradients = {q, k, v, dout, lse, delta, dq, dk, dv};
  for (int64_t round = 0; round < rounds; round++) {
    AttentionGradTask* next = tasks;
    for (int64_t i = 0; i < segment_count; i++) {
      const Stretch s = own_keys(segments[i]);
      const int64_t own_rounds = rounds_of(segments[i], chunk);
      if (round >= own_rounds) continue;
      for (int64_t key = 0; key < s.k_length; key += chunk) {
        const int64_t query = (key / chunk + round) % own_rounds * chunk;
        if (query < s.q_length && chunks_meet(shape, s, query, key, chunk))
          for (int64_t h = 0; h < shape.kv_heads; h++) *next++ = {int32_t(i), int32_t(h), int32_t(query), int32_t(key), false};
      }
    }
    for (int64_t i = 0; i < meeting_count; i++)
      if (meetings[i].round == round)
        for (int64_t h = 0; h < shape.kv_heads; h++)
          *next++ = {meetings[i].segment, int32_t(h), meetings[i].query, meetings[i].key, true};
    parallel(next - tasks, [&](int64_t i, int thread) {
      const Segment& segment = segments[tasks[i].segment];
      (compute == COMPUTE_F32 ? attend_grad<FloatProducts> : attend_grad<Bf16Products>)(
          gradients, tasks[i].in_prefix ? prefix_of(segment) : own_keys(segment), shape, tasks[i], chunk, thread);
    });
  }
}

static constexpr AttentionKernels attention_kernels = {attention, attention_grad};
