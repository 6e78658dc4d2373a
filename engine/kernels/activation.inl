// Element-wise functions. Each gives its value and, for the gradient, its slope at x; NaN stays NaN.

static inline Vec sigmoid(Vec x) { return 1.0f / (1.0f + exp(-x)); }

static inline Vec magnitude(Vec x) { return x < 0.0f ? -x : x; }

/// Within 2 ulp. Polynomial below 0.625: Cephes, tanhf.c (Moshier).
static inline Vec tanh(Vec x) {
  const Vec s = x * x;
  Vec p = s * -5.70498872745e-3f + 2.06390887954e-2f;
  p = p * s - 5.37397155531e-2f;
  p = p * s + 1.33314422036e-1f;
  p = p * s - 3.33332819422e-1f;
  const Vec near = p * s * x + x;
  const Vec far = 1.0f - 2.0f / (exp(2.0f * magnitude(x)) + 1.0f);
  return magnitude(x) < 0.625f ? near : (x < 0.0f ? -far : far);
}

/// Within 2 ulp. Polynomials: Juffa, "Computing erff()", 2017.
static inline Vec erf(Vec x) {
  const Vec t = magnitude(x), s = x * x;
  Vec p = s * -5.96761703e-4f + 4.99119423e-3f;
  p = p * s - 2.67681349e-2f;
  p = p * s + 1.12819925e-1f;
  p = p * s - 3.76125336e-1f;
  p = p * s + 1.28379166e-1f;
  const Vec near = p * x + x;
  Vec r = t * -1.72853470e-5f + 3.83197126e-4f;
  r = r * s + (t * -3.88396438e-3f + 2.42546219e-2f);
  r = r * t - 1.06777877e-1f;
  r = r * t - 6.34846687e-1f;
  r = r * t - 1.28717512e-1f;
  const Vec far = 1.0f - exp(r * t - t);
  return t < 0.927734375f ? near : (x < 0.0f ? -far : far);
}

struct Relu {
  static Vec value(Vec x) { return x < 0.0f ? Vec{} : x; }
  static Vec slope(Vec x) { return x > 0.0f ? broadcast(1.0f) : Vec{}; }
};

/// x · Φ(x), Φ the normal distribution
struct Gelu {
  static Vec below(Vec x) { return 0.5f + 0.5f * erf(x * 0.707106781186547524f); }
  static Vec value(Vec x) { return x * below(x); }
  static Vec slope(Vec x) { return below(x) + x * 0.398942280401432678f * exp(-0.5f * x * x); }
};

/// ½ x · (1 + tanh(√(2/π) · (x + 0.044715 x³)))
struct GeluTanh {
  static constexpr float scale = 0.797884560802865356f, cubic = 0.044715f;
  static Vec curve(Vec x) { return tanh(scale * (x + cubic * x * x * x)); }
  static Vec value(Vec x) { return 0.5f * x * (1.0f + curve(x)); }
  static Vec slope(Vec x) {
    const Vec t = curve(x);
    return 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * scale * (1.0f + 3.0f * cubic * x * x);
  }
};

struct Silu {
  static Vec value(Vec x) { return x * sigmoid(x); }
  static Vec slope(Vec x) {
    const Vec s = sigmoid(x);
    return s * (1.0f + x * (1.0f - s));
  }
};

struct Tanh {
  static Vec value(Vec x) { return tanh(x); }
  static Vec slope(Vec x) {
    const Vec t = tanh(x);
    return 1.0f - t * t;
  }
};

struct Sigmoid {
  static Vec value(Vec x) { return sigmoid(x); }
  static Vec slope(Vec x) {
    const Vec s = sigmoid(x);
    return s * (1.0f - s);
  }
};

/// Calls body(F{}) with the function of that kind.
template <class Body>
static inline void with_activation(int kind, const Body& body) {
  switch (kind) {
    case RELU: return body(Relu{});
    case GELU: return body(Gelu{});
    case GELU_TANH: return body(GeluTanh{});
    case SILU: return body(Silu{});
    case TANH: return body(Tanh{});
    case SIGMOID: return body(Sigmoid{});
  }
}

static void activation(const float* x, float* y, int kind, int64_t count) {
  with_activation(kind, [=](auto f) { map(count, [=](auto at) { at.store(y, f.value(at.load(x))); }); });
}

static void activation_grad(const float* dy, const float* x, float* dx, int kind, int64_t count, bool accumulate) {
  with_activation(kind, [=](auto f) {
    map(count, [=](auto at) {
      const Vec value = at.load(dy) * f.slope(at.load(x));
      at.store(dx, accumulate ? at.load(dx) + value : value);
    });
  });
}

static void gated(const float* gate, const float* up, float* y, int kind, int64_t count) {
  with_activation(kind, [=](auto f) { map(count, [=](auto at) { at.store(y, f.value(at.load(gate)) * at.load(up)); }); });
}

static void gated_grad(const float* dy, const float* gate, const float* up, float* dgate, float* dup, int kind, int64_t count) {
  with_activation(kind, [=](auto f) {
    map(count, [=](auto at) {
      const Vec d = at.load(dy), g = at.load(gate), u = at.load(up);
      at.store(dgate, d * u * f.slope(g));
      at.store(dup, d * f.value(g));
    });
  });
}
