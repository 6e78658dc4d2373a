// What optimizers other than AdamW are made of.
#pragma once
#include "reduce.inl"

/// Applies update(i) to a chunk; it returns the flaw of what it leaves: 0, or NaN where a number is not finite, which flaw(i) finds again.
/// Flaws are rare: a sum tells if there are any, and only then they are counted.
template <class Update, class Flaw>
static inline double flaws_of_chunk(int64_t begin, int64_t end, const Update& update, const Flaw& flaw) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = begin; i < end; i++) sum += update(i);
  if (sum == 0.0f) return 0.0;
  int64_t flawed = 0;
  for (int64_t i = begin; i < end; i++) flawed += flaw(i) != 0.0f;
  return double(flawed);
}

static void blend(const float* x, float* y, float* flaws, int64_t count, double keep, double add) {
  const float a = float(keep), b = float(add);
  reduce(flaws, count, true, [=](int64_t begin, int64_t end) {
    return flaws_of_chunk(
        begin, end,
        [=](int64_t i) {
          const float value = a * y[i] + b * x[i];
          y[i] = value;
          return value - value;
        },
        [=](int64_t i) { return y[i] - y[i]; });
  });
}

static void limit_rms(float* x, const float* squares, int64_t count) {
  for_chunks(count, chunk_elements, [=](int64_t begin, int64_t end) {
    const float rms = float(sqrt(double(*squares) / double(count)));
    if (rms <= 1.0f) return; // what is NaN stays to be found
    for_vectors(begin, end, [=](auto at) { at.store(x, at.load(x) / broadcast(rms)); });
  });
}

// Source: Chen et al. 2023, arXiv:2302.06675, algorithm 2, in the form of bitsandbytes' Lion.
static void lion(float* p, const float* g, float* m, float* flaws, int64_t count, const LionStep& step) {
  const float beta1 = float(step.beta1), one_minus_beta1 = float(1.0 - step.beta1);
  const float beta2 = float(step.beta2), one_minus_beta2 = float(1.0 - step.beta2);
  const float keep = float(1.0 - step.lr * step.weight_decay), size = float(step.lr), grad_scale = float(step.grad_scale);
  reduce(flaws, count, true, [=](int64_t begin, int64_t end) {
    return flaws_of_chunk(
        begin, end,
        [=](int64_t i) {
          const float grad = g[i] * grad_scale;
          const float along = beta1 * m[i] + one_minus_beta1 * grad;
          const float sign = float(along > 0.0f) - float(along < 0.0f);
          const float new_m = beta2 * m[i] + one_minus_beta2 * grad;
          const float new_p = keep * p[i] - size * sign;
          m[i] = new_m, p[i] = new_p;
          return (new_p - new_p) + (new_m - new_m);
        },
        [=](int64_t i) { return (p[i] - p[i]) + (m[i] - m[i]); });
  });
}
