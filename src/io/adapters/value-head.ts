import { join } from "node:path";
import { ModelError } from "../../errors.js";
import { namesIn } from "../disk.js";
import { pickleRefused } from "../hf-folder.js";
import type { TensorEntry } from "../model-files.js";
import { openSafetensors, readFinite, type TensorSource, toTensorEntry, writeSafetensors } from "../safetensors.js";
import type { AdapterFiles } from "./adapter-folder.js";

/**
 * The head of a reward or value model as LLaMA-Factory and TRL 0.9 keep it: a file of its own beside an adapter or a model.
 * Source: LLaMA-Factory 0.9.5, model/model_utils/valuehead.py, train/callbacks.py `fix_valuehead_checkpoint`.
 */
export const valueHeadName = "value_head.safetensors";
const pickleName = "value_head.bin";

/** Its tensors, and what decoders call these: weight (1, C) and bias (1). */
const names = { "v_head.summary.weight": "score.weight", "v_head.summary.bias": "score.bias" } as const;

/** A head that was read from a file of its own, as tensors of an adapter. */
export type ValueHeadFiles = Pick<AdapterFiles, "tensors" | "readTensor">;

/** The head in a folder, under the names that a decoder has for it; null if there is none. Throws ModelError for a pickle, and for anything else than a head. */
export async function openValueHead(folder: string): Promise<ValueHeadFiles | null> {
  const found = await namesIn(folder);
  if (!found.includes(valueHeadName)) {
    if (found.includes(pickleName)) throw pickleRefused(join(folder, pickleName), valueHeadName);
    return null;
  }
  const path = join(folder, valueHeadName);
  const file = await openSafetensors(path);
  const tensors = new Map<string, TensorEntry>();
  for (const stored of file.tensors.values()) {
    const name = names[stored.name as keyof typeof names];
    if (name === undefined)
      throw new ModelError(
        `${path}: expected ${Object.keys(names).join(" and ")}, found ${JSON.stringify(stored.name.slice(0, 100))}`,
      );
    tensors.set(name, { ...toTensorEntry(stored), name });
  }
  const shape = tensors.get("score.weight")?.shape;
  const bias = tensors.get("score.bias")?.shape;
  if (shape?.length !== 2 || shape[0] !== 1 || (bias !== undefined && bias.join() !== "1"))
    throw new ModelError(
      `${path}: expected a head of one output: v_head.summary.weight [1, width] and v_head.summary.bias [1], got [${shape ?? ""}] and [${bias ?? ""}]`,
    );
  return {
    tensors,
    async readTensor(name) {
      const entry = tensors.get(name);
      if (entry === undefined) throw new ModelError(`${path}: has no tensor ${name}.`);
      const shown = Object.entries(names).find(([, own]) => own === name)![0];
      return await readFinite(entry, shown);
    },
  };
}

/** Files of an adapter or a model with the head that lies beside them, where they have none of their own. Throws as `openValueHead`. */
export async function withValueHead<F extends ValueHeadFiles>(folder: string, files: F): Promise<F> {
  const head = files.tensors.has("score.weight") ? null : await openValueHead(folder);
  if (head === null) return files;
  return {
    ...files,
    tensors: new Map([...files.tensors, ...head.tensors]),
    readTensor: (name: string) => (head.tensors.has(name) ? head.readTensor(name) : files.readTensor(name)),
  };
}

/** Writes a head's weight (1, C), and its bias, 0 where it has none. Throws as `writeSafetensors`. */
export async function writeValueHead(folder: string, weight: TensorSource, bias?: TensorSource): Promise<void> {
  const zero: TensorSource = { name: "", dtype: "f32", shape: [1], data: () => new Uint8Array(4) };
  const [weightName, biasName] = Object.keys(names) as [string, string];
  const tensors = [
    { ...weight, name: weightName },
    { ...(bias ?? zero), name: biasName },
  ];
  await writeSafetensors(join(folder, valueHeadName), tensors, { metadata: { format: "pt" } });
}
