import type { z } from "zod";
import { scope, Tensor, unscoped } from "../core/tensor.js";
import type { Parameter } from "../nn/module.js";

/** What an optimizer keeps of one weight between steps, under the name that checkpoints give it. */
export interface Kept {
  readonly tensor: Tensor;
  /** Of moments in 8 bits, whose blocks are no f32: see `Kernels.adamw8bit`. */
  readonly isBlocks?: boolean;
}

/** A step of one weight. */
export interface WeightStep {
  readonly value: Tensor;
  /** The sum of the step's gradients; `ownGradient` gives one to write into. */
  readonly grad: Tensor;
  /** The mean is `grad` times this, clipping included. */
  readonly gradScale: number;
  readonly kept: Readonly<Record<string, Kept>>;
  readonly learningRate: number;
  readonly weightDecay: number;
  /** Steps that the optimizer has taken, this one included. */
  readonly step: number;
  /** Where kernels count numbers that they leave not finite. */
  readonly flaws: Tensor;
}

/** How weights are updated. */
export interface UpdateRule {
  /** What is kept of a weight, as it is before the first step. */
  begin(value: Tensor): Readonly<Record<string, Kept>>;
  /** Changes weight and what is kept of it. Runs in a scope of its own. */
  update(step: WeightStep): void;
}

/** Settings of a recipe that only some optimizers read. */
export interface RuleSettings {
  readonly beta1: number;
  readonly beta2: number;
  readonly eps: number;
  /** Output of the optimizer's own schema, `args`. */
  readonly args: unknown;
}

/** An optimizer as recipes know it. */
export interface OptimizerKind<Name extends string = string> {
  /** Values of `optim`, transformers' names first: they all mean the same. */
  readonly names: readonly Name[];
  /** Settings of the whole recipe that it reads, of those that not every optimizer reads. */
  readonly reads: readonly OptimizerKey[];
  /** What `optim_args` may say. */
  readonly args: z.ZodType;
  /**
   * What a method's own learning rate, which is AdamW's, is multiplied by where a recipe names none; null where no factor holds, so that the recipe
   * must name a rate.
   */
  readonly rateFactor: number | null;
  /** Whether checkpoints hold moments in blocks of 8 bits. */
  readonly keepsBlocks?: boolean;
  /** The name of one that does nearly the same with less memory. */
  readonly smaller?: string;
  /** The rule for a weight, by its name. */
  ruleFor(settings: RuleSettings): (name: string, value: Tensor) => UpdateRule;
}

export const optimizerKeys = ["adam_beta1", "adam_beta2", "adam_epsilon"] as const;
export type OptimizerKey = (typeof optimizerKeys)[number];

/** The gradient of a step times `gradScale`, to write into: a copy where another parameter's gradient is the same memory. */
export function ownGradient({ grad, gradScale }: WeightStep): Tensor {
  const own = grad.isExclusive ? grad : Tensor.empty(grad.device, grad.shape);
  grad.device.kernels.scale(grad.id, own.id, gradScale, grad.size, false);
  return own;
}

/** Lets TypeScript see the names. */
export const defineOptimizer = <const Name extends string>(kind: OptimizerKind<Name>): OptimizerKind<Name> => kind;

/** Changes the weights of a model once their gradients stand. Owns what it keeps of them. */
export class Optimizer {
  /** Steps taken. */
  step = 0;
  readonly #weights: ReadonlyMap<string, Weight>;
  readonly #flaws: Tensor | undefined;

  /** `weightDecay` is that of each parameter, by its name; one that is not listed does not decay. Throws EngineError if memory is short. */
  constructor(
    parameters: ReadonlyMap<string, Parameter>,
    ruleFor: (name: string, value: Tensor) => UpdateRule,
    weightDecay: ReadonlyMap<string, number>,
  ) {
    const weightOf = (name: string, parameter: Parameter): Weight => {
      const rule = ruleFor(name, parameter.value);
      return { parameter, rule, kept: rule.begin(parameter.value), weightDecay: weightDecay.get(name) ?? 0 };
    };
    this.#weights = unscoped(() => new Map([...parameters].map(([name, parameter]) => [name, weightOf(name, parameter)])));
    const [first] = parameters.values();
    this.#flaws = first && unscoped(() => Tensor.zeros(first.value.device, [1]));
  }

  /** What is kept of the weights, under the names of checkpoints: the parameter's, a dot, and its own. */
  *kept(): Generator<[name: string, kept: Kept]> {
    for (const [parameter, { kept }] of this.#weights)
      for (const [name, one] of Object.entries(kept)) yield [`${parameter}.${name}`, one];
  }

  /** Takes one step along the accumulated gradients, each times `gradScale`, and then frees them. */
  update(learningRate: number, gradScale: number): void {
    this.step++;
    for (const { parameter, rule, kept, weightDecay } of this.#weights.values()) {
      const { value } = parameter;
      const { grad } = value;
      if (grad === null) continue;
      scope(() =>
        rule.update({
          ...{ value, grad, gradScale, kept, weightDecay, step: this.step, flaws: this.#flaws! },
          learningRate: learningRate * parameter.learningRateScale,
        }),
      );
      parameter.zeroGrad();
    }
  }

  /** How many numbers were not finite after an update, summed over all steps so far. Waits for the updates under way. */
  async flaws(): Promise<number> {
    return this.#flaws ? await this.#flaws.item() : 0;
  }

  /** The parameter of which something is kept that is not finite; null if there is none. */
  async firstFlawed(): Promise<string | null> {
    for (const [parameter, { kept }] of this.#weights)
      for (const { tensor, isBlocks } of Object.values(kept)) {
        const words = await tensor.read();
        const every = isBlocks ? tensor.columns : 1; // of a block, only the first word is a number
        if (words.some((word, i) => i % every === 0 && !Number.isFinite(word))) return parameter;
      }
    return null;
  }

  dispose(): void {
    this.#flaws?.dispose();
    for (const { kept } of this.#weights.values()) for (const { tensor } of Object.values(kept)) tensor.dispose();
  }
}

interface Weight {
  readonly parameter: Parameter;
  readonly rule: UpdateRule;
  readonly kept: Readonly<Record<string, Kept>>;
  readonly weightDecay: number;
}
