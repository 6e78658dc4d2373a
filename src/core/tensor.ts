import { bytesOf, type DType, isWholeBlocks } from "../engine/dtype.js";
import type { Id } from "../engine/kernels.js";
import { ShapeError } from "../errors.js";
import type { Device } from "./device.js";

export type Shape = readonly number[];

/** Why the contents of a pending tensor cannot be used. */
export const PENDING =
  "a loss was used before backward had computed it: make it a root of backward, then read it; no op may follow it on the tape";

/** Work that can write a storage's contents again, from tensors that it keeps alive until then. */
export interface Remake {
  readonly from: readonly Tensor[];
  readonly write: (id: Id) => void;
}

/**
 * Memory behind one or more tensors. It lives while somebody claims it: *holders* (a scope, an owner, a gradient), or *saves*
 * (the tape needs the contents in backward). Once only saves remain, the contents *rest* until backward: what is cheap to compute
 * again gives its memory back; the rest is stored in bf16 where products round to bf16 anyway.
 */
class Storage {
  #id: Id | null;
  #holders = 1;
  #saves = 0;
  #remake: Remake | null = null;
  /** The contents in bf16 while they rest. */
  #half: Id | null = null;
  #hasRested = false;
  /** The contents are yet to come. */
  isPending = false;

  constructor(
    readonly device: Device,
    readonly bytes: number,
    /** f32 contents that may be rounded to bf16 for backward. */
    public mayRound: boolean,
    id: Id = device.kernels.alloc(bytes),
  ) {
    this.#id = id;
  }

  get id(): Id {
    if (this.isPending) throw new ShapeError(PENDING);
    this.#id ??= this.#wake();
    return this.#id;
  }

  /** True if whoever holds the only claim may overwrite the contents. */
  get isExclusive(): boolean {
    return this.#holders === 1 && this.#saves === 0;
  }

  set remake(remake: Remake) {
    for (const tensor of remake.from) tensor.save();
    this.#remake = remake;
  }

  /**
   * To be called before contents are changed in place. They can then still be computed again if they could before and `change`
   * repeats the change.
   */
  changeBy(change: Remake | null): void {
    const before = this.#remake;
    if (before === null) return;
    if (change === null) {
      this.forgetRemake();
      return;
    }
    for (const tensor of change.from) tensor.save();
    this.#remake = {
      from: [...before.from, ...change.from],
      write(id) {
        before.write(id);
        change.write(id);
      },
    };
  }

  forgetRemake(): void {
    const from = this.#remake?.from ?? [];
    this.#remake = null;
    for (const tensor of from) tensor.unsave();
  }

  hold(): void {
    this.#holders++;
  }

  save(): void {
    this.#saves++;
  }

  drop(): void {
    this.#holders--;
    this.#settle();
  }

  unsave(): void {
    this.#saves--;
    this.#settle();
  }

  #settle(): void {
    if (this.#holders > 0) return;
    if (this.#saves > 0) {
      if (!this.#hasRested) this.#rest();
      return;
    }
    const { kernels } = this.device;
    if (this.#id !== null) kernels.free(this.#id);
    if (this.#half !== null) kernels.free(this.#half);
    this.#id = this.#half = null;
    this.forgetRemake();
  }

  #rest(): void {
    const { kernels } = this.device;
    if (this.#id === null || (this.#remake === null && !this.mayRound)) return;
    if (this.#remake === null) {
      this.#half = kernels.alloc(this.bytes / 2);
      kernels.convert(this.#id, "f32", this.#half, "bf16", this.bytes / 4);
    }
    kernels.free(this.#id);
    this.#id = null;
    this.#hasRested = true;
  }

  #wake(): Id {
    const { kernels } = this.device;
    if (this.#saves === 0 || !this.#hasRested) throw new ShapeError("a tensor was used after its scope had ended");
    const id = kernels.alloc(this.bytes);
    if (this.#half === null) {
      this.#remake!.write(id);
    } else {
      kernels.convert(this.#half, "bf16", id, "f32", this.bytes / 4);
      kernels.free(this.#half);
      this.#half = null;
    }
    return id;
  }
}

/**
 * A dense row-major array on a device. Ops make new tensors; a tensor made inside a `scope` lives until the scope ends, unless it
 * is returned from it or saved by the tape.
 */
export class Tensor {
  readonly shape: Shape;
  readonly dtype: DType;
  readonly device: Device;
  /** True for trainable leaves and for what is computed from them while a tape records. */
  requiresGrad = false;
  /** True if a trainable leaf: `grad` adds up over backward passes. */
  isLeaf = true;
  grad: Tensor | null = null;
  #storage: Storage | null;
  #isDropped = false;
  #saves = 0;

  private constructor(storage: Storage, shape: Shape, dtype: DType) {
    this.#storage = storage;
    this.shape = shape;
    this.dtype = dtype;
    this.device = storage.device;
  }

  /** Contents undefined. Throws ShapeError if rows of a block type are not whole blocks, EngineError if memory is short. */
  static empty(device: Device, shape: Shape, dtype: DType = "f32"): Tensor {
    const columns = shape.at(-1) ?? 1;
    for (const length of shape)
      if (!Number.isSafeInteger(length) || length < 0) throw new ShapeError(`expected whole lengths in a shape, got [${shape}]`);
    if (!isWholeBlocks(dtype, columns)) throw new ShapeError(`rows of ${columns} are not whole ${dtype} blocks`);
    const mayRound = dtype === "f32" && device.compute === "bf16";
    const tensor = new Tensor(new Storage(device, bytesOf(dtype, sizeOf(shape)), mayRound), shape, dtype);
    currentScope?.push(tensor);
    return tensor;
  }

  static zeros(device: Device, shape: Shape): Tensor {
    const tensor = Tensor.empty(device, shape);
    device.kernels.fill(tensor.id, 0, tensor.size);
    return tensor;
  }

  static from(device: Device, values: Float32Array | readonly number[], shape: Shape): Tensor {
    const data = values instanceof Float32Array ? values : Float32Array.from(values);
    if (data.length !== sizeOf(shape))
      throw new ShapeError(`expected ${sizeOf(shape)} values for shape [${shape}], got ${data.length}`);
    const tensor = Tensor.empty(device, shape);
    device.kernels.write(tensor.id, 0, data);
    return tensor;
  }

  get size(): number {
    return sizeOf(this.shape);
  }

  /** Length of the last dimension, and how many such rows there are. */
  get columns(): number {
    return this.shape.at(-1) ?? 1;
  }

  get rows(): number {
    return this.columns === 0 ? 0 : this.size / this.columns;
  }

  /** The memory, to hand to a kernel now. Throws ShapeError after the tensor's life has ended. */
  get id(): Id {
    return this.#alive().id;
  }

  /** Rows [start, start + count) as a tensor on the same memory: (count, columns). For kernels only: the tape does not see it. */
  rowRange(start: number, count: number): Tensor {
    if (start < 0 || count < 0 || start + count > this.rows)
      throw new ShapeError(`rowRange: rows ${start} to ${start + count} are outside [${this.shape.join(", ")}]`);
    if (this.dtype !== "f32")
      throw new ShapeError(`rowRange: expected f32, whose rows lie at equal distances, got ${this.dtype}`);
    const rowBytes = bytesOf(this.dtype, this.columns);
    const { kernels } = this.device;
    const view = kernels.view(this.id, start * rowBytes, count * rowBytes);
    const tensor = new Tensor(new Storage(this.device, count * rowBytes, false, view), [count, this.columns], this.dtype);
    currentScope?.push(tensor);
    return tensor;
  }

  /** A second tensor on the same memory, perhaps under another shape; a leaf of its own for the tape. */
  alias(shape: Shape = this.shape): Tensor {
    const storage = this.#alive();
    storage.hold();
    const tensor = new Tensor(storage, shape, this.dtype);
    tensor.requiresGrad = this.requiresGrad;
    currentScope?.push(tensor);
    return tensor;
  }

  /**
   * A tensor of the same shape for an op that may work in place: this one's memory if nobody else needs it (this tensor then must not be
   * used again), else new memory with undefined contents. `change` does the op's work once more, on this tensor's contents.
   */
  reuse(change: Remake): Tensor {
    const storage = this.#alive();
    const isLeaf = this.requiresGrad && this.isLeaf;
    if (isLeaf || !storage.isExclusive || !currentScope?.includes(this)) {
      const tensor = Tensor.empty(this.device, this.shape);
      tensor.remakeIfCheckpointed([this, ...change.from], (id) => {
        this.device.kernels.copy(this.id, id, this.size);
        change.write(id);
      });
      return tensor;
    }
    storage.changeBy(isCheckpointing ? change : null);
    const tensor = this.alias();
    tensor.requiresGrad = false;
    this.dispose();
    return tensor;
  }

  /** Gives the way to compute the contents again: while only the tape needs them, their memory may be freed. */
  remakeFrom(from: readonly Tensor[], write: (id: Id) => void): void {
    this.#alive().remake = { from, write };
  }

  /** The same for contents that are not cheap to compute again: their memory goes only inside `checkpointing`. */
  remakeIfCheckpointed(from: readonly Tensor[], write: (id: Id) => void): void {
    if (isCheckpointing) this.remakeFrom(from, write);
  }

  /** Says that the contents shall not be computed again. */
  remakeNever(): this {
    this.#alive().forgetRemake();
    return this;
  }

  /** Says that backward needs every bit of the contents, even where products round to bf16. Returns the tensor. */
  keepExact(): this {
    this.#alive().mayRound = false;
    return this;
  }

  /** True while the contents are yet to come: those of a loss that backward computes. */
  get isPending(): boolean {
    return this.#storage?.isPending ?? false;
  }

  set isPending(isPending: boolean) {
    this.#alive().isPending = isPending;
  }

  /** True if nobody else claims the memory. */
  get isExclusive(): boolean {
    return this.#alive().isExclusive;
  }

  /** Copies the values out, when all work queued before is done. f32 only. */
  async read(): Promise<Float32Array> {
    if (this.dtype !== "f32") throw new ShapeError(`read: expected an f32 tensor, got ${this.dtype}`);
    const values = new Float32Array(this.size);
    await this.device.kernels.read(this.id, 0, values);
    return values;
  }

  /** The one value of a scalar. */
  async item(): Promise<number> {
    const values = await this.read();
    if (values.length !== 1) throw new ShapeError(`item: expected one value, the shape is [${this.shape}]`);
    return values[0]!;
  }

  /**
   * Ends this tensor's claim to its memory. A scope does this at its end; whoever owns a tensor that was kept (a module, a
   * cache) does it by hand.
   */
  dispose(): void {
    const storage = this.#storage;
    if (storage === null || this.#isDropped) return;
    this.#isDropped = true;
    storage.drop();
    if (this.#saves === 0) this.#storage = null;
  }

  /** The tape's claim: contents stay readable, or can be remade, until `unsave`. */
  save(): void {
    this.#alive().save();
    this.#saves++;
  }

  unsave(): void {
    const storage = this.#alive();
    this.#saves--;
    storage.unsave();
    if (this.#isDropped && this.#saves === 0) this.#storage = null;
  }

  #alive(): Storage {
    if (this.#storage === null) throw new ShapeError(`a tensor of shape [${this.shape}] was used after its life had ended`);
    return this.#storage;
  }
}

let currentScope: Tensor[] | null = null;
let isCheckpointing = false;

/** Runs `body` so that what it makes may give its memory back until backward needs it, all but the result. */
export function checkpointing(body: () => Tensor): Tensor {
  const outer = isCheckpointing;
  isCheckpointing = true;
  try {
    return body().remakeNever();
  } finally {
    isCheckpointing = outer;
  }
}

/**
 * Runs `body` and frees every tensor made in it, except those in its result (a tensor, or an array or plain object of tensors): these pass
 * to the scope around it, or to the caller. `body` must be synchronous: work is only queued, so nothing waits inside.
 */
export function scope<T>(body: () => T): T {
  const outer = currentScope;
  const mine: Tensor[] = [];
  currentScope = mine;
  let result: T;
  try {
    result = body();
  } catch (error) {
    for (const tensor of mine) tensor.dispose();
    throw error;
  } finally {
    currentScope = outer;
  }
  const kept = new Set(tensorsIn(result));
  // Last made, first freed: what could be remade then no longer asks for what it is made from.
  for (const tensor of mine.reverse()) {
    if (!kept.has(tensor)) tensor.dispose();
    else outer?.push(tensor);
  }
  return result;
}

/** As `scope`, for results that may outlive every scope around: what of them was made in `body` lives until `free` is called. */
export function owned<T>(body: () => T): { result: T; free: () => void } {
  const outer = currentScope;
  const mine: Tensor[] = [];
  currentScope = mine;
  try {
    const result = scope(body);
    return {
      result,
      free: () => {
        for (const tensor of mine) tensor.dispose();
      },
    };
  } finally {
    currentScope = outer;
  }
}

/** Runs `body` outside any scope: what it makes belongs to the caller, who disposes it. For parameters, caches and optimizer state. */
export function unscoped<T>(body: () => T): T {
  const outer = currentScope;
  currentScope = null;
  try {
    return body();
  } finally {
    currentScope = outer;
  }
}

function tensorsIn(value: unknown): Tensor[] {
  if (value instanceof Tensor) return [value];
  if (Array.isArray(value)) return value.flatMap(tensorsIn);
  if (typeof value === "object" && value !== null && Object.getPrototypeOf(value) === Object.prototype)
    return Object.values(value).flatMap(tensorsIn);
  return [];
}

export function sizeOf(shape: Shape): number {
  return shape.reduce((product, length) => product * length, 1);
}

/** Throws ShapeError unless `tensor` has the expected shape; `why` says where the expectation comes from. */
export function checkShape(op: string, name: string, tensor: Tensor, expected: Shape, why: string): void {
  if (tensor.shape.length === expected.length && tensor.shape.every((length, i) => length === expected[i])) return;
  throw new ShapeError(`${op}: expected ${name} of shape [${expected.join(", ")}] (${why}), got [${tensor.shape.join(", ")}]`);
}

/** Throws ShapeError unless every tensor is f32. */
export function checkFloat(op: string, tensors: Readonly<Record<string, Tensor>>): void {
  for (const [name, tensor] of Object.entries(tensors))
    if (tensor.dtype !== "f32") throw new ShapeError(`${op}: expected ${name} in f32, got ${tensor.dtype}`);
}
