// Products with few lines on one side, both sides stored depth by depth, and a long depth: the weight gradients of LoRA (dA, dB). There are
// too few tiles to share out, so the depth is cut into chunks of fixed size; their partial results are added up in order, and the long side
// is read once, as it lies.
#pragma once
#include "gemm_pack.inl"

constexpr int64_t outer_chunk = 128;
constexpr int64_t outer_lines = 4 * tile_rows;

static bool is_outer_product(const Product& p) {
  return p.rows <= outer_lines && p.depth >= 2 * outer_chunk && !p.left.rows_are_lines && !p.right.rows_are_lines && p.left.type == F32 &&
         p.right.type == F32;
}

template <bool rounded>
static void multiply_outer(const Product& p) {
  constexpr Format format = rounded ? FORMAT_ROUNDED : FORMAT_F32;
  const int64_t chunks = ceil_div(p.depth, outer_chunk), size = p.rows * p.columns;
  float* partial = static_cast<float*>(shared_scratch(0, size_t(chunks * size) * 4));

  parallel(chunks, [&](int64_t chunk, int thread) {
    const int64_t depth0 = chunk * outer_chunk, depth = smaller(outer_chunk, p.depth - depth0);
    const int64_t left_size = round_up(p.rows, tile_rows) * outer_chunk;
    float* left = static_cast<float*>(scratch(thread, size_t(left_size + pack_chunk * outer_chunk) * 4));
    float* packed = left + left_size;
    pack<tile_rows, format>(p.left, 0, p.rows, depth0, depth, depth, reinterpret_cast<uint32_t*>(left));

    for (int64_t block = 0; block < p.columns; block += pack_chunk) {
      const int64_t end = smaller(block + pack_chunk, p.columns);
      const bool as_it_lies = !rounded && end % tile_columns == 0; // else the last tile would read beyond its row
      if (!as_it_lies) pack<tile_columns, format>(p.right, block, end - block, depth0, depth, depth, reinterpret_cast<uint32_t*>(packed));
      for (int64_t j = block; j < end; j += tile_columns) {
        const float* lying = static_cast<const float*>(p.right.data) + depth0 * p.right.stride + j;
        const float* right = as_it_lies ? lying : packed + (j - block) * depth;
        for (int64_t i = 0; i < p.rows; i += tile_rows) {
          const TileOutput c = {partial + chunk * size + i * p.columns + j, p.columns, 1, 1.0f, false};
          packed_tiles<MultiplyFloats>.by_rows[smaller(tile_rows, p.rows - i) - 1](
              depth, left + i * depth, right, as_it_lies ? p.right.stride : tile_columns, c, int(smaller(tile_columns, end - j)));
        }
      }
    }
  });

  parallel(p.rows, [&](int64_t i, int) {
    float* sum = partial + i * p.columns;
    for (int64_t chunk = 1; chunk < chunks; chunk++)
      for (int64_t j = 0; j < p.columns; j++) sum[j] += sum[chunk * size + j];
    for (int64_t j = 0; j < p.columns; j++) {
      float& at = p.out.at[i * p.out.row + j * p.out.column];
      at = p.out.accumulate ? at + p.out.scale * sum[j] : p.out.scale * sum[j];
    }
  });
}
