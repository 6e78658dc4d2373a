static void copy_columns(const float* x, int64_t x_cols, float* y, int64_t y_cols, int64_t rows, int64_t cols, bool accumulate) {
  for_chunks(rows, chunk_rows(cols), [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row++) {
      const float* in = x + row * x_cols;
      float* out = y + row * y_cols;
      for_vectors(0, cols, [=](auto at) { at.store(out, accumulate ? at.load(out) + at.load(in) : at.load(in)); });
    }
  });
}
