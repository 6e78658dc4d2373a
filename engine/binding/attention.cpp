#include <algorithm>

#include "../kernel_table.h"
#include "bindings.h"

namespace attune {

static AttentionShape read_shape(const Call& call, int index) {
  AttentionShape shape;
  shape.q_rows = call.size(index, "shape", "qRows");
  shape.k_rows = call.size(index, "shape", "kRows");
  shape.heads = call.size(index, "shape", "heads");
  shape.kv_heads = call.size(index, "shape", "kvHeads");
  shape.head_dim = call.size(index, "shape", "headDim");
  shape.scale = static_cast<float>(call.number(index, "shape", "scale"));
  shape.causal = call.flag(index, "shape", "causal");
  shape.window = call.size(index, "shape", "window");
  shape.dropout = call.number(index, "shape", "dropout");
  shape.seed = call.seed(index, "shape", "seed");
  if (!(shape.dropout >= 0 && shape.dropout < 1))
    call.refuse(Refused::Range, "shape: dropout must be at least 0 and less than 1, got " + std::to_string(shape.dropout));
  if (shape.heads < 1 || shape.kv_heads < 1 || shape.head_dim < 1 || shape.heads % shape.kv_heads != 0)
    call.refuse(Refused::Range, "shape: heads must be a multiple of kvHeads, and headDim at least 1, got heads " + std::to_string(shape.heads) +
                                    ", kvHeads " + std::to_string(shape.kv_heads) + ", headDim " + std::to_string(shape.head_dim));
  return shape;
}

static bool overlap(std::vector<std::pair<int64_t, int64_t>> ranges) { // (first row, rows)
  std::sort(ranges.begin(), ranges.end());
  int64_t end = 0;
  for (const auto& [start, length] : ranges) {
    if (length > 0 && start < end) return true;
    end = std::max(end, start + length);
  }
  return false;
}

/// Segments lie inside their arrays and share no query rows. They may share keys, but where dk and dv are written only as a prefix: the parts of
/// their own keys are computed at the same time.
static std::vector<Segment> read_segments(const Call& call, int index, const AttentionShape& shape, bool gradient) {
  const std::vector<int32_t> numbers = call.int32s(index, "segments");
  if (numbers.size() % 6 != 0)
    call.refuse(Refused::Range, "segments must hold six numbers for each segment, got " + std::to_string(numbers.size()) + " numbers");
  const auto inside = [](int64_t start, int64_t length, int64_t rows) { return start >= 0 && length >= 0 && start + length <= rows; };
  std::vector<Segment> segments;
  std::vector<std::pair<int64_t, int64_t>> q_ranges, k_ranges;
  for (size_t i = 0; i < numbers.size(); i += 6) {
    const Segment s = {numbers[i], numbers[i + 1], numbers[i + 2], numbers[i + 3], numbers[i + 4], numbers[i + 5]};
    if (!inside(s.q_start, s.q_length, shape.q_rows) || !inside(s.k_start, s.k_length, shape.k_rows) ||
        !inside(s.prefix_start, s.prefix_length, shape.k_rows))
      call.refuse(Refused::Range, "segment " + std::to_string(i / 6) + " (qStart " + std::to_string(s.q_start) + ", qLength " +
                                      std::to_string(s.q_length) + ", kStart " + std::to_string(s.k_start) + ", kLength " +
                                      std::to_string(s.k_length) + ", prefixStart " + std::to_string(s.prefix_start) + ", prefixLength " +
                                      std::to_string(s.prefix_length) + ") does not lie inside " + std::to_string(shape.q_rows) +
                                      " rows of q and " + std::to_string(shape.k_rows) + " rows of k");
    segments.push_back(s);
    q_ranges.emplace_back(s.q_start, s.q_length);
    k_ranges.emplace_back(s.k_start, s.k_length);
  }
  if (overlap(std::move(q_ranges))) call.refuse(Refused::Range, "two segments share rows of q");
  if (gradient && overlap(std::move(k_ranges)))
    call.refuse(Refused::Range, "two segments share rows of k of their own, whose gradients would be lost");
  return segments;
}

napi_value bind_attention(Call& call) {
  const AttentionShape s = read_shape(call, 6);
  std::vector<Segment> segments = read_segments(call, 5, s, false);
  const float* q = call.floats(0, "q", {s.q_rows, s.heads, s.head_dim});
  const float* k = call.floats(1, "k", {s.k_rows, s.kv_heads, s.head_dim});
  const float* v = call.floats(2, "v", {s.k_rows, s.kv_heads, s.head_dim});
  float* o = call.output(3, "o", {s.q_rows, s.heads, s.head_dim});
  float* lse = call.output(4, "lse", {s.q_rows, s.heads});
  const int compute = call.compute(7);
  call.enqueue([=, segments = std::move(segments)] {
    kernels().attention.attention(q, k, v, o, lse, segments.data(), static_cast<int64_t>(segments.size()), s, compute);
  });
  return nullptr;
}

napi_value bind_attention_grad(Call& call) {
  const AttentionShape s = read_shape(call, 10);
  std::vector<Segment> segments = read_segments(call, 9, s, true);
  const float* q = call.floats(0, "q", {s.q_rows, s.heads, s.head_dim});
  const float* k = call.floats(1, "k", {s.k_rows, s.kv_heads, s.head_dim});
  const float* v = call.floats(2, "v", {s.k_rows, s.kv_heads, s.head_dim});
  const float* o = call.floats(3, "o", {s.q_rows, s.heads, s.head_dim});
  const float* lse = call.floats(4, "lse", {s.q_rows, s.heads});
  const float* dout = call.floats(5, "dout", {s.q_rows, s.heads, s.head_dim});
  float* dq = call.output(6, "dq", {s.q_rows, s.heads, s.head_dim});
  float* dk = call.output(7, "dk", {s.k_rows, s.kv_heads, s.head_dim});
  float* dv = call.output(8, "dv", {s.k_rows, s.kv_heads, s.head_dim});
  const int compute = call.compute(11);
  call.enqueue([=, segments = std::move(segments)] {
    kernels().attention.attention_grad(q, k, v, o, lse, dout, dq, dk, dv, segments.data(), static_cast<int64_t>(segments.size()), s, compute);
  });
  return nullptr;
}

} // namespace attune
