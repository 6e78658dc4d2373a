// Source: Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2, in the form of torch.optim.AdamW: decay is multiplied by lr.
#pragma once
#include "quant_tables.inl"
#include "quantize.inl"
#include "reduce.inl"

/// The update of one number. Constants are rounded once, after they were worked out: 1 − β₂ from a β₂ in f32 would be off by 5e-5.
struct AdamWUpdate {
  float beta1, one_minus_beta1, beta2, one_minus_beta2, decay, size, root, eps, grad_scale;

  explicit AdamWUpdate(const AdamWStep& step)
      : beta1(float(step.beta1)), one_minus_beta1(float(1.0 - step.beta1)), beta2(float(step.beta2)), one_minus_beta2(float(1.0 - step.beta2)),
        decay(float(1.0 - step.lr * step.weight_decay)), size(float(step.lr / step.correction1)), root(float(sqrt(step.correction2))),
        eps(float(step.eps)), grad_scale(float(step.grad_scale)) {}

  /// 0, or NaN if a number or one of its moments is not finite.
  static float flaw(float p, float m, float v) { return (p - p) + (m - m) + (v - v); }

  /// Returns the flaw of what it leaves.
  float operator()(float& p, float g, float& m, float& v) const {
    const float grad = g * grad_scale;
    const float new_m = beta1 * m + one_minus_beta1 * grad;
    const float new_v = beta2 * v + one_minus_beta2 * grad * grad;
    const float new_p = p * decay - size * new_m / (sqrtf(new_v) / root + eps);
    m = new_m, v = new_v, p = new_p;
    return flaw(new_p, new_m, new_v);
  }
};

/// How many of `count` numbers are flawed after their update. Flaws are rare: a sum tells if there are any, and only then they are counted.
static double adamw_chunk(const AdamWUpdate update, float* p, const float* g, float* m, float* v, int64_t count) {
  float flaw = 0.0f;
#pragma omp simd reduction(+ : flaw)
  for (int64_t i = 0; i < count; i++) flaw += update(p[i], g[i], m[i], v[i]);
  if (flaw == 0.0f) return 0.0;
  int64_t flawed = 0;
  for (int64_t i = 0; i < count; i++) flawed += update.flaw(p[i], m[i], v[i]) != 0.0f;
  return double(flawed);
}

static void adamw(float* p, const float* g, float* m, float* v, float* flaws, int64_t count, const AdamWStep& step) {
  const AdamWUpdate update(step);
  reduce(flaws, count, true, [=](int64_t begin, int64_t end) {
    return adamw_chunk(update, p + begin, g + begin, m + begin, v + begin, end - begin);
  });
}

/// Finds the nearest of `count` numbers from 0 to 1, the lower of two. Where the first 16 bits of x say which middles between neighbours may
/// be near, there is one at most.
struct Nearest {
  static constexpr int cells = 128, octaves = 24; // cells of an octave, and octaves below 1; the first middle is above them
  uint8_t below[cells * octaves + 1];             // middles below the cell
  float middle[256];

  constexpr Nearest(const float* number, int count) : below{}, middle{} {
    for (int i = 0; i + 1 < count; i++) middle[i] = (number[i] + number[i + 1]) / 2.0f;
    middle[count - 1] = 2.0f; // above all
    int place = 0, cell = 0;
    for (double octave = 1.0 / (1 << octaves); octave < 1.0; octave *= 2)
      for (int i = 0; i < cells; i++) {
        while (double(middle[place]) < octave * (1.0 + double(i) / cells)) place++;
        below[cell++] = uint8_t(place);
      }
    below[cell] = uint8_t(count - 1);
  }

  /// The cell of 0 ≤ x ≤ 1.
  static int32_t cell_of(float x) {
    const int32_t cell = int32_t(bit_cast<uint32_t>(x) >> 16) - (127 - octaves) * cells;
    const int32_t most = cell < cells * octaves ? cell : cells * octaves;
    return most > 0 ? most : 0;
  }

  int place(int32_t cell, float x) const {
    const int guess = below[cell];
    return guess + (middle[guess] < x);
  }
};

static constexpr Nearest nearest_of_signed(dynamic_map.value + 127, 129);
static constexpr Nearest nearest_of_positive(positive_dynamic_map.value, 256);

template <bool is_signed>
static void store_moments(const float* x, int64_t count, Moments8Bit& y) {
  y.absmax = largest_magnitude(x, count);
  const float inverse = 1.0f / (y.absmax > 1e-38f ? y.absmax : 1e-38f);
  constexpr auto& nearest = is_signed ? nearest_of_signed : nearest_of_positive;
  float size[256];
  int32_t cell[256], place[256];
#pragma omp simd
  for (int64_t i = 0; i < count; i++) {
    size[i] = fabsf(x[i]) * inverse;
    cell[i] = nearest.cell_of(size[i]);
  }
  for (int64_t i = 0; i < count; i++) place[i] = nearest.place(cell[i], size[i]);
  if (is_signed) {
#pragma omp simd
    for (int64_t i = 0; i < count; i++) { // the map has 1, but not −1
      const int32_t below_zero = place[i] < 127 ? place[i] : 127;
      y.code[i] = uint8_t(127 + (x[i] < 0.0f ? -below_zero : place[i]));
    }
  } else {
    for (int64_t i = 0; i < count; i++) y.code[i] = uint8_t(place[i]);
  }
}

// Source: Dettmers et al. 2022, arXiv:2110.02861. Moments become the nearest number of the map, as the paper and bitsandbytes' GPU kernels
// have it; bitsandbytes' CPU kernel rounds them to steps of 3e-5 before.
static void adamw_8bit(float* p, const float* g, Moments8Bit* m, Moments8Bit* v, float* flaws, int64_t count, const AdamWStep& step) {
  const AdamWUpdate update(step);
  reduce(flaws, count, true, [=](int64_t begin, int64_t end) {
    double flawed = 0.0;
    for (int64_t first = begin; first < end; first += 256) {
      const int64_t many = end - first < 256 ? end - first : 256;
      Moments8Bit &block_m = m[first / 256], &block_v = v[first / 256];
      float wide_m[256], wide_v[256];
      for (int64_t i = 0; i < many; i++) {
        wide_m[i] = dynamic_map.value[block_m.code[i]] * block_m.absmax;
        wide_v[i] = positive_dynamic_map.value[block_v.code[i]] * block_v.absmax;
      }
      flawed += adamw_chunk(update, p + first, g + first, wide_m, wide_v, many);
      store_moments<true>(wide_m, many, block_m);
      store_moments<false>(wide_v, many, block_v);
    }
    return flawed;
  });
}
