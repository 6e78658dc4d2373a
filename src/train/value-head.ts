import type { Device } from "../core/device.js";
import { ModelError } from "../errors.js";
import { openValueHead, writeValueHead } from "../io/adapters/value-head.js";
import { setValues, sourceOf } from "../models/load.js";
import { drawn } from "../nn/init.js";
import { Linear } from "../nn/linear.js";
import type { Module } from "../nn/module.js";

/** A head of one output over every token, which begins at 0: a value function on the trunk of what trains, and no part of the model. */
export function newValueHead(device: Device, width: number): Linear {
  const zeros = (shape: readonly number[]) => drawn(device, shape, () => 0);
  return new Linear(width, 1, { weight: zeros([1, width]), bias: zeros([1]) });
}

/** Writes a value head beside what was trained, in LLaMA-Factory's file; nothing where there is none. Throws NoSpaceError, DivergedError. */
export async function saveValueHead(folder: string, beside: Module | null): Promise<void> {
  if (beside instanceof Linear) await writeValueHead(folder, sourceOf("", beside.weight.value), sourceOf("", beside.bias!.value));
}

/** Reads into a value head what lies in a folder; leaves it as it is where nothing does. Throws ModelError for a head of another width. */
export async function loadValueHead(folder: string, beside: Module | null): Promise<void> {
  const files = beside instanceof Linear ? await openValueHead(folder) : null;
  if (files === null) return;
  const { weight, bias } = beside as Linear;
  for (const [name, { value }] of [
    ["score.weight", weight],
    ["score.bias", bias!],
  ] as const) {
    const entry = files.tensors.get(name);
    if (entry === undefined) continue; // a head without bias
    if (entry.shape.join() !== value.shape.join())
      throw new ModelError(
        `${folder}: the value head has a tensor of shape [${entry.shape}], and this model needs [${value.shape}]: it belongs to another model`,
      );
    setValues(value, await files.readTensor(name), entry.dtype);
  }
}
