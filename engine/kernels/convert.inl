static void narrow(const float* x, int y_type, uint16_t* y, int64_t count) {
  if (y_type == BF16) {
#pragma omp simd
    for (int64_t i = 0; i < count; i++) y[i] = uint16_t(rounded_bits(x[i]) >> 16);
    return;
  }
  int64_t i = 0;
#if defined(__F16C__)
  for (; i + 8 <= count; i += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(y + i), _mm256_cvtps_ph(_mm256_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT));
#endif
  for (; i < count; i++) y[i] = to_f16(x[i]);
}

static void convert(const void* x, int x_type, void* y, int y_type, int64_t count) {
  for_chunks(count, chunk_elements, [=](int64_t begin, int64_t end) {
    constexpr int64_t block = 256; // whole blocks of every type
    for (int64_t i = begin; i < end; i += block) {
      const int64_t n = end - i < block ? end - i : block;
      if (y_type == F32) {
        expand(x_type, x, i, static_cast<float*>(y) + i, n);
      } else {
        float wide[block];
        expand(x_type, x, i, wide, n);
        narrow(wide, y_type, static_cast<uint16_t*>(y) + i, n);
      }
    }
  });
}
