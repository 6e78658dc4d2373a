// The widest vector of the tier, and loops over arrays with it. A tail goes through the same vector code on a padded copy, so an element's
// value does not depend on where it stands.

#if defined(__AVX512F__)
#define ATTUNE_LANES 16
#elif defined(__AVX__)
#define ATTUNE_LANES 8
#else
#define ATTUNE_LANES 4
#endif

static constexpr int64_t lanes = ATTUNE_LANES;

typedef float Vec __attribute__((vector_size(4 * ATTUNE_LANES)));
typedef int32_t VecInt __attribute__((vector_size(4 * ATTUNE_LANES)));
typedef uint32_t VecUint __attribute__((vector_size(4 * ATTUNE_LANES)));
typedef float UnalignedVec __attribute__((vector_size(4 * ATTUNE_LANES), aligned(4), may_alias));

static inline Vec broadcast(float value) { return value - Vec{}; }
static inline Vec load(const float* x) { return *reinterpret_cast<const UnalignedVec*>(x); }
static inline void store(float* y, Vec value) { *reinterpret_cast<UnalignedVec*>(y) = value; }

#if defined(__aarch64__)
#define ATTUNE_IN_VECTOR_REGISTER(x) "+w"(x)
#elif defined(__AVX512F__)
#define ATTUNE_IN_VECTOR_REGISTER(x) "+v"(x)
#else
#define ATTUNE_IN_VECTOR_REGISTER(x) "+x"(x)
#endif

/// The same number, which the compiler takes for another: a product is rounded here, and not fused with the addition that uses it.
static inline float unfused(float product) {
  asm("" : ATTUNE_IN_VECTOR_REGISTER(product));
  return product;
}

/// Elements i … i + lanes of arrays.
struct WholeVector {
  int64_t i;
  Vec load(const float* x) const { return ATTUNE_TIER::load(x + i); }
  void store(float* y, Vec value) const { ATTUNE_TIER::store(y + i, value); }
};

/// The last elements i … i + n of arrays, n < lanes; the other lanes are `padding`, and are not stored.
struct PartVector {
  int64_t i, n;
  float padding;
  Vec load(const float* x) const {
    Vec value = broadcast(padding);
    memcpy(&value, x + i, static_cast<size_t>(n) * sizeof(float));
    return value;
  }
  void store(float* y, Vec value) const { memcpy(y + i, &value, static_cast<size_t>(n) * sizeof(float)); }
};

/// Calls body(at) for vectors that cover [begin, end); `at` loads and stores there.
template <class Body>
static inline void for_vectors(int64_t begin, int64_t end, const Body& body, float padding = 0.0f) {
  int64_t i = begin;
  for (; i + lanes <= end; i += lanes) body(WholeVector{i});
  if (i < end) body(PartVector{i, end - i, padding});
}

/// Splits [0, count) into chunks that do not depend on the number of threads, and calls body(begin, end) for each, in parallel.
template <class Body>
static inline void for_chunks(int64_t count, int64_t chunk, const Body& body) {
  parallel((count + chunk - 1) / chunk, [&](int64_t task, int) {
    const int64_t begin = task * chunk;
    body(begin, begin + chunk < count ? begin + chunk : count);
  });
}

/// Elements in a chunk: enough work to pay for waking a thread, few enough to stay in its cache.
static constexpr int64_t chunk_elements = 16384;

/// Rows in a chunk of about that size.
static inline int64_t chunk_rows(int64_t cols) { return cols < chunk_elements ? chunk_elements / (cols > 0 ? cols : 1) : 1; }

/// Elementwise kernels: body(at) for vectors that cover [0, count), in parallel.
template <class Body>
static inline void map(int64_t count, const Body& body) {
  for_chunks(count, chunk_elements, [&](int64_t begin, int64_t end) { for_vectors(begin, end, body); });
}

static inline float sum_lanes(Vec v) {
  float part[ATTUNE_LANES];
  memcpy(part, &v, sizeof v);
  for (int64_t width = lanes / 2; width > 0; width /= 2)
    for (int64_t i = 0; i < width; i++) part[i] += part[i + width];
  return part[0];
}

static inline float max_lanes(Vec v) {
  float part[ATTUNE_LANES];
  memcpy(part, &v, sizeof v);
  float best = part[0];
  for (int64_t i = 1; i < lanes; i++) best = part[i] > best ? part[i] : best;
  return best;
}

/// eˣ within 1 ulp or so; denormals, ±∞ and NaN as expf. Range reduction and polynomial: Cephes, expf.c (Moshier).
static inline Vec exp(Vec x) {
  constexpr float round_to_int = 12582912.0f; // 1.5 · 2²³: adding it leaves the nearest integer in the low mantissa bits
  Vec t = x < -110.0f ? broadcast(-110.0f) : x;
  t = t > 100.0f ? broadcast(100.0f) : t;
  const Vec shifted = t * 1.44269504088896341f + round_to_int;
  const Vec n = shifted - round_to_int;
  const Vec r = t - n * 0.693359375f + n * 2.12194440e-4f; // ln 2 in two parts, the first exact in few bits
  Vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  // 2ⁿ as a product of two halves, for n beyond the exponents of normal numbers.
  const VecInt exponent = (VecInt)shifted - 0x4B400000;
  const VecInt half = exponent >> 1;
  const Vec y = p * (Vec)((half + 127) << 23) * (Vec)((exponent - half + 127) << 23);
  return x != x ? x : y;
}
