// f16, bit by bit. Included by the per-ISA files too: C headers only, nothing with external linkage.
#pragma once
#include <stdint.h>
#include <string.h>

namespace attune {

/// To the nearest f16, ties to even.
static inline uint16_t to_f16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  const uint32_t sign = bits >> 16 & 0x8000u, size = bits & 0x7FFFFFFFu;
  if (size > 0x7F800000u) return static_cast<uint16_t>(sign | 0x7E00u);
  if (size >= 0x47800000u) return static_cast<uint16_t>(sign | 0x7C00u); // 65536 and more
  if (size < 0x38800000u) { // below the normal numbers: adding 0.5 leaves a multiple of 2⁻²⁴ in the low bits, rounded to even
    float magnitude;
    memcpy(&magnitude, &size, sizeof magnitude);
    magnitude += 0.5f;
    uint32_t shifted;
    memcpy(&shifted, &magnitude, sizeof shifted);
    return static_cast<uint16_t>(sign | (shifted - 0x3F000000u));
  }
  return static_cast<uint16_t>(sign | ((size - 0x38000000u + 0xFFFu + (size >> 13 & 1u)) >> 13));
}

/// Exact: the exponent is moved under f32's and corrected by a multiplication, which makes subnormals right as well.
static inline float from_f16(uint16_t h) {
  const uint32_t moved = static_cast<uint32_t>(h & 0x7fff) << 13;
  float magnitude;
  memcpy(&magnitude, &moved, sizeof magnitude);
  magnitude *= 0x1p112f;
  uint32_t bits;
  memcpy(&bits, &magnitude, sizeof bits);
  bits |= ((h & 0x7c00) == 0x7c00 ? 0x7f800000u : 0u) | static_cast<uint32_t>(h & 0x8000) << 16; // infinity or NaN; sign
  memcpy(&magnitude, &bits, sizeof magnitude);
  return magnitude;
}

} // namespace attune
