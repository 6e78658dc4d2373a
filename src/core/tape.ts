import type { Id } from "../engine/kernels.js";
import { ShapeError } from "../errors.js";
import type { Rng } from "./rng.js";
import { checkpointing, scope, Tensor, unscoped } from "./tensor.js";

/** One recorded op: what came out, what went in, what its backward needs, and the backward itself. */
interface Step {
  readonly output: Tensor;
  readonly inputs: readonly Tensor[];
  readonly saved: readonly Tensor[];
  readonly backward: (dy: Tensor, grads: Gradients) => void;
}

/** The ops of one forward pass, in order; backward walks them once, from the last to the first. */
class Tape {
  readonly steps: Step[] = [];
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
      write(target.id, false);
      this.#set(x, target);
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
  if (currentTape === null || !inputs.some((input) => input.requiresGrad)) return output;
  if (inputs.some((input) => lazyLosses.has(input)))
    throw new ShapeError("a loss can only be differentiated: no op may follow it");
  output.requiresGrad = true;
  output.isLeaf = false;
  for (const tensor of saved) tensor.save();
  currentTape.steps.push({ output, inputs, saved, backward });
  return output;
}

/**
 * Records a scalar loss whose value and gradients come from one piece of work: `run` is called at once without a tape, else in backward,
 * with the place for the gradients. The loss must then be what is differentiated; feeding it to another op is a ShapeError.
 */
export function recordLoss(
  loss: Tensor,
  inputs: readonly Tensor[],
  saved: readonly Tensor[],
  run: (grads: Gradients | null) => void,
): Tensor {
  record(loss, inputs, saved, (_dy, grads) => run(grads));
  if (loss.requiresGrad) lazyLosses.add(loss);
  else scope(() => run(null));
  return loss;
}

const lazyLosses = new WeakSet<Tensor>();

/**
 * Runs `forward` with a tape and adds the gradients of its scalar result to `grad` of every trainable leaf. Returns the result. `rng` draws
 * dropout masks; without it nothing is dropped.
 */
export function differentiate(forward: () => Tensor, rng: Rng | null = null): Tensor {
  return scope(() => {
    const tape = new Tape();
    const loss = within(tape, rng, () => scope(forward));
    if (loss.size !== 1) throw new ShapeError(`differentiate: expected a scalar loss, got shape [${loss.shape}]`);
    const one = Tensor.empty(loss.device, loss.shape);
    loss.device.kernels.fill(one.id, 1, 1);
    runBackward(tape, loss, one);
    return loss;
  });
}

/** Draws dropout masks; null where nothing is to be dropped, which is everywhere but inside `differentiate` with an Rng. */
export function dropoutRng(): Rng | null {
  return currentRng;
}

/**
 * Gradient checkpointing (Chen et al. 2016, arXiv:1604.06174): while a tape records, what `body` computes for backward gives its memory back
 * and is computed again when backward asks for it; only the result is kept. Nothing that no gradient needs is computed twice, such as the
 * last product of a layer. Dropout draws the same masks both times.
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

function runBackward(tape: Tape, output: Tensor, seed: Tensor): void {
  within(null, null, () => {
    const grads = new Gradients();
    grads.pass(output, seed);
    for (let step = tape.steps.pop(); step !== undefined; step = tape.steps.pop()) {
      const { saved, backward } = step;
      const dy = grads.take(step.output);
      if (dy !== undefined) {
        scope(() => backward(dy, grads));
        dy.dispose();
      }
      for (const tensor of saved) tensor.unsave();
    }
  });
}
