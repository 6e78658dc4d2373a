static void layer_norm(const float* x, const float* w, const float* b, float* y, float* mean, float* rstd, int64_t rows, int64_t cols,
                       float eps) {
  for_chunks(rows, chunk_rows(cols), [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row++) {
      const float* in = x + row * cols;
      float* out = y + row * cols;
      const float m = sum_row(cols, [=](auto at) { return at.load(in); }) / static_cast<float>(cols);
      const float squares = sum_row(cols, [=](auto at) { return (at.load(in) - m) * (at.load(in) - m); }, m);
      const float r = 1.0f / sqrtf(squares / static_cast<float>(cols) + eps);
      for_vectors(0, cols, [=](auto at) { at.store(out, (at.load(in) - m) * r * at.load(w) + at.load(b)); });
      mean[row] = m; // the gradient reads both
      rstd[row] = r;
    }
  });
}

// With x̂ = (x − mean) · rstd and g = dy · w:  dx = rstd · (g − mean(g) − x̂ · mean(g · x̂))
static void layer_norm_grad(const float* dy, const float* x, const float* w, const float* mean, const float* rstd, float* dx, int64_t rows,
                            int64_t cols, bool accumulate) {
  for_chunks(rows, chunk_rows(cols), [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row++) {
      const float* in = x + row * cols;
      const float* d = dy + row * cols;
      float* out = dx + row * cols;
      const float m = mean[row], r = rstd[row], share = 1.0f / static_cast<float>(cols);
      const float level = share * sum_row(cols, [=](auto at) { return at.load(d) * at.load(w); });
      const float pull = share * sum_row(cols, [=](auto at) { return at.load(d) * at.load(w) * ((at.load(in) - m) * r); });
      for_vectors(0, cols, [=](auto at) {
        const Vec value = r * (at.load(d) * at.load(w) - level - (at.load(in) - m) * r * pull);
        at.store(out, accumulate ? at.load(out) + value : value);
      });
    }
  });
}

static void layer_norm_weight_grad(const float* dy, const float* x, const float* mean, const float* rstd, float* dw, int64_t rows,
                                   int64_t cols, bool accumulate) {
  reduce_rows(dw, rows, cols, accumulate, [=](auto at, int64_t row) {
    return at.load(dy + row * cols) * ((at.load(x + row * cols) - mean[row]) * rstd[row]);
  });
}
