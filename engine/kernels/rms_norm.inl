static void rms_norm(const float* x, const float* w, float* y, float* rstd, int64_t rows, int64_t cols, float eps,
                     float offset) {
  for_chunks(rows, chunk_rows(cols), [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row++) {
      const float* in = x + row * cols;
      float* out = y + row * cols;
      const float squares = sum_row(cols, [=](auto at) { return at.load(in) * at.load(in); });
      const float r = 1.0f / sqrtf(squares / static_cast<float>(cols) + eps);
      for_vectors(0, cols, [=](auto at) { at.store(out, at.load(in) * r * (at.load(w) + offset)); });
      rstd[row] = r; // the gradient reads it
    }
  });
}

// With g = dy · (w + offset):  dx = rstd · g − x · rstd³ · mean(g · x)
static void rms_norm_grad(const float* dy, const float* x, const float* w, const float* rstd, float* dx, int64_t rows, int64_t cols,
                          float offset, bool accumulate) {
  for_chunks(rows, chunk_rows(cols), [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row++) {
      const float* in = x + row * cols;
      const float* d = dy + row * cols;
      float* out = dx + row * cols;
      const float r = rstd[row];
      const float dot = sum_row(cols, [=](auto at) { return at.load(d) * (at.load(w) + offset) * at.load(in); });
      const float pull = r * r * r * dot / static_cast<float>(cols);
      for_vectors(0, cols, [=](auto at) {
        const Vec value = r * at.load(d) * (at.load(w) + offset) - pull * at.load(in);
        at.store(out, accumulate ? at.load(out) + value : value);
      });
    }
  });
}

static void rms_norm_weight_grad(const float* dy, const float* x, const float* rstd, float* dw, int64_t rows, int64_t cols, bool accumulate) {
  reduce_rows(dw, rows, cols, accumulate, [=](auto at, int64_t row) {
    return at.load(dy + row * cols) * at.load(x + row * cols) * rstd[row];
  });
}
