import { converted } from "../core/linalg.js";
import { scope, Tensor, unscoped } from "../core/tensor.js";
import type { DType } from "../engine/dtype.js";
import type { ModelFiles } from "../io/model-files.js";
import type { LanguageModel } from "../models/language-model.js";
import { type StoreWeight, setValues } from "../models/load.js";
import type { Parameter } from "../nn/module.js";

/** What rounding to stored types leaves of the change Δ that a merge made, with Q the rounding: of Q(W + Δ) − Q(W). */
export interface SurvivingChange {
  /** ⟨Q(W+Δ) − Q(W), Δ⟩ / ‖Δ‖²: how much of Δ is there along its own direction. 1: all of it; 0: it drowned. */
  readonly along: number;
  /** ‖Q(W+Δ) − Q(W)‖ / ‖Δ‖: above `along`, the rest is noise. */
  readonly size: number;
  /** Share of the changed matrices' numbers that stay as they were. */
  readonly unchanged: number;
}

/** Rows of a matrix that are looked at, spread evenly. */
const sampledRows = 64;

/** Sums over matrices of what a rounding leaves. */
class Sums {
  #delta = 0;
  #moved = 0;
  #along = 0;
  #same = 0;
  #count = 0;

  add(before: Float32Array, after: Float32Array, roundedBefore: Float32Array, roundedAfter: Float32Array): void {
    for (let i = 0; i < before.length; i++) {
      const delta = after[i]! - before[i]!;
      const moved = roundedAfter[i]! - roundedBefore[i]!;
      this.#delta += delta * delta;
      this.#moved += moved * moved;
      this.#along += moved * delta;
      if (moved === 0) this.#same++;
    }
    this.#count += before.length;
  }

  get result(): SurvivingChange | null {
    if (this.#delta === 0) return null;
    const size = Math.sqrt(this.#moved / this.#delta);
    return { along: this.#along / this.#delta, size, unchanged: this.#same / this.#count };
  }
}

/**
 * What each of some roundings leaves of a merge, over the matrices that it changed: those of `merged`, in f32, that are not among `before`. W is read from
 * the files again, one matrix at a time, stored as `store` says. `settle` may round a matrix its own way first. Null for each where nothing changed that
 * the files hold.
 */
export async function survivingChanges(
  merged: LanguageModel,
  before: ReadonlySet<Parameter>,
  { files, store }: { readonly files: ModelFiles; readonly store: StoreWeight | undefined },
  roundings: readonly ((name: string, weight: Tensor) => readonly DType[])[],
  settle: (name: string, parameter: Parameter) => Promise<void>,
): Promise<(SurvivingChange | null)[]> {
  const sums = roundings.map(() => new Sums());
  for (const [name, parameter] of merged.namedParameters()) {
    const { value } = parameter;
    const entry = files.tensors.get(name);
    if (before.has(parameter) || value.shape.length !== 2) continue;
    if (entry === undefined) {
      await settle(name, parameter);
      continue;
    }
    const original = await originalOf(files, name, parameter, store);
    try {
      const [w, after] = [await rowsOf(original), await rowsOf(value)];
      await settle(name, parameter);
      for (const [i, rounding] of roundings.entries()) {
        const types = rounding(name, value);
        sums[i]!.add(w, after, await rounded(original, types), await rounded(value, types));
      }
    } finally {
      original.dispose();
    }
  }
  return sums.map(({ result }) => result);
}

/** W in f32. */
async function originalOf(
  files: ModelFiles,
  name: string,
  parameter: Parameter,
  store: StoreWeight | undefined,
): Promise<Tensor> {
  const { value, isStoredTransposed } = parameter;
  const { dtype } = files.tensors.get(name)!;
  const read = unscoped(() => Tensor.empty(value.device, value.shape, dtype));
  setValues(read, await files.readTensor(name), dtype, isStoredTransposed);
  const stored = unscoped(() => store?.(name, read) ?? read);
  const plain = unscoped(() => converted(stored, "f32"));
  for (const tensor of new Set([read, stored])) tensor.dispose();
  return plain;
}

async function rounded(tensor: Tensor, types: readonly DType[]): Promise<Float32Array> {
  const result = unscoped(() => scope(() => converted(types.reduce(converted, tensor), "f32")));
  try {
    return await rowsOf(result);
  } finally {
    result.dispose();
  }
}

/** Some rows of an f32 matrix, one behind the other. */
async function rowsOf(tensor: Tensor): Promise<Float32Array> {
  const [rows, columns] = tensor.shape as [number, number];
  const count = Math.min(rows, sampledRows);
  const values = new Float32Array(count * columns);
  for (let i = 0; i < count; i++) {
    const row = Math.floor((i * rows) / count);
    await tensor.device.kernels.read(tensor.id, 4 * row * columns, values.subarray(i * columns, (i + 1) * columns));
  }
  return values;
}
