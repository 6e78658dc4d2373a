static void dropout(const float* x, float* y, double p, uint64_t seed, int64_t count, bool accumulate) {
  const Keeping keep(p);
  for_chunks(count, chunk_elements, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += 64) { // a chunk is whole groups
      uint32_t words[4][16];
      philox_group(seed, static_cast<uint64_t>(i / 64), words);
      for_vectors(i, end - i < 64 ? end : i + 64, [&](auto at) {
        VecUint word;
        memcpy(&word, &words[0][0] + (at.i - i), sizeof word);
        const Vec value = word >= keep.threshold ? at.load(x) * keep.scale : Vec{};
        at.store(y, accumulate ? at.load(y) + value : value);
      });
    }
  });
}
