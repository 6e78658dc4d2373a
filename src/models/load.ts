import { z } from "zod";
import type { Device } from "../core/device.js";
import { Tensor, unscoped } from "../core/tensor.js";
import type { DType } from "../engine/dtype.js";
import { ModelError } from "../errors.js";
import type { ModelFiles } from "../io/model-files.js";
import type { TensorSource } from "../io/safetensors.js";
import type { Parameter } from "../nn/module.js";
import type { CausalLM } from "./causal-lm.js";
import { Llama, LlamaConfig } from "./llama.js";

/** A family: the `model_type`s of config.json that it runs, and how to build it. */
interface Family {
  readonly modelTypes: readonly string[];
  build(device: Device, config: unknown): CausalLM;
}

const families: readonly Family[] = [
  { modelTypes: ["llama", "mistral"], build: (device, config) => new Llama(device, LlamaConfig.parse(config)) },
];

/** The model that a config describes, without weights. Throws ModelError for an unknown family or a setting it cannot run. */
export function buildModel(device: Device, config: Readonly<Record<string, unknown>>, where: string): CausalLM {
  const type = config.model_type;
  const family = families.find(({ modelTypes }) => modelTypes.includes(String(type)));
  if (family === undefined) {
    const known = families.flatMap(({ modelTypes }) => modelTypes).join(", ");
    throw new ModelError(
      `${where}: attune does not know the architecture ${JSON.stringify(type)} (model_type). Supported: ${known}`,
    );
  }
  try {
    return family.build(device, config);
  } catch (error) {
    if (error instanceof z.ZodError) throw new ModelError(`${where}: config.json of ${type}: ${z.prettifyError(error)}`);
    throw error;
  }
}

/** A model with its weights. Throws ModelError, as `buildModel` and `loadWeights` do; nothing of it then stays in memory. */
export async function loadModel(device: Device, files: ModelFiles): Promise<CausalLM> {
  const model = buildModel(device, files.config, files.path);
  try {
    await loadWeights(model, files);
    return model;
  } catch (error) {
    model.dispose();
    throw error;
  }
}

/**
 * Reads every weight of `model` from `files`, one tensor after the other, in the type in which it is stored; vectors (norms, biases) are
 * expanded to f32. Throws ModelError if a tensor is missing, left over or of another shape.
 */
export async function loadWeights(model: CausalLM, files: ModelFiles): Promise<void> {
  const left = new Set(files.tensors.keys());
  for (const [name, parameter] of model.namedParameters()) {
    checkEntry(files, name, parameter);
    left.delete(name);
    parameter.value = await readParameter(model.device, files, name);
  }
  // A tied output projection and constants of old checkpoints may be stored as well.
  const known = (name: string) => name.endsWith(".rotary_emb.inv_freq") || name === "lm_head.weight";
  const unknown = [...left].filter((name) => !known(name));
  if (unknown.length > 0)
    throw new ModelError(
      `${files.path}: ${unknown.length} tensors belong to no layer of this architecture: ${unknown.slice(0, 5).join(", ")}`,
    );
}

/** Gives every weight a block of the device in its stored type, without reading: for the symbolic device. */
export function placeWeights(model: CausalLM, files: ModelFiles): void {
  for (const [name, parameter] of model.namedParameters()) {
    const { dtype, shape } = checkEntry(files, name, parameter);
    parameter.value = unscoped(() => Tensor.empty(model.device, shape, shape.length === 1 ? "f32" : dtype));
  }
}

function checkEntry(files: ModelFiles, name: string, parameter: Parameter) {
  const entry = files.tensors.get(name);
  if (entry === undefined) throw new ModelError(`${files.path}: the tensor "${name}" is missing`);
  if (entry.shape.join() !== parameter.shape.join())
    throw new ModelError(
      `${entry.file}: expected "${name}" of shape [${parameter.shape.join(", ")}], got [${entry.shape.join(", ")}]`,
    );
  return entry;
}

async function readParameter(device: Device, files: ModelFiles, name: string): Promise<Tensor> {
  const { dtype, shape } = files.tensors.get(name)!;
  const isVector = shape.length === 1;
  const value = unscoped(() => Tensor.empty(device, shape, isVector ? "f32" : dtype));
  setValues(value, await files.readTensor(name), dtype);
  return value;
}

/** Fills a tensor from the bytes of a file, expanded to f32 where the tensor is f32 and the file's type is another. */
export function setValues(tensor: Tensor, bytes: Uint8Array, dtype: DType): void {
  const { kernels } = tensor.device;
  if (tensor.dtype === dtype) {
    kernels.write(tensor.id, 0, bytes);
    return;
  }
  const stored = unscoped(() => Tensor.empty(tensor.device, tensor.shape, dtype));
  kernels.write(stored.id, 0, bytes);
  kernels.convert(stored.id, dtype, tensor.id, tensor.dtype, tensor.size);
  stored.dispose();
}

/** An f32 tensor as something that can be written: read when its turn comes. The reverse of `setValues`. */
export function sourceOf(name: string, tensor: Tensor): TensorSource {
  return { name, dtype: "f32", shape: tensor.shape, data: async () => new Uint8Array((await tensor.read()).buffer) };
}
