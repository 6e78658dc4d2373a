// Singular values by rotating pairs of rows until all are orthogonal (one-sided Jacobi: Hestenes 1958, with de Rijk's ordering).

static double dot_rows_f64(const float* a, const float* b, int64_t count) {
  double sum = 0.0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < count; i++) sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return sum;
}

static void rotate_rows(float* a, float* b, float c, float s, int64_t count) {
  for_vectors(0, count, [=](auto at) {
    const Vec p = at.load(a), q = at.load(b);
    at.store(a, c * p + s * q);
    at.store(b, c * q - s * p);
  });
}

/// Makes rows a and b of x orthogonal, the longer one first, with the same rotation of u's rows. False if they were.
static bool orthogonalize(float* a, float* b, int64_t cols, float* ua, float* ub, int64_t rows) {
  const double aa = dot_rows_f64(a, a, cols), bb = dot_rows_f64(b, b, cols), ab = dot_rows_f64(a, b, cols);
  const double enough = 1e-7 * sqrt(aa) * sqrt(bb); // what f32 can tell apart
  if (fabs(ab) <= enough && aa >= bb) return false;
  double c = 0.0, s = 1.0; // orthogonal, but in the wrong order: change places
  if (fabs(ab) > enough) {
    const double angle = 0.5 * atan2(2.0 * ab, aa - bb); // the longest combination of both comes first
    c = cos(angle);
    s = sin(angle);
  }
  rotate_rows(a, b, static_cast<float>(c), static_cast<float>(s), cols);
  rotate_rows(ua, ub, static_cast<float>(c), static_cast<float>(s), rows);
  return true;
}

static void svd(float* x, float* u, float* s, int64_t rows, int64_t cols) {
  memset(u, 0, static_cast<size_t>(rows * rows) * sizeof(float));
  for (int64_t i = 0; i < rows; i++) u[i * rows + i] = 1.0f;
  const int64_t players = rows + rows % 2;
  bool* rotated = static_cast<bool*>(shared_scratch(0, static_cast<size_t>(players)));
  bool changed = rows > 1;
  for (int sweep = 0; changed && sweep < 30; sweep++) {
    changed = false;
    for (int64_t round = 0; round < players - 1; round++) { // a tournament: every pair once, those of a round at the same time
      parallel(players / 2, [=](int64_t task, int) {
        const int64_t one = task == 0 ? players - 1 : (round + task) % (players - 1);
        const int64_t other = (round + players - 1 - task) % (players - 1);
        const int64_t i = one < other ? one : other, j = one < other ? other : one;
        rotated[task] = j < rows && orthogonalize(x + i * cols, x + j * cols, cols, u + i * rows, u + j * rows, rows);
      });
      for (int64_t task = 0; task < players / 2; task++) changed = changed || rotated[task];
    }
  }
  for (int64_t i = 0; i < rows; i++) {
    const double length = sqrt(dot_rows_f64(x + i * cols, x + i * cols, cols));
    s[i] = static_cast<float>(length);
    const float scale = length > 0.0 ? static_cast<float>(1.0 / length) : 0.0f;
    for_vectors(0, cols, [=](auto at) { at.store(x + i * cols, scale * at.load(x + i * cols)); });
  }
}
