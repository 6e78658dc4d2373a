/// Σ over [0, count) of term(at), in four running sums.
template <class Term>
static inline float sum_row(int64_t count, const Term& term) {
  Vec sums[4] = {};
  int64_t i = 0;
  for (; i + 4 * lanes <= count; i += 4 * lanes)
    for (int64_t j = 0; j < 4; j++) sums[j] += term(WholeVector{i + j * lanes});
  for_vectors(i, count, [&](auto at) { sums[0] += term(at); });
  return sum_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

static void rms_norm(const float* x, const float* w, float* y, float* rstd, int64_t rows, int64_t cols, float eps) {
  for_chunks(rows, chunk_rows(cols), [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row++) {
      const float* in = x + row * cols;
      float* out = y + row * cols;
      const float squares = sum_row(cols, [=](auto at) { return at.load(in) * at.load(in); });
      const float r = 1.0f / sqrtf(squares / static_cast<float>(cols) + eps);
      for_vectors(0, cols, [=](auto at) { at.store(out, at.load(in) * r * at.load(w)); });
      rstd[row] = r; // the gradient reads it
    }
  });
}

// dx = rstd · dy · w − x · rstd³ · mean(dy · w · x)
static void rms_norm_grad(const float* dy, const float* x, const float* w, const float* rstd, float* dx, int64_t rows, int64_t cols,
                          bool accumulate) {
  for_chunks(rows, chunk_rows(cols), [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row++) {
      const float* in = x + row * cols;
      const float* d = dy + row * cols;
      float* out = dx + row * cols;
      const float r = rstd[row];
      const float dot = sum_row(cols, [=](auto at) { return at.load(d) * at.load(w) * at.load(in); });
      const float pull = r * r * r * dot / static_cast<float>(cols);
      for_vectors(0, cols, [=](auto at) {
        const Vec value = r * at.load(d) * at.load(w) - pull * at.load(in);
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
