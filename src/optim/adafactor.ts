import { z } from "zod";
import { repeated } from "../core/linalg.js";
import { Tensor } from "../core/tensor.js";
import { defineOptimizer, ownGradient, type UpdateRule, type WeightStep } from "./optimizer.js";

/**
 * Adafactor: as Adam without a first moment, but of a matrix's squared gradients it keeps only the means of rows and of columns, `row` (R) and `column`
 * (C), and takes their product for the whole; of a vector `v`, of its shape. An update whose root mean square is above 1 is scaled down to it.
 * Source: Shazeer & Stern 2018, arXiv:1804.04235, algorithms 4 and 5, as transformers' Adafactor computes it where the Trainer builds it: the learning
 * rate is the recipe's (`scale_parameter` and `relative_step` false), β₂ is 1 − step^−0.8, ε₁ is 1e-30, and decay is apart from the gradient.
 */
export const adafactorRule: UpdateRule = {
  begin({ device, shape }) {
    const zeros = (of: readonly number[]) => ({ tensor: Tensor.zeros(device, of) });
    const [rows, columns] = matrixOf(shape) ?? [];
    return rows === undefined ? { v: zeros(shape) } : { row: zeros([rows]), column: zeros([columns!]) };
  },
  update(step) {
    const { value, learningRate, weightDecay, flaws } = step;
    const { kernels } = value.device;
    const along = ownGradient(step);
    if (matrixOf(value.shape) === null) divideByVector(along, step);
    else divideByMatrix(along, step);
    const squares = Tensor.empty(value.device, [1]);
    kernels.sumSquares(along.id, squares.id, along.size, false);
    kernels.limitRms(along.id, squares.id, along.size);
    kernels.blend(along.id, value.id, flaws.id, value.size, 1 - weightDecay * learningRate, -learningRate);
  },
};

const epsilon = 1e-30;
const decayRate = -0.8;

/** g /= √v */
function divideByVector(g: Tensor, step: WeightStep): void {
  const { kernels } = g.device;
  const v = step.kept.v!.tensor;
  const squares = Tensor.empty(g.device, g.shape);
  kernels.fill(squares.id, epsilon, g.size);
  kernels.mul(g.id, g.id, squares.id, g.size, true);
  follow(v, squares, step);
  kernels.divideSqrt(g.id, v.id, g.id, g.size);
}

/** g (R, C) /= √(row · column / mean(row)) */
function divideByMatrix(g: Tensor, step: WeightStep): void {
  const { kernels } = g.device;
  const { rows, columns } = g;
  const [row, column] = [step.kept.row!.tensor, step.kept.column!.tensor];
  const meansOf = (dots: "rowDots" | "columnDots", many: number, of: number) => {
    const [sums, means] = [Tensor.empty(g.device, [many]), Tensor.empty(g.device, [many])];
    kernels[dots](g.id, g.id, sums.id, rows, columns, false);
    kernels.fill(means.id, epsilon, many);
    kernels.scale(sums.id, means.id, 1 / of, many, true);
    return means;
  };
  follow(row, meansOf("rowDots", rows, columns), step);
  follow(column, meansOf("columnDots", columns, rows), step);

  const mean = Tensor.empty(g.device, [1]);
  kernels.sum(row.id, mean.id, rows, false);
  kernels.scale(mean.id, mean.id, 1 / rows, 1, false);
  kernels.squareRoot(mean.id, mean.id, 1);
  const ofRows = repeated(mean, rows);
  kernels.divideSqrt(ofRows.id, row.id, ofRows.id, rows);
  kernels.scaleRows(g.id, ofRows.id, g.id, rows, columns);
  const ofColumns = Tensor.empty(g.device, [columns]);
  kernels.fill(ofColumns.id, 1, columns);
  kernels.divideSqrt(ofColumns.id, column.id, ofColumns.id, columns);
  kernels.scaleColumns(g.id, ofColumns.id, g.id, rows, columns);
}

/** mean ← β₂ mean + (1 − β₂) x */
function follow(mean: Tensor, x: Tensor, { step, flaws }: WeightStep): void {
  const beta2 = 1 - step ** decayRate;
  x.device.kernels.blend(x.id, mean.id, flaws.id, mean.size, beta2, 1 - beta2);
}

function matrixOf(shape: readonly number[]): readonly number[] | null {
  return shape.length === 2 ? shape : null;
}

export const adafactor = defineOptimizer({
  names: ["adafactor"],
  reads: [],
  args: z.strictObject({}),
  rateFactor: 1, // an update's root mean square is 1 at most, of AdamW's size
  ruleFor: () => () => adafactorRule,
});
