// Softmax attention that never holds T × T. Formulas and shapes: src/engine/kernels.ts.
#pragma once
#include <stdint.h>

namespace attune {

struct AttentionShape {
  int64_t q_rows, k_rows, heads, kv_heads, head_dim;
  float scale;
  bool causal;
  int64_t window; // 0: no window
  double dropout; // the chance of each probability to be dropped
  uint64_t seed;  // of which are
};

/// A sequence: its rows in q and in k, and the rows of k that come before its own and may be shared: its prefix.
struct Segment {
  int32_t q_start, q_length, k_start, k_length, prefix_start, prefix_length;
};

struct AttentionKernels {
  void (*attention)(const float* q, const float* k, const float* v, float* o, float* lse, const Segment* segments, int64_t segment_count,
                    const AttentionShape& shape, int compute);
  void (*attention_grad)(const float* q, const float* k, const float* v, const float* o, const float* lse, const float* dout, float* dq,
                         float* dk, float* dv, const Segment* segments, int64_t segment_count, const AttentionShape& shape, int compute);
};

} // namespace attune
