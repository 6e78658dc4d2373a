static void embedding(const int32_t* ids, const void* w, int w_type, float* y, int64_t rows, int64_t cols) {
  for_chunks(rows, chunk_rows(cols), [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row++) expand(w_type, w, ids[row] * cols, y + row * cols, cols);
  });
}

// A task owns columns, not rows: rows that go to one place then add up in their order.
static void scatter_rows(const float* x, const int32_t* indices, float* y, int64_t rows, int64_t cols, bool accumulate) {
  for_chunks(cols, 64, [=](int64_t begin, int64_t end) {
    for (int64_t row = 0; row < rows; row++) {
      const float* in = x + row * cols;
      float* out = y + indices[row] * cols;
      for_vectors(begin, end, [=](auto at) { at.store(out, accumulate ? at.load(out) + at.load(in) : at.load(in)); });
    }
  });
}
