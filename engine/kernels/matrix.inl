static void scale_rows(const float* x, const float* scale, float* y, int64_t rows, int64_t cols) {
  for_chunks(rows, chunk_rows(cols), [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row++) {
      const float* in = x + row * cols;
      float* out = y + row * cols;
      const float factor = scale[row];
      for_vectors(0, cols, [=](auto at) { at.store(out, factor * at.load(in)); });
    }
  });
}

static void scale_columns(const float* x, const float* scale, float* y, int64_t rows, int64_t cols) {
  for_chunks(rows, chunk_rows(cols), [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row++) {
      const float* in = x + row * cols;
      float* out = y + row * cols;
      for_vectors(0, cols, [=](auto at) { at.store(out, at.load(scale) * at.load(in)); });
    }
  });
}

static void row_dots(const float* a, const float* b, float* y, int64_t rows, int64_t cols, bool accumulate) {
  for_chunks(rows, chunk_rows(cols), [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row++) {
      const float* p = a + row * cols;
      const float* q = b + row * cols;
      const float dot = sum_row(cols, [=](auto at) { return at.load(p) * at.load(q); });
      y[row] = accumulate ? y[row] + dot : dot;
    }
  });
}

static void column_dots(const float* a, const float* b, float* y, int64_t rows, int64_t cols, bool accumulate) {
  reduce_rows(y, rows, cols, accumulate, [=](auto at, int64_t row) { return at.load(a + row * cols) * at.load(b + row * cols); });
}

// Square tiles: a tile's rows, and its columns in y, stay in the cache while it is turned.
static void transpose(const float* x, float* y, int64_t rows, int64_t cols) {
  constexpr int64_t tile = 16;
  for_chunks((cols + tile - 1) / tile, chunk_rows(rows * tile), [=](int64_t begin, int64_t end) {
    const int64_t last_col = end * tile < cols ? end * tile : cols;
    for (int64_t col = begin * tile; col < last_col; col += tile) {
      const int64_t col_end = col + tile < last_col ? col + tile : last_col;
      for (int64_t row = 0; row < rows; row += tile) {
        const int64_t row_end = row + tile < rows ? row + tile : rows;
        for (int64_t j = col; j < col_end; j++)
          for (int64_t i = row; i < row_end; i++) y[j * rows + i] = x[i * cols + j];
      }
    }
  });
}

static void square_root(const float* x, float* y, int64_t count) {
  for_chunks(count, chunk_elements, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) y[i] = sqrtf(x[i]);
  });
}

static void divide_sqrt(const float* x, const float* squares, float* y, int64_t count) {
  for_chunks(count, chunk_elements, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) y[i] = squares[i] > 0.0f ? x[i] / sqrtf(squares[i]) : 0.0f;
  });
}
