import { z } from "zod";
import { repeated } from "../core/linalg.js";
import { Tensor } from "../core/tensor.js";
import { adamWRule } from "./adamw.js";
import { defineOptimizer, ownGradient, type UpdateRule } from "./optimizer.js";

/**
 * Muon: steps of a matrix W (M, N) go along its momentum made orthogonal, so that all its directions are as large. Keeps the momentum.
 *   momentum ← 0.95 momentum + g;  W −= lr · weightDecay · W;  W −= 0.2 √max(M, N) · lr · orthogonal(g + 0.95 momentum)
 * Source: Jordan 2024, kellerjordan.github.io/posts/muon, with the scale of Liu et al. 2025, arXiv:2502.16982, section 2.2, under which AdamW's rates
 * and decay hold: LLaMA-Factory's third_party/muon. torch.optim.Muon is the same with `adjust_lr_fn="match_rms_adamw"`, and
 * its default scale wants other rates than AdamW. Vectors, embeddings and heads take AdamW's steps, with the recipe's betas, as in LLaMA-Factory;
 * unlike there, biases and norms do not decay.
 */
export const muonRule: UpdateRule = {
  begin: ({ device, shape }) => ({ momentum: { tensor: Tensor.zeros(device, shape) } }),
  update(step) {
    const { value, kept, learningRate, weightDecay, flaws } = step;
    const { kernels } = value.device;
    const blend = (x: Tensor, y: Tensor, keep: number, add: number) => kernels.blend(x.id, y.id, flaws.id, y.size, keep, add);
    const along = ownGradient(step);
    const momentum = kept.momentum!.tensor;
    blend(along, momentum, decay, 1);
    blend(momentum, along, 1, decay);
    const size = 0.2 * Math.sqrt(Math.max(value.rows, value.columns));
    blend(orthogonal(along), value, 1 - learningRate * weightDecay, -size * learningRate);
  },
};

const decay = 0.95;
/** Steepest at 0, so that five rounds bring singular values from nearly 0 to about 1: into [0.7, 1.2]. */
const [a, b, c] = [3.4445, -4.775, 2.0315];
const rounds = 5;
const epsilon = 1e-7;

/**
 * About U Vᵀ of x (M, N) = U S Vᵀ, by Newton–Schulz: x ← a x + (b A + c A²) x with A = x xᵀ, or from the right with A = xᵀ x where that is smaller. Writes
 * into x. Products are the device's, so bf16 where it has it in hardware; the reference always takes bf16.
 */
function orthogonal(x: Tensor): Tensor {
  const { device, rows: m, columns: n } = x;
  const { kernels, compute } = device;
  const [norm, one] = [Tensor.empty(device, [1]), Tensor.empty(device, [1])];
  kernels.fill(one.id, 1, 1);
  kernels.fill(norm.id, epsilon ** 2, 1);
  kernels.sumSquares(x.id, norm.id, x.size, true);
  kernels.divideSqrt(one.id, norm.id, norm.id, 1);
  kernels.scaleRows(x.id, repeated(norm, m).id, x.id, m, n);

  const k = Math.min(m, n);
  const gram = Tensor.empty(device, [k, k]);
  const polynomial = Tensor.empty(device, [k, k]);
  let [from, to] = [x, Tensor.empty(device, x.shape)];
  for (let round = 0; round < rounds; round++) {
    if (k === m) kernels.matmul(from.id, from.id, "f32", gram.id, m, m, n, 1, false, compute);
    else kernels.matmulWeightGrad(from.id, from.id, gram.id, m, n, n, 1, false, compute);
    kernels.scale(gram.id, polynomial.id, b, k * k, false);
    kernels.matmul(gram.id, gram.id, "f32", polynomial.id, k, k, k, c, true, compute);
    kernels.scale(from.id, to.id, a, x.size, false);
    if (k === m) kernels.matmulInputGrad(polynomial.id, from.id, "f32", to.id, m, m, n, 1, true, compute);
    else kernels.matmul(from.id, polynomial.id, "f32", to.id, m, n, n, 1, true, compute);
    [from, to] = [to, from];
  }
  return from;
}

/** Matrices that are no part of a layer: embeddings and heads, by their names in Hugging Face's models and in PEFT's adapters. */
const outsideLayers = /embed|lm_head|(?:^|\.)(?:wte|wpe|score|classifier)\./;

export const muon = defineOptimizer({
  names: ["muon"],
  reads: ["adam_beta1", "adam_beta2", "adam_epsilon"],
  args: z.strictObject({}),
  rateFactor: 1,
  ruleFor(settings) {
    const rest = adamWRule(settings, 32);
    return (name, { shape }) => (shape.length === 2 && !outsideLayers.test(name) ? muonRule : rest);
  },
});
