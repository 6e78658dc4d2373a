import { readFile, stat } from "node:fs/promises";
import { basename, join } from "node:path";
import { ModelError } from "../errors.js";
import { type FourBitWeight, gatherFourBitWeights, isFourBit } from "./bitsandbytes.js";
import { namesIn, systemErrorCode } from "./disk.js";
import { fingerprintOf } from "./fingerprint.js";
import type { ModelFiles, TensorEntry } from "./model-files.js";
import {
  indexFileName,
  isFloatingPoint,
  openSafetensors,
  openShardedSafetensors,
  readEntry,
  type StoredTensor,
  singleFileName,
  toTensorEntry,
} from "./safetensors.js";
import { parseStrictJson, toPlainJson } from "./strict-json.js";

const maxConfigBytes = 10_000_000;
const pickleName = /\.(?:bin|pt|pth|ckpt|pkl|pickle)$/;

/**
 * Opens a Hugging Face model folder: `config.json` with `model.safetensors`, or with shards and their index; weights in f32, f16, bf16, or in
 * bitsandbytes' 4 bits.
 * Code that the folder brings along (`auto_map`, `*.py`) is never looked at. Tensors of integers and booleans (position
 * ids, masks) stand apart, as no model here has such weights.
 * Throws ModelError that names the file: missing, damaged, a pickle, or quantized in a way that is not supported.
 */
export async function openModelFolder(path: string): Promise<ModelFiles> {
  const config = await readJsonObject(join(path, "config.json"));
  const names = await namesIn(path);
  const stored = await openWeights(path, names);
  const { weights, others } = isQuantized(path, config)
    ? await gatherFourBitWeights(stored)
    : { weights: fourBitNone, others: stored };
  const tensors = new Map<string, TensorEntry>();
  for (const [name, { entry }] of weights) tensors.set(name, entry);
  const integers: string[] = [];
  for (const [name, other] of others)
    if (isFloatingPoint(other.dtype)) tensors.set(name, { ...toTensorEntry(other), isPlain: true });
    else integers.push(name);
  return {
    path,
    format: "safetensors",
    config,
    tensors,
    integers,
    notices: noticesOf(path, names),
    fingerprint: fingerprintOf(config, tensors.values()),
    async readTensor(name) {
      const entry = tensors.get(name);
      if (!entry) throw new ModelError(`${path}: has no tensor ${name}.`);
      return await (weights.get(name)?.read() ?? readEntry(entry));
    },
  };
}

const fourBitNone: ReadonlyMap<string, FourBitWeight> = new Map();

/** Whether the weights are stored in bitsandbytes' 4 bits. Throws ModelError for any other quantization. */
function isQuantized(path: string, { quantization_config: quantization }: Readonly<Record<string, unknown>>): boolean {
  if (quantization === undefined || quantization === null) return false;
  if (isFourBit(quantization)) return true;
  const method = typeof quantization === "object" && "quant_method" in quantization ? quantization.quant_method : undefined;
  throw new ModelError(
    `${join(path, "config.json")}: the weights are quantized by the method ${JSON.stringify(method ?? "unknown").slice(0, 50)}. ` +
      "attune reads unquantized safetensors, 4 bits of bitsandbytes, and GGUF; take one of those.",
  );
}

function noticesOf(path: string, names: readonly string[]): string[] {
  const notices: string[] = [];
  if (names.includes(singleFileName) && names.includes(indexFileName))
    notices.push(
      `${path}: has weights twice: ${singleFileName} is read, as in transformers, and not what ${indexFileName} names`,
    );
  if (names.includes("adapter_config.json"))
    notices.push(`${path}: has an adapter too, which is not used: name it as the adapter`);
  return notices;
}

async function openWeights(path: string, names: readonly string[]): Promise<ReadonlyMap<string, StoredTensor>> {
  // Both can be there after a re-save; transformers takes the single file then.
  if (names.includes(singleFileName)) return (await openSafetensors(join(path, singleFileName))).tensors;
  if (names.includes(indexFileName)) return await openShardedSafetensors(join(path, indexFileName));
  const pickle = names.find((name) => pickleName.test(name));
  if (pickle !== undefined) throw pickleRefused(join(path, pickle));
  const other = names.filter((name) => name.endsWith(".safetensors"));
  const found = other.length > 0 ? ` It has ${other.slice(0, 3).join(", ")}, but no index.` : "";
  throw new ModelError(`${path}: no weights: expected ${singleFileName} or ${indexFileName}.${found}`);
}

/** The error for a weights file that would run code when loaded. */
export function pickleRefused(path: string, convertedName = singleFileName): ModelError {
  return new ModelError(
    `${path}: a PyTorch pickle, which can run any code when it is opened; attune never does. Convert it once, with PyTorch on ` +
      `a machine where you trust the file: python -c "import torch, safetensors.torch as s; ` +
      `s.save_file({k: v.contiguous().clone() for k, v in torch.load('${basename(path)}', weights_only=True).items()}, '${convertedName}')"`,
  );
}

/** A small JSON file from outside as a plain object without a prototype. Throws ModelError. */
export async function readJsonObject(path: string): Promise<Record<string, unknown>> {
  let text: string;
  try {
    const stats = await stat(path);
    if (!stats.isFile()) throw new ModelError(`${path}: not a file.`);
    if (stats.size > maxConfigBytes) throw new ModelError(`${path}: larger than ${maxConfigBytes} bytes.`);
    text = new TextDecoder("utf-8", { fatal: true }).decode(await readFile(path));
  } catch (error) {
    if (error instanceof ModelError) throw error;
    const code = systemErrorCode(error);
    const what =
      code === "ENOENT"
        ? "no such file"
        : code === "ERR_ENCODING_INVALID_ENCODED_DATA"
          ? "not UTF-8"
          : `cannot be read (${code})`;
    throw new ModelError(`${path}: ${what}.`, { cause: error });
  }
  let value: unknown;
  try {
    value = toPlainJson(parseStrictJson(text, { allowNonFinite: true }));
  } catch (error) {
    throw new ModelError(`${path}: not valid JSON: ${(error as Error).message}.`, { cause: error });
  }
  if (typeof value !== "object" || value === null || Array.isArray(value))
    throw new ModelError(`${path}: expected a JSON object.`);
  return value as Record<string, unknown>;
}
