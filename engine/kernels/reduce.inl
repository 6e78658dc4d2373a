// Sums. Chunks are fixed and their sums are added in order, so the result does not depend on the threads.
#pragma once

static double sum_chunk(const float* x, int64_t count) {
  double sum = 0.0;
#pragma omp simd reduction(+ : sum) // may reorder this one sum; the engine never builds with -ffast-math
  for (int64_t i = 0; i < count; i++) sum += static_cast<double>(x[i]);
  return sum;
}

static double sum_squares_chunk(const float* x, int64_t count) {
  double sum = 0.0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < count; i++) sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  return sum;
}

/// y (1) = Σ of what sum_of(begin, end) gives for the chunks of [0, count).
template <class SumChunk>
static inline void reduce(float* y, int64_t count, bool accumulate, const SumChunk& sum_of) {
  const int64_t chunks = (count + chunk_elements - 1) / chunk_elements;
  double* sums = static_cast<double*>(shared_scratch(0, static_cast<size_t>(chunks) * sizeof(double)));
  for_chunks(count, chunk_elements, [&](int64_t begin, int64_t end) { sums[begin / chunk_elements] = sum_of(begin, end); });
  double total = accumulate ? static_cast<double>(*y) : 0.0;
  for (int64_t i = 0; i < chunks; i++) total += sums[i];
  *y = static_cast<float>(total);
}

static void sum(const float* x, float* y, int64_t count, bool accumulate) {
  reduce(y, count, accumulate, [=](int64_t begin, int64_t end) { return sum_chunk(x + begin, end - begin); });
}

static void sum_squares(const float* x, float* y, int64_t count, bool accumulate) {
  reduce(y, count, accumulate, [=](int64_t begin, int64_t end) { return sum_squares_chunk(x + begin, end - begin); });
}

/// Σ over [0, count) of term(at), in four running sums. Lanes beyond the end load `padding`, for which the term must be 0.
template <class Term>
static inline float sum_row(int64_t count, const Term& term, float padding = 0.0f) {
  Vec sums[4] = {};
  int64_t i = 0;
  for (; i + 4 * lanes <= count; i += 4 * lanes)
    for (int64_t j = 0; j < 4; j++) sums[j] += term(WholeVector{i + j * lanes});
  for_vectors(i, count, [&](auto at) { sums[0] += term(at); }, padding);
  return sum_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

/// y (cols) = Σ over rows of term(at, row, column of `at`). A task owns 64 columns and adds 64 rows at a time, which keeps rounding small.
template <class Term>
static void reduce_rows(float* y, int64_t rows, int64_t cols, bool accumulate, const Term& term) {
  constexpr int64_t block = 64;
  for_chunks(cols, block, [=](int64_t begin, int64_t end) {
    float total[block] = {};
    for (int64_t first = 0; first < rows; first += block) {
      const int64_t last = first + block < rows ? first + block : rows;
      float part[block] = {};
      for (int64_t row = first; row < last; row++)
        for_vectors(begin, end, [&](auto at) { at.store(part - begin, at.load(part - begin) + term(at, row)); });
      for (int64_t j = 0; j < end - begin; j++) total[j] += part[j];
    }
    for (int64_t j = begin; j < end; j++) y[j] = (accumulate ? y[j] : 0.0f) + total[j - begin];
  });
}

static void bias_grad(const float* dy, float* dbias, int64_t rows, int64_t cols, bool accumulate) {
  reduce_rows(dbias, rows, cols, accumulate, [=](auto at, int64_t row) { return at.load(dy + row * cols); });
}
