// loss = log Σ exp(x − max) + (1 − s) · (max − x[target]) − s · mean(x − max), with s the smoothing. Sums run in f32 over blocks, in f64 over
// blocks: vocabularies are long.
static void cross_entropy(float* logits, const int32_t* targets, float* losses, int64_t rows, int64_t vocab, double smoothing, bool gradient) {
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

      double sum = 0.0, below = 0.0; // Σ exp(x − max) and Σ (x − max)
      for (int64_t begin = 0; begin < vocab; begin += block) {
        const int64_t end = begin + block < vocab ? begin + block : vocab;
        if (smoothing > 0.0) { // the block stays in the cache for what follows
          Vec part = {};
          for_vectors(begin, end, [&](auto at) { part += at.load(x) - max; }, max);
          below += static_cast<double>(sum_lanes(part));
        }
        Vec part = {};
        const auto add_exp = [&](auto at) {
          const Vec e = exp(at.load(x) - max);
          part += e;
          if (gradient) at.store(x, e);
        };
        for_vectors(begin, end, add_exp, -INFINITY);
        sum += static_cast<double>(sum_lanes(part));
      }
      const double gap = static_cast<double>(max) - static_cast<double>(target);
      losses[row] = static_cast<float>(log(sum) + (1.0 - smoothing) * gap - smoothing * (below / static_cast<double>(vocab)));

      if (gradient) {
        const float scale = static_cast<float>(1.0 / sum);
        const float share = static_cast<float>(smoothing / static_cast<double>(vocab));
        if (smoothing > 0.0)
          for_vectors(0, vocab, [=](auto at) { at.store(x, at.load(x) * scale - share); });
        else
          for_vectors(0, vocab, [=](auto at) { at.store(x, at.load(x) * scale); });
        x[targets[row]] -= static_cast<float>(1.0 - smoothing);
      }
    }
  });
}
