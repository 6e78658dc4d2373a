// The tables of bitsandbytes' types, equal to its own bit for bit (bitsandbytes 0.50, functional.py: get_4bit_type, create_dynamic_map).
#pragma once

struct Table4Bit {
  float value[16];
  uint8_t by_size[16]; // codes from the lowest value to the highest
};

/// Quantiles of a normal distribution. Source: Dettmers et al. 2023, arXiv:2305.14314, appendix E.
static constexpr Table4Bit nf4_table = {
    {-1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f, -0.28444138169288635f, -0.18477343022823334f,
     -0.09105003625154495f, 0.0f, 0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f,
     0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f},
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}};

/// Sign, two bits of exponent, one of mantissa, divided by the largest. Codes 0 and 8 are both 0.
static constexpr Table4Bit fp4_table = {
    {0.0f, 0.0625f / 12, 8.0f / 12, 1.0f, 4.0f / 12, 0.5f, 2.0f / 12, 0.25f, 0.0f, -0.0625f / 12, -8.0f / 12, -1.0f, -4.0f / 12, -0.5f,
     -2.0f / 12, -0.25f},
    {11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3}};

/// The dynamic map: 256 numbers in [-1, 1] (or [0, 1]) in order, more of them per decade the larger they are. A decade has the middles of
/// equal parts of [0.1, 1] · 10ᵉ. Source: Dettmers 2016, arXiv:1511.04561.
struct DynamicMap {
  float value[256];

  explicit constexpr DynamicMap(bool is_signed) : value{} {
    const int zero = is_signed ? 127 : 0;
    int next = zero + 1;
    for (int decade = 0; decade < 7; decade++) {
      const int parts = is_signed ? 1 << decade : 2 << decade;
      for (int i = 0; i < parts; i++) {
        const float middle = (border(i, parts) + border(i + 1, parts)) / 2.0f * power_of_ten(decade - 6);
        if (is_signed) value[2 * zero - next] = -middle;
        value[next++] = middle;
      }
    }
    value[255] = 1.0f;
  }

  /// As torch.linspace(0.1, 1, parts + 1): a fused multiplication and addition, from the nearer end. Exact in f64, then rounded.
  static constexpr float border(int i, int parts) {
    const float step = (1.0f - 0.1f) / float(parts);
    return i < (parts + 1) / 2 ? float(double(step) * i + double(0.1f)) : float(1.0 - double(step) * (parts - i));
  }

  static constexpr float power_of_ten(int exponent) {
    double power = 1;
    for (; exponent < 0; exponent++) power *= 10;
    return float(1 / power);
  }
};

static constexpr DynamicMap dynamic_map(true), positive_dynamic_map(false);
