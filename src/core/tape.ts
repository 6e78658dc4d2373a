import type { Id } from "../engine/kernels.js";
import { ShapeError } from "../errors.js";
import type { Rng } from "./rng.js";
import { checkpointing, owned, PENDING, scope, Tensor, unscoped } from "./tensor.js";

/** What backward starts from: the sum of outputs, each times its seed, is differentiated. */
export interface Root {
  readonly output: Tensor;
  /** A number for a scalar; else one value for each element of the output. */
  readonly seed: number | Float32Array;
}

/** One recorded op: what came out, what its backward needs, and the backward itself, which does nothing where no root depends on the op. */
interface Step {
  readonly output: Tensor;
  readonly saved: readonly Tensor[];
  readonly backward: (grads: Gradients, lossSeeds: ReadonlyMap<Tensor, number>) => void;
}

/** The ops of one forward pass, in order; backward walks them once, from the last to the first. */
class Tape {
  readonly steps: Step[] = [];

  /** Runs `body` and records its ops. */
  record<T>(body: () => T, rng: Rng | null): T {
    try {
      return within(this, rng, () => scope(body));
    } catch (error) {
      this.forget();
      throw error;
    }
  }

  /** Adds the gradients of Σ seed · output to `grad` of every trainable leaf. */
  backward(roots: readonly Root[]): void {
    const grads = new Gradients();
    try {
      within(null, null, () => {
        const lossSeeds = scope(() => plant(roots, grads));
        for (let step = this.steps.at(-1); step !== undefined; step = this.steps.at(-1)) {
          step.backward(grads, lossSeeds);
          this.#pop();
        }
      });
    } finally {
      grads.dispose();
      this.forget();
    }
  }

  /** Gives back what the ops saved for backward. */
  forget(): void {
    while (this.steps.length > 0) this.#pop();
  }

  #pop(): void {
    for (const tensor of this.steps.pop()!.saved) tensor.unsave();
  }

  check({ output, seed }: Root): void {
    const given = typeof seed === "number" ? 1 : seed.length;
    if (given !== output.size)
      throw new ShapeError(
        `backward: expected ${output.size} seeds, one for each element of an output of shape [${output.shape.join(", ")}], got ${given}`,
      );
    if (output.requiresGrad && !output.isLeaf && !this.steps.some((step) => step.output === output))
      throw new ShapeError(`backward: an output of shape [${output.shape.join(", ")}] was not made in this pass`);
  }
}

/** Gives ordinary outputs their seeds as gradients, and returns those of losses that backward computes. */
function plant(roots: readonly Root[], grads: Gradients): ReadonlyMap<Tensor, number> {
  const lossSeeds = new Map<Tensor, number>();
  for (const { output, seed } of roots) {
    if (output.isPending) {
      lossSeeds.set(output, (lossSeeds.get(output) ?? 0) + (typeof seed === "number" ? seed : seed[0]!));
    } else if (output.requiresGrad) {
      const dy = Tensor.from(output.device, typeof seed === "number" ? [seed] : seed, output.shape);
      grads.pass(output, dy);
    }
  }
  return lossSeeds;
}

let currentTape: Tape | null = null;
let currentRng: Rng | null = null;

/** Where the backward of an op puts the gradients of its inputs. */
export class Gradients {
  readonly #of = new Map<Tensor, Tensor>();

  /**
   * Asks for the gradient of `x`: `write` is called with a target of x's shape and whether to add to it. It is not called at all
   * when x needs no gradient.
   */
  into(x: Tensor, write: (target: Id, accumulate: boolean) => void): void {
    if (!x.requiresGrad) return;
    const existing = this.#get(x);
    if (existing === undefined) {
      const target = unscoped(() => Tensor.empty(x.device, x.shape));
      this.#set(x, target); // first: should `write` fail, the target still has an owner
      write(target.id, false);
    } else {
      write(this.#writable(x, existing).id, true);
    }
  }

  /** As `into`, for kernels that can only replace: the target is new, and is added where a gradient stands already. */
  replace(x: Tensor, write: (target: Id) => void): void {
    if (!x.requiresGrad) return;
    scope(() => {
      const target = Tensor.empty(x.device, x.shape);
      write(target.id);
      this.pass(x, target);
    });
  }

  /** The gradient of `x` is `dx` itself (same number of elements): shared, not copied, unless one stands there already. */
  pass(x: Tensor, dx: Tensor): void {
    if (!x.requiresGrad) return;
    const existing = this.#get(x);
    if (existing === undefined) {
      this.#set(
        x,
        unscoped(() => dx.alias(x.shape)),
      );
    } else {
      const target = this.#writable(x, existing);
      x.device.kernels.add(target.id, dx.id, target.id, x.size);
    }
  }

  /** The gradient of a recorded output, which the caller now owns; undefined if nothing depended on it. */
  take(output: Tensor): Tensor | undefined {
    const dy = this.#of.get(output);
    this.#of.delete(output);
    return dy;
  }

  /** Gives up the gradients that no op has taken. */
  dispose(): void {
    for (const dy of this.#of.values()) dy.dispose();
    this.#of.clear();
  }

  #get(x: Tensor): Tensor | undefined {
    return x.isLeaf ? (x.grad ?? undefined) : this.#of.get(x);
  }

  #set(x: Tensor, dx: Tensor): void {
    if (x.isLeaf) x.grad = dx;
    else this.#of.set(x, dx);
  }

  /** A gradient that is shared with another tensor must be copied before it is added to. */
  #writable(x: Tensor, existing: Tensor): Tensor {
    if (existing.isExclusive) return existing;
    const copy = unscoped(() => Tensor.empty(x.device, x.shape));
    x.device.kernels.copy(existing.id, copy.id, x.size);
    existing.dispose();
    this.#set(x, copy);
    return copy;
  }
}

/**
 * Tells the tape how `output` came from `inputs`. Nothing is recorded, and nothing saved, unless a tape is open and an input needs a
 * gradient. `saved` lists what `backward` reads.
 */
export function record(
  output: Tensor,
  inputs: readonly Tensor[],
  saved: readonly Tensor[],
  backward: (dy: Tensor, grads: Gradients) => void,
): Tensor {
  return enter(output, inputs, saved, (grads) => {
    const dy = grads.take(output);
    if (dy === undefined) return;
    try {
      scope(() => backward(dy, grads));
    } finally {
      dy.dispose();
    }
  });
}

/**
 * Records a scalar loss whose value and gradients come from one piece of work: `run` is called at once without a tape, else in backward,
 * with the place for the gradients and the seed that multiplies them. Until then the loss is pending: it can only be a root of backward;
 * to read it, or to feed it to another op, is a ShapeError.
 */
export function recordLoss(
  loss: Tensor,
  inputs: readonly Tensor[],
  saved: readonly Tensor[],
  run: (grads: Gradients | null, seed: number) => void,
): Tensor {
  enter(loss, inputs, saved, (grads, lossSeeds) => {
    const seed = lossSeeds.get(loss);
    if (seed === undefined) return;
    loss.isPending = false;
    scope(() => run(grads, seed));
  });
  if (loss.requiresGrad) loss.isPending = true;
  else scope(() => run(null, 1));
  return loss;
}

/** Puts a step on the tape that is open, if one is and an input needs a gradient. */
function enter(output: Tensor, inputs: readonly Tensor[], saved: readonly Tensor[], backward: Step["backward"]): Tensor {
  if (currentTape === null || !inputs.some((input) => input.requiresGrad)) return output;
  if (inputs.some((input) => input.isPending)) throw new ShapeError(PENDING);
  output.requiresGrad = true;
  output.isLeaf = false;
  for (const tensor of saved) tensor.save();
  currentTape.steps.push({ output, saved, backward });
  return output;
}

/**
 * A forward pass that waits for its backward: numbers are read from `result` in between, and say with which seeds backward starts. The
 * tensors in `result` that the pass made live until `dispose`.
 */
export class Pass<T> {
  readonly result: T;
  readonly #free: () => void;
  #tape: Tape | null;

  constructor(body: () => T, rng: Rng | null) {
    const tape = new Tape();
    const { result, free } = owned(() => tape.record(body, rng));
    this.result = result;
    this.#tape = tape;
    this.#free = free;
  }

  /**
   * Adds the gradients of Σ seed · output to `grad` of every trainable leaf, once. A tensor may be several roots: its seeds add up.
   * Throws ShapeError for a seed of another length than its output, for an output of another pass, and when called again.
   */
  backward(roots: readonly Root[]): void {
    if (this.#tape === null)
      throw new ShapeError("backward: this pass has given its memory back, after backward or dispose: run forward again");
    const tape = this.#tape;
    for (const root of roots) tape.check(root);
    this.#tape = null;
    tape.backward(roots);
  }

  /** Frees the result and, if backward has not run, what was saved for it. */
  dispose(): void {
    this.#tape?.forget();
    this.#tape = null;
    this.#free();
  }
}

/** Runs `body` with a tape; its gradients come later, from `backward` of the pass. `rng` draws dropout masks; without it nothing is dropped. */
export function forward<T>(body: () => T, rng: Rng | null = null): Pass<T> {
  return new Pass(body, rng);
}

/**
 * Runs `body` with a tape and adds the gradients of its scalar result to `grad` of every trainable leaf: forward, and backward with seed 1.
 * Returns the result.
 */
export function differentiate(body: () => Tensor, rng: Rng | null = null): Tensor {
  return scope(() => {
    const tape = new Tape();
    const loss = tape.record(body, rng);
    if (loss.size !== 1) {
      tape.forget();
      throw new ShapeError(`differentiate: expected a scalar loss, got shape [${loss.shape}]`);
    }
    tape.backward([{ output: loss, seed: 1 }]);
    return loss;
  });
}

/**
 * What draws dropout masks in the forward pass that is running; null outside of one, and in one without an Rng: then nothing is
 * dropped.
 */
export function dropoutRng(): Rng | null {
  return currentRng;
}

/** Runs `body` as it would run in the pass that is under way, but drops nothing and adds no noise. */
export function withoutDropout<T>(body: () => T): T {
  return within(currentTape, null, body);
}

/** Runs `body` as if no forward pass were running: nothing is recorded, and nothing is dropped. */
export function outsideOfPass<T>(body: () => T): T {
  return within(null, null, body);
}

/**
 * Gradient checkpointing (Chen et al. 2016, arXiv:1604.06174): while a tape records, what `body` computes for backward gives its
 * memory back and is computed again when backward asks for it; only the result stays. Nothing that no gradient needs is computed
 * twice, such as the last product of a layer. Dropout draws the same masks both times.
 */
export function checkpoint(body: () => Tensor): Tensor {
  return currentTape === null ? body() : checkpointing(() => scope(body));
}

function within<T>(tape: Tape | null, rng: Rng | null, body: () => T): T {
  const outer = { tape: currentTape, rng: currentRng };
  currentTape = tape;
  currentRng = rng;
  try {
    return body();
  } finally {
    currentTape = outer.tape;
    currentRng = outer.rng;
  }
}
