import { Tensor, unscoped } from "../core/tensor.js";
import type { LanguageModel } from "../models/language-model.js";
import type { Parameter } from "../nn/module.js";

/**
 * Lets a loaded weight train as it is. One stored in another type is expanded to f32 first: the optimizer's small steps would be lost in 8 bits of
 * mantissa.
 */
export function trainWhole(parameter: Parameter): void {
  const stored = parameter.value;
  if (stored.dtype !== "f32") {
    const expanded = unscoped(() => Tensor.empty(stored.device, stored.shape));
    stored.device.kernels.convert(stored.id, stored.dtype, expanded.id, "f32", stored.size);
    parameter.value = expanded;
  }
  parameter.requiresGrad = true;
}

/** Lets the modules of these names, or of names that end so after a dot, train whole; PEFT's modules_to_save. */
export function trainModules(model: LanguageModel, names: readonly string[]): void {
  for (const [, parameter] of parametersBelow(model, names)) trainWhole(parameter);
}

/** The parameters of the modules of these names. */
export function* parametersBelow(
  model: LanguageModel,
  names: readonly string[],
): Generator<[name: string, parameter: Parameter]> {
  for (const [name, parameter] of model.namedParameters())
    if (names.some((wanted) => `.${name}`.includes(`.${wanted}.`))) yield [name, parameter];
}
