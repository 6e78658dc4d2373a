static void fill(float* y, float value, int64_t count) {
  map(count, [=](auto at) { at.store(y, broadcast(value)); });
}

static void copy(const float* x, float* y, int64_t count) {
  for_chunks(count, chunk_elements, [=](int64_t begin, int64_t end) {
    memmove(y + begin, x + begin, static_cast<size_t>(end - begin) * sizeof(float));
  });
}

static void add(const float* a, const float* b, float* y, int64_t count) {
  map(count, [=](auto at) { at.store(y, at.load(a) + at.load(b)); });
}

static void mul(const float* a, const float* b, float* y, int64_t count, bool accumulate) {
  if (accumulate) map(count, [=](auto at) { at.store(y, at.load(y) + at.load(a) * at.load(b)); });
  else map(count, [=](auto at) { at.store(y, at.load(a) * at.load(b)); });
}

static void scale(const float* x, float* y, float scale, int64_t count, bool accumulate) {
  if (accumulate) map(count, [=](auto at) { at.store(y, at.load(y) + scale * at.load(x)); });
  else map(count, [=](auto at) { at.store(y, scale * at.load(x)); });
}

static void add_bias(float* y, const float* bias, int64_t rows, int64_t cols) {
  for_chunks(rows, chunk_rows(cols), [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row++) {
      float* out = y + row * cols;
      for_vectors(0, cols, [=](auto at) { at.store(out, at.load(out) + at.load(bias)); });
    }
  });
}
