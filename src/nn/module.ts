import { type Shape, sizeOf, type Tensor } from "../core/tensor.js";
import { ModelError, ShapeError } from "../errors.js";

/** A weight of a module: a shape from the start, a value once it is loaded or initialised. The parameter owns its value. */
export class Parameter {
  readonly shape: Shape;
  /** The weight of the base in whose place this one trains. Putting it back restores the base. */
  readonly original: Parameter | null;
  /** Whether files hold this matrix as (in, out), as transformers' Conv1D does. Blocks of quantized numbers always stand as (out, in). */
  isStoredTransposed = false;
  /** The learning rate is multiplied by this. */
  learningRateScale = 1;
  /** Whether it is saved with the parameters that train although it does not train itself. */
  isSaved = false;
  #value: Tensor | null = null;

  constructor(shape: Shape, value?: Tensor, original: Parameter | null = null) {
    this.shape = shape;
    this.original = original;
    if (value !== undefined) this.value = value;
  }

  /** Its shape in a file that stores plain numbers; blocks of quantized numbers have another. */
  get storedShape(): Shape {
    return this.isStoredTransposed ? [...this.shape].reverse() : this.shape;
  }

  get isLoaded(): boolean {
    return this.#value !== null;
  }

  /** Throws ModelError before a value was set. */
  get value(): Tensor {
    if (this.#value === null) throw new ModelError(`a parameter of shape [${this.shape.join(", ")}] has no value yet`);
    return this.#value;
  }

  /** Takes over `tensor`, made outside any scope, and disposes the value before it. Throws ShapeError. */
  set value(tensor: Tensor) {
    if (tensor.shape.join() !== this.shape.join())
      throw new ShapeError(
        `a parameter of shape [${this.shape.join(", ")}] cannot take a value of shape [${tensor.shape.join(", ")}]`,
      );
    this.#value?.dispose();
    this.#value = tensor;
  }

  get requiresGrad(): boolean {
    return this.#value?.requiresGrad ?? false;
  }

  set requiresGrad(wanted: boolean) {
    this.value.requiresGrad = wanted;
  }

  get size(): number {
    return sizeOf(this.shape);
  }

  /** Frees the gradient. */
  zeroGrad(): void {
    this.#value?.grad?.dispose();
    if (this.#value !== null) this.#value.grad = null;
  }

  dispose(): void {
    this.zeroGrad();
    this.#value?.dispose();
    this.#value = null;
  }
}

/**
 * A part of a model. Its children are its own properties that are modules, parameters, or arrays of modules; their names joined by dots
 * are the keys under which Hugging Face saves the weights, so properties that hold weights keep Hugging Face's spelling.
 */
export abstract class Module {
  *namedChildren(): Generator<[name: string, child: Module | Parameter]> {
    for (const [name, value] of Object.entries(this)) {
      if (value instanceof Module || value instanceof Parameter) yield [name, value];
      else if (Array.isArray(value))
        for (const [i, item] of value.entries()) if (item instanceof Module) yield [`${name}.${i}`, item];
    }
  }

  /** This module and all below it, parents first. */
  *namedModules(prefix = ""): Generator<[path: string, module: Module]> {
    yield [prefix, this];
    for (const [name, child] of this.namedChildren())
      if (child instanceof Module) yield* child.namedModules(prefix === "" ? name : `${prefix}.${name}`);
  }

  /** Every parameter once: a tied one under its first name. */
  *namedParameters(): Generator<[name: string, parameter: Parameter]> {
    const seen = new Set<Parameter>();
    for (const [path, module] of this.namedModules())
      for (const [name, child] of module.namedChildren())
        if (child instanceof Parameter && !seen.has(child)) {
          seen.add(child);
          yield [path === "" ? name : `${path}.${name}`, child];
        }
  }

  /** The parameters that train, under the names that namedParameters gives them. */
  trainableParameters(): Map<string, Parameter> {
    return new Map([...this.namedParameters()].filter(([, parameter]) => parameter.requiresGrad));
  }

  /** The parameters that must be saved for training to go on: those that train, and those that are saved with them. */
  savedParameters(): Map<string, Parameter> {
    return new Map([...this.namedParameters()].filter(([, parameter]) => parameter.requiresGrad || parameter.isSaved));
  }

  /**
   * Puts a module or a parameter in the place of the one at `path`, or of a null that waits there for one. Throws ModelError if there is no such
   * place.
   */
  replace(path: string, part: Module | Parameter): void {
    const names = path.split(".");
    const last = names.pop()!;
    let place: unknown = this;
    for (const name of names) place = (place as Record<string, unknown> | undefined)?.[name];
    const slots = place as Record<string, unknown> | undefined;
    const before = slots?.[last];
    const kind = part instanceof Module ? Module : Parameter;
    if (!(before instanceof kind) && before !== null)
      throw new ModelError(`there is no ${part instanceof Module ? "module" : "parameter"} "${path}" to replace`);
    slots![last] = part;
  }

  freeze(): void {
    for (const [, parameter] of this.namedParameters()) if (parameter.isLoaded) parameter.requiresGrad = false;
  }

  zeroGrad(): void {
    for (const [, parameter] of this.namedParameters()) parameter.zeroGrad();
  }

  dispose(): void {
    for (const [, parameter] of this.namedParameters()) {
      parameter.dispose();
      parameter.original?.dispose();
    }
  }
}
