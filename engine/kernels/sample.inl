// One token for each row of logits. The cuts come in transformers' order: repetition penalty, temperature, top-k, top-p.

/// The place of the largest value, of the first one where several are; of the first NaN if there is one.
static int64_t largest_of(const float* x, int64_t count) {
  constexpr int64_t block = 4096;
  float best = -INFINITY;
  int64_t first = 0;
  for (int64_t begin = 0; begin < count && best == best; begin += block) {
    Vec largest = broadcast(-INFINITY), flaw = {};
    const auto look = [&](auto at) {
      const Vec value = at.load(x);
      largest = value > largest ? value : largest;
      flaw = value != value ? value : flaw;
    };
    for_vectors(begin, begin + block < count ? begin + block : count, look, -INFINITY);
    const float nan = sum_lanes(flaw); // or 0
    const float here = nan != nan ? nan : max_lanes(largest);
    if (here <= best) continue;
    best = here;
    first = begin;
  }
  while (first + 1 < count && x[first] != best && x[first] == x[first]) first++;
  return first;
}

/// A temperature that an f32 can be divided by.
static float divisor_of(double temperature) {
  constexpr double smallest = 1.17549435e-38, largest = 3.40282346e38;
  return static_cast<float>(temperature < smallest ? smallest : temperature > largest ? largest : temperature);
}

/// log Σ exp((x − max) / temperature). Sums run in f32 over blocks, in f64 over blocks, as in cross_entropy.
static double log_sum_exp(const float* x, int64_t count, float max, float temperature) {
  constexpr int64_t block = 4096;
  double sum = 0.0;
  for (int64_t begin = 0; begin < count; begin += block) {
    Vec part = {};
    const auto add = [&](auto at) { part += exp((at.load(x) - max) / temperature); };
    for_vectors(begin, begin + block < count ? begin + block : count, add, -INFINITY);
    sum += static_cast<double>(sum_lanes(part));
  }
  return log(sum);
}

/// The tokens that may be drawn, in the order of their ids, and in buckets of falling logits: a bucket is sorted only if the search ends in it.
struct Candidates {
  static constexpr int64_t buckets = 1024;
  int64_t count;
  int32_t* ids;
  float* logits;
  float* weights;
  int32_t* order;
  int64_t starts[buckets + 1];
  double sums[buckets];
};

/// Orders `count` candidates by falling logit, then by id, with a heap.
static void sort_candidates(int32_t* order, int64_t count, const float* logits) {
  const auto before = [=](int32_t a, int32_t b) { return logits[a] > logits[b] || (logits[a] == logits[b] && a < b); };
  bool sorted = true;
  for (int64_t i = 1; i < count; i++) sorted &= before(order[i - 1], order[i]);
  if (sorted) return;
  const auto sink = [=](int64_t root, int64_t end) {
    const int32_t moved = order[root];
    for (int64_t child; (child = 2 * root + 1) < end; root = child) {
      if (child + 1 < end && before(order[child], order[child + 1])) child++;
      if (!before(moved, order[child])) break;
      order[root] = order[child];
    }
    order[root] = moved;
  };
  for (int64_t root = count / 2; root-- > 0;) sink(root, count);
  for (int64_t end = count - 1; end > 0; end--) {
    const int32_t last = order[0];
    order[0] = order[end];
    order[end] = last;
    sink(0, end);
  }
}

/// exp(−20) is below the resolution of an f32 sum: tokens further down cannot be drawn.
static void collect_candidates(Candidates& all, const float* x, int64_t vocab, float max, double temperature) {
  const double lowest_allowed = static_cast<double>(max) - 20.0 * temperature;
  const float threshold = lowest_allowed > -3.40282346e38 ? static_cast<float>(lowest_allowed) : -3.40282346e38f;
  int64_t count = 0;
  for (int64_t i = 0; i < vocab; i++) {
    all.ids[count] = static_cast<int32_t>(i);
    count += x[i] >= threshold;
  }
  all.count = count;
  float lowest = max;
  for (int64_t i = 0; i < count; i++) {
    all.logits[i] = x[all.ids[i]];
    lowest = all.logits[i] < lowest ? all.logits[i] : lowest;
  }
  const float divisor = divisor_of(temperature);
  for_vectors(0, count, [&](auto at) { at.store(all.weights, exp((at.load(all.logits) - max) / divisor)); });

  const double range = static_cast<double>(max) - static_cast<double>(lowest);
  const double scale = range > 0.0 ? static_cast<double>(Candidates::buckets - 1) / range : 0.0;
  const auto bucket_of = [&](int64_t i) {
    return static_cast<int64_t>((static_cast<double>(max) - static_cast<double>(all.logits[i])) * scale);
  };
  memset(all.starts, 0, sizeof all.starts);
  memset(all.sums, 0, sizeof all.sums);
  for (int64_t i = 0; i < count; i++) {
    const int64_t bucket = bucket_of(i);
    all.starts[bucket + 1]++;
    all.sums[bucket] += static_cast<double>(all.weights[i]);
  }
  int64_t next[Candidates::buckets];
  for (int64_t bucket = 0; bucket < Candidates::buckets; bucket++) {
    next[bucket] = all.starts[bucket];
    all.starts[bucket + 1] += all.starts[bucket];
  }
  for (int64_t i = 0; i < count; i++) all.order[next[bucket_of(i)]++] = static_cast<int32_t>(i);
}

/// The first place in the order at which the weights so far add up to `wanted`; the last of the first `limit` if they do not. `sum` is theirs.
static int64_t place_where(const Candidates& all, int64_t limit, double wanted, double* sum) {
  *sum = 0.0;
  for (int64_t bucket = 0; bucket < Candidates::buckets; bucket++) {
    const int64_t begin = all.starts[bucket], end = all.starts[bucket + 1];
    if (end < limit && *sum + all.sums[bucket] < wanted) {
      *sum += all.sums[bucket];
      continue;
    }
    sort_candidates(all.order + begin, end - begin, all.logits);
    for (int64_t place = begin; place < end; place++) {
      *sum += static_cast<double>(all.weights[all.order[place]]);
      if (*sum >= wanted || place + 1 == limit) return place;
    }
  }
  return limit - 1;
}

/// A token by its chance among those that top-k and top-p leave.
static int64_t draw_token(Candidates& all, const float* x, int64_t vocab, float max, const double* draw) {
  const double temperature = draw[0], top_p = draw[1], top_k = draw[2], uniform = draw[4];
  collect_candidates(all, x, vocab, max, temperature);
  int64_t kept = top_k >= 1.0 && top_k < static_cast<double>(all.count) ? static_cast<int64_t>(top_k) : all.count;
  double total;
  place_where(all, kept, INFINITY, &total);
  if (top_p < 1.0) {
    const double wanted = top_p * total;
    kept = place_where(all, kept, wanted, &total) + 1;
  }
  double sum;
  return all.ids[all.order[place_where(all, kept, uniform * total, &sum)]];
}

/// The ids of the `count` largest values and their log-probabilities, in pairs.
static void largest_log_probs(const float* x, int64_t vocab, float max, float temperature, double log_sum, float* pairs, int64_t count) {
  int64_t found = 0;
  for (int64_t i = 0; i < vocab; i++) {
    if (found == count && !(x[i] > x[static_cast<int64_t>(pairs[2 * (count - 1)])])) continue;
    int64_t place = found < count ? found++ : count - 1;
    for (; place > 0 && x[i] > x[static_cast<int64_t>(pairs[2 * (place - 1)])]; place--) pairs[2 * place] = pairs[2 * (place - 1)];
    pairs[2 * place] = static_cast<float>(i);
  }
  for (int64_t place = 0; place < count; place++) {
    const double distance = static_cast<double>(x[static_cast<int64_t>(pairs[2 * place])]) - static_cast<double>(max);
    pairs[2 * place + 1] = static_cast<float>(distance / static_cast<double>(temperature) - log_sum);
  }
}

static void sample(float* logits, const double* draws, const int32_t* seen, const int64_t* seen_starts, float* y, int64_t rows, int64_t vocab,
                   int64_t top) {
  parallel(rows, [=](int64_t row, int thread) {
    float* x = logits + row * vocab;
    const double* draw = draws + row * sample_numbers;
    const double temperature = draw[0], penalty = draw[3], log_prob_temperature = draw[5];
    float* out = y + row * 2 * (1 + top);
    const int32_t* places = seen + seen_starts[row];
    const int64_t penalized = seen_starts[row + 1] - seen_starts[row];
    char* memory = static_cast<char*>(scratch(thread, static_cast<size_t>(4 * vocab + penalized) * 4 + sizeof(Candidates)));
    Candidates& all = *reinterpret_cast<Candidates*>(memory);
    all.ids = reinterpret_cast<int32_t*>(memory + sizeof(Candidates));
    all.logits = reinterpret_cast<float*>(all.ids + vocab);
    all.weights = all.logits + vocab;
    all.order = reinterpret_cast<int32_t*>(all.weights + vocab);
    float* raw = reinterpret_cast<float*>(all.order + vocab);

    for (int64_t i = 0; i < penalized; i++) {
      raw[i] = logits[places[i]];
      const double logit = static_cast<double>(raw[i]);
      logits[places[i]] = static_cast<float>(logit > 0.0 ? logit / penalty : logit * penalty);
    }
    const int64_t best = largest_of(x, vocab);
    const float max = x[best];
    const bool flawed = !(max - max == 0.0f);
    const int64_t id = flawed ? -1 : temperature > 0.0 ? draw_token(all, x, vocab, max, draw) : best;
    for (int64_t i = penalized; i-- > 0;) logits[places[i]] = raw[i];

    out[0] = static_cast<float>(id);
    out[1] = flawed ? max : 0.0f;
    for (int64_t i = 0; i < top; i++) {
      out[2 + 2 * i] = -1.0f;
      out[3 + 2 * i] = 0.0f;
    }
    if (flawed || !(log_prob_temperature > 0.0)) return;
    const float largest = penalized > 0 ? x[largest_of(x, vocab)] : max;
    const float divisor = divisor_of(log_prob_temperature);
    const double log_sum = log_sum_exp(x, vocab, largest, divisor);
    out[1] = static_cast<float>((static_cast<double>(x[id]) - static_cast<double>(largest)) / static_cast<double>(divisor) - log_sum);
    if (top > 0) largest_log_probs(x, vocab, largest, divisor, log_sum, out + 2, top);
  });
}
