import { converted } from "../core/linalg.js";
import { type Tensor, unscoped } from "../core/tensor.js";
import type { LanguageModel } from "../models/language-model.js";
import { Parameter } from "../nn/module.js";
import { isBelow } from "./module-names.js";

/** Lets a loaded weight train in its place, in f32. */
export function trainWhole(parameter: Parameter): void {
  if (parameter.value.dtype !== "f32") parameter.value = inFloats(parameter.value);
  parameter.requiresGrad = true;
}

/** A weight in f32, for the caller to dispose: the optimizer's small steps would be lost in 8 bits of mantissa. */
function inFloats(stored: Tensor): Tensor {
  return unscoped(() => converted(stored, "f32"));
}

/**
 * Lets copies of weights train in their places, so that the base stays as it was: those of the modules of these names, or of names that end so
 * after a dot; PEFT's modules_to_save. A weight that two modules share is shared no longer.
 */
export function trainModules(model: LanguageModel, names: readonly string[]): void {
  trainCopies(model, (path) => isInModule(path, names));
}

/** The same for the parameters that `isWanted` chooses by their paths. */
export function trainCopies(model: LanguageModel, isWanted: (path: string) => boolean): void {
  replaceByCopies(model, isWanted, (copy) => {
    copy.requiresGrad = true;
  });
}

/** Puts copies in the places of parameters whose values an adapter brings. They do not train, but are saved with what does. */
export function saveCopies(model: LanguageModel, isWanted: (path: string) => boolean): void {
  replaceByCopies(model, isWanted, (copy) => {
    copy.isSaved = true;
  });
}

function replaceByCopies(model: LanguageModel, isWanted: (path: string) => boolean, mark: (copy: Parameter) => void): void {
  for (const [place, module] of model.namedModules())
    for (const [name, parameter] of module.namedChildren()) {
      const path = place === "" ? name : `${place}.${name}`;
      if (!(parameter instanceof Parameter) || parameter.requiresGrad || !isWanted(path)) continue;
      const copy = new Parameter(parameter.shape, inFloats(parameter.value), parameter);
      copy.isStoredTransposed = parameter.isStoredTransposed;
      mark(copy);
      model.replace(path, copy);
    }
}

/** The parameters of the modules of these names. */
export function* parametersBelow(
  model: LanguageModel,
  names: readonly string[],
): Generator<[name: string, parameter: Parameter]> {
  for (const [name, parameter] of model.namedParameters()) if (isInModule(name, names)) yield [name, parameter];
}

/** Whether a parameter is in one of the modules of these names. */
function isInModule(parameterPath: string, names: readonly string[]): boolean {
  const module = parameterPath.slice(0, Math.max(0, parameterPath.lastIndexOf(".")));
  return names.some((name) => isBelow(module, name));
}
