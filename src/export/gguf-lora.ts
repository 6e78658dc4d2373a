import { mkdir } from "node:fs/promises";
import { basename, resolve } from "node:path";
import { ConfigError, ModelError } from "../errors.js";
import { readAdapterConfig } from "../io/adapters/adapter-folder.js";
import { requireNoBaseAdapters } from "../io/adapters/base-adapters.js";
import { ggufShape } from "../io/gguf/config.js";
import { reorderRows } from "../io/gguf/names.js";
import { type GgufTensorSource, writeGguf } from "../io/gguf/writer.js";
import type { ModelFiles } from "../io/model-files.js";
import { tuners } from "../tuners/index.js";
import { openAdapter } from "../tuners/tuned-files.js";
import { ggufTensorName, headsOf } from "./gguf-file.js";

/**
 * Writes a LoRA adapter as a GGUF file that llama.cpp puts on top of the base's GGUF file. llama.cpp multiplies B A by alpha / R, with one
 * alpha for the whole file: rsLoRA's α/√R goes into it, and where layers differ in it, into their B.
 *
 * Source: llama.cpp, convert_lora_to_gguf.py. A (R, in) → NAME.lora_a; B (out, R) → NAME.lora_b, rows in GGUF's order; f32.
 * Throws ConfigError for what llama.cpp cannot put on a model: other methods, DoRA, biases, whole modules.
 */
export async function writeGgufLora(path: string, folder: string, base: ModelFiles): Promise<void> {
  const json = await readAdapterConfig(folder);
  requireNoBaseAdapters(folder, json);
  const isKnown = tuners.some((tuner) => tuner.adapter?.recognises(json));
  const opened = isKnown ? await openAdapter(folder, tuners) : null;
  const scaleAt = opened?.tuning.scaleAt;
  if (opened === null || scaleAt === undefined) {
    const said = ["peft_type", "use_dora"].flatMap((key) =>
      json[key] === undefined ? [] : `${key} ${JSON.stringify(json[key])}`,
    );
    throw notPossible(
      folder,
      `llama.cpp knows LoRA adapters only, and adds a product to a weight; this one does something else (${said.join(", ") || "no type of PEFT's"})`,
    );
  }
  const { files } = opened;

  const modules = [...files.tensors.keys()].flatMap((name) => /^(.*)\.lora_A\.weight$/.exec(name)?.[1] ?? []);
  // The alpha for which alpha / R is what the layer's update is multiplied by.
  const alphas = new Map(modules.map((path) => [path, scaleAt(path) * files.tensors.get(`${path}.lora_A.weight`)!.shape[0]!]));
  const alpha = alphas.values().next().value;
  if (alpha === undefined) throw new ModelError(`${folder}: there is no LoRA weight in this adapter.`);

  const tensors: GgufTensorSource[] = [];
  for (const [name, { dtype, shape, file }] of files.tensors) {
    const [, module, part] = /^(.*)\.lora_([AB])\.weight$/.exec(name) ?? [];
    if (module === undefined) throw notPossible(folder, `it also holds ${name}, which is no part of a LoRA of Linear layers`);
    if (module === "lm_head" && !base.tensors.has("lm_head.weight"))
      throw notPossible(folder, "it changes the output projection, which is the embedding in a GGUF file of this base");
    if (dtype !== "f32")
      throw new ModelError(`${file}: ${name} is stored as ${dtype}; expected f32, as attune and PEFT save adapters.`);
    const weight = ggufTensorName(`${module}.weight`, base.path);
    const heads = headsOf(module, base.config);
    const data = async () => {
      const bytes = await files.readTensor(name);
      if (part === "A") return bytes;
      const values = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
      const correction = alphas.get(module)! / alpha;
      if (correction !== 1) for (let i = 0; i < values.length; i++) values[i]! *= correction;
      return heads === undefined ? bytes : reorderRows(bytes, shape[0]!, heads, "gguf");
    };
    tensors.push({ name: `${weight}.lora_${part!.toLowerCase()}`, dtype: "f32", shape, data });
  }
  await mkdir(resolve(path, ".."), { recursive: true });
  await writeGguf(
    path,
    {
      "general.architecture": { string: ggufShape(base.config, 1, base.path).architecture },
      "general.type": { string: "adapter" },
      "general.name": { string: basename(resolve(folder)) },
      "adapter.type": { string: "lora" },
      "adapter.lora.alpha": { f32: alpha },
    },
    tensors,
  );
}

function notPossible(folder: string, why: string): ConfigError {
  return new ConfigError(
    `${folder}: this adapter cannot become a GGUF adapter: ${why}. Export a merged model instead: --to gguf, or --to ollama.`,
  );
}
