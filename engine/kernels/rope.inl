// (a, b) → (a cos − b sin, b cos + a sin) for the features i and i + half of each head.
static void rope(const float* x, float* y, const float* table, const int32_t* positions, int64_t rows, int64_t heads, int64_t head_dim,
                 bool inverse) {
  const int64_t half = head_dim / 2;
  const float sign = inverse ? -1.0f : 1.0f;
  for_chunks(rows, chunk_rows(heads * head_dim), [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row++) {
      const float* cosines = table + positions[row] * head_dim;
      const float* sines = cosines + half;
      for (int64_t head = 0; head < heads; head++) {
        const float* in = x + (row * heads + head) * head_dim;
        float* out = y + (row * heads + head) * head_dim;
        for_vectors(0, half, [=](auto at) {
          const Vec a = at.load(in), b = at.load(in + half), c = at.load(cosines), s = sign * at.load(sines);
          at.store(out, a * c - b * s);
          at.store(out + half, b * c + a * s);
        });
      }
    }
  });
}
