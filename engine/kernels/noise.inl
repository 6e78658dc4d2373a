// y = x + scales[row] · u, with u uniform in [−1, 1): a word of Philox, read as a signed number, times 2⁻³¹. Each row has groups of its own, as in
// attention's dropout.
static void add_uniform(const float* x, const double* scales, float* y, uint64_t seed, int64_t rows, int64_t cols) {
  for_chunks(rows, chunk_rows(cols), [=](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; row++) {
      const float* from = x + row * cols;
      float* to = y + row * cols;
      const float scale = static_cast<float>(scales[row] * 0x1p-31);
      for (int64_t i = 0; i < cols; i += 64) {
        uint32_t words[4][16];
        philox_group(seed, static_cast<uint64_t>(row) << 26 | static_cast<uint64_t>(i / 64), words);
        for_vectors(i, cols - i < 64 ? cols : i + 64, [&](auto at) {
          VecInt word;
          memcpy(&word, &words[0][0] + (at.i - i), sizeof word);
          at.store(to, at.load(from) + __builtin_convertvector(word, Vec) * scale);
        });
      }
    }
  });
}
