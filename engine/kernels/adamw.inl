// Source: Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2, in the form of torch.optim.AdamW: decay is multiplied by lr.
static void adamw(float* p, const float* g, float* m, float* v, int64_t count, const AdamWStep& step) {
  // Constants are rounded once, after they were worked out: 1 − β₂ from a β₂ in f32 would be off by 5e-5.
  const float beta1 = static_cast<float>(step.beta1), one_minus_beta1 = static_cast<float>(1.0 - step.beta1);
  const float beta2 = static_cast<float>(step.beta2), one_minus_beta2 = static_cast<float>(1.0 - step.beta2);
  const float decay = static_cast<float>(1.0 - step.lr * step.weight_decay), size = static_cast<float>(step.lr / step.correction1);
  const float root = static_cast<float>(sqrt(step.correction2)), eps = static_cast<float>(step.eps);
  const float grad_scale = static_cast<float>(step.grad_scale);
  for_chunks(count, chunk_elements, [=](int64_t begin, int64_t end) {
#pragma omp simd
    for (int64_t i = begin; i < end; i++) {
      const float grad = g[i] * grad_scale;
      m[i] = beta1 * m[i] + one_minus_beta1 * grad;
      v[i] = beta2 * v[i] + one_minus_beta2 * grad * grad;
      p[i] = p[i] * decay - size * m[i] / (sqrtf(v[i]) / root + eps);
    }
  });
}
