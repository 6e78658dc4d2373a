static inline Vec sigmoid(Vec x) { return 1.0f / (1.0f + exp(-x)); }

static void silu_mul(const float* gate, const float* up, float* y, int64_t count) {
  map(count, [=](auto at) {
    const Vec g = at.load(gate);
    at.store(y, g * sigmoid(g) * at.load(up));
  });
}

// silu'(g) = σ(g) · (1 + g · (1 − σ(g)))
static void silu_mul_grad(const float* dy, const float* gate, const float* up, float* dgate, float* dup, int64_t count) {
  map(count, [=](auto at) {
    const Vec d = at.load(dy), g = at.load(gate), u = at.load(up), s = sigmoid(g);
    at.store(dgate, d * u * s * (1.0f + g * (1.0f - s)));
    at.store(dup, d * g * s);
  });
}
