// loss = log Σ exp(x − max) + max − x[target]. Sums run in f32 over blocks, in f64 over blocks: vocabularies are long.
static void cross_entropy(float* logits, const int32_t* targets, float* losses, int64_t rows, int64_t vocab, bool gradient) {
  constexpr int64_t block = 4096;
  for_chunks(rows, chunk_rows(vocab), [=](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; row++) {
      float* x = logits + row * vocab;
      Vec best = broadcast(-INFINITY);
      const auto keep_larger = [&](auto at) {
        const Vec value = at.load(x);
        best = value > best ? value : best;
      };
      for_vectors(0, vocab, keep_larger, -INFINITY);
      const float max = max_lanes(best);
      const float target = x[targets[row]];

      double sum = 0.0;
      for (int64_t begin = 0; begin < vocab; begin += block) {
        Vec part = {};
        const auto add_exp = [&](auto at) {
          const Vec e = exp(at.load(x) - max);
          part += e;
          if (gradient) at.store(x, e);
        };
        for_vectors(begin, begin + block < vocab ? begin + block : vocab, add_exp, -INFINITY);
        sum += static_cast<double>(sum_lanes(part));
      }
      losses[row] = static_cast<float>(log(sum) + (static_cast<double>(max) - static_cast<double>(target)));

      if (gradient) {
        const float scale = static_cast<float>(1.0 / sum);
        for_vectors(0, vocab, [=](auto at) { at.store(x, at.load(x) * scale); });
        x[targets[row]] -= 1.0f;
      }
    }
  });
}
