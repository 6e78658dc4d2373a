import { z } from "zod";
import type { Device } from "../core/device.js";
import type { Rng } from "../core/rng.js";
import { type Shape, Tensor, unscoped } from "../core/tensor.js";
import { type DType, dtypes } from "../engine/dtype.js";
import { ConfigError, ModelError } from "../errors.js";
import type { ModelFiles, TensorEntry } from "../io/model-files.js";
import { pieceBytes, readEntry, readPieces, type TensorSource } from "../io/safetensors.js";
import { drawnValues } from "../nn/init.js";
import type { Parameter } from "../nn/module.js";
import { Bert, BertConfig, bertInert, bertKeys } from "./bert.js";
import { classesOf, isRewardConfig } from "./classes.js";
import { shown, unreadKeys, unsupportedKey } from "./config-keys.js";
import { Gemma3, Gemma3Config, gemma3Keys } from "./gemma3.js";
import { Gpt2, Gpt2Config, gpt2Aliases, gpt2Inert, gpt2Keys } from "./gpt2.js";
import type { LanguageModel } from "./language-model.js";
import { Llama, LlamaConfig, MistralConfig, mistralKeys, ownLlamaKeys } from "./llama.js";
import { Phi3, Phi3Config, phi3Inert, phi3Keys } from "./phi3.js";
import { Qwen, QwenConfig, qwen3Keys, qwenKeys } from "./qwen.js";

/** A family: the `model_type`s of config.json that it runs, and how to build it. */
interface Family {
  readonly modelTypes: readonly string[];
  /** The keys of config.json that it reads, and further ones that change nothing of what it computes. */
  readonly keys: { readonly read: readonly string[]; readonly inert?: readonly string[] };
  /** Whether the output projection is tied to the embedding if the config does not say. */
  readonly tiesByDefault: boolean;
  /** The name of the embedding. */
  readonly embedding: string;
  /** `passedOver` gets, in words, what stands within the keys that are read but has no effect. */
  build(device: Device, config: unknown): { readonly model: LanguageModel; readonly passedOver?: readonly string[] };
}

/** A family whose models are a class with the config that `read` makes of the file's. */
function family<Config extends object>(
  modelTypes: readonly string[],
  {
    keys,
    inert,
    tiesByDefault = false,
    embedding = "model.embed_tokens.weight",
    read,
    model: Model,
  }: {
    keys: z.ZodObject;
    inert?: readonly string[];
    tiesByDefault?: boolean;
    embedding?: string;
    read: z.ZodType<Config>;
    model: new (device: Device, config: Config) => LanguageModel;
  },
): Family {
  return {
    modelTypes,
    keys: { read: Object.keys(keys.shape), ...(inert && { inert }) },
    tiesByDefault,
    embedding,
    build(device, raw) {
      const config = read.parse(raw);
      return { model: new Model(device, config), ...("passedOver" in config && { passedOver: config.passedOver as string[] }) };
    },
  };
}

const families: readonly Family[] = [
  family(["llama"], { keys: ownLlamaKeys, read: LlamaConfig, model: Llama }),
  family(["mistral", "ministral"], { keys: mistralKeys, read: MistralConfig, model: Llama }),
  family(["qwen2"], { keys: qwenKeys, read: QwenConfig, model: Qwen }),
  family(["qwen3"], { keys: qwen3Keys, read: QwenConfig, model: Qwen }),
  family(["gemma3_text"], { keys: gemma3Keys, read: Gemma3Config, model: Gemma3, tiesByDefault: true }),
  family(["phi3"], { keys: phi3Keys, inert: phi3Inert, read: Phi3Config, model: Phi3 }),
  family(["bert"], { keys: bertKeys, inert: bertInert, read: BertConfig, model: Bert, tiesByDefault: true }),
  family(["gpt2"], {
    keys: gpt2Keys,
    inert: [...Object.keys(gpt2Aliases), ...gpt2Inert],
    read: Gpt2Config,
    model: Gpt2,
    tiesByDefault: true,
    embedding: "transformer.wte.weight",
  }),
];

const gemmaAdvice =
  "Of Gemma 3 with images it trains the text part: in transformers, load it with Gemma3ForCausalLM.from_pretrained and save that.";

/**
 * The model that a config describes, without weights: with a head, if it describes a classifier. Keys that have no effect are named among its
 * notices. Throws ModelError for an unknown family or a setting it cannot run.
 */
export function buildModel(device: Device, config: Readonly<Record<string, unknown>>, where: string): LanguageModel {
  const family = familyOf(config, where);
  const fail = (what: string) => new ModelError(`${where}: config.json of ${String(config.model_type)}: ${what}`);
  const unsupported = unsupportedKey(config);
  if (unsupported !== null) throw fail(unsupported);
  try {
    const classes = classesOf(config);
    const tied = classes === null ? {} : { tie_word_embeddings: true }; // an output projection of its own would be of no use
    const { model, passedOver = [] } = family.build(device, { ...config, ...tied });
    if (classes !== null) {
      model.addHead(classes.length);
      model.isClassifier = true;
      if (isRewardConfig(config)) model.headDeviation = 1 / Math.sqrt(model.shape.width + 1);
    }
    const unread = [...unreadKeys(config, family.keys).map((key) => JSON.stringify(key.slice(0, 100))), ...passedOver];
    if (unread.length > 0)
      model.notices.push(
        `${where}: config.json: has no effect on a model of this kind, here as in transformers: ${listed(unread)}`,
      );
    return model;
  } catch (error) {
    if (error instanceof z.ZodError) throw fail(z.prettifyError(error));
    throw error;
  }
}

/** The family of a config. Throws ModelError for an unknown one. */
function familyOf({ model_type: type }: Readonly<Record<string, unknown>>, where: string): Family {
  const family = families.find(({ modelTypes }) => modelTypes.some((known) => known === type));
  if (family !== undefined) return family;
  const known = families.flatMap(({ modelTypes }) => modelTypes).join(", ");
  const advice = type === "gemma3" ? `. ${gemmaAdvice}` : "";
  throw new ModelError(
    `${where}: attune does not know the architecture ${shown(type)} (model_type). Supported: ${known}${advice}`,
  );
}

/** The one name, or the first of several. */
function listed(names: readonly string[]): string {
  return `${names.slice(0, 8).join(", ")}${names.length > 8 ? ` and ${names.length - 8} more` : ""}`;
}

/** What a model stores of a weight that was read: the tensor itself, or another that is made from it and takes its place. */
export type StoreWeight = (name: string, read: Tensor) => Tensor;

const asRead: StoreWeight = (_name, read) => read;

/**
 * A model with its weights; `storing` says how it stores them, if not as they are read. Throws ModelError, as `buildModel` and `loadWeights` do;
 * nothing of it then stays in memory.
 */
export async function loadModel(
  device: Device,
  files: ModelFiles,
  newHead?: Rng,
  storing?: (model: LanguageModel) => StoreWeight | undefined,
): Promise<LanguageModel> {
  const settled = await settleTying(files);
  const model = buildModel(device, settled.config, files.path);
  model.notices.unshift(...(settled.notices ?? []));
  try {
    await loadWeights(model, settled, newHead, storing?.(model));
    return model;
  } catch (error) {
    model.dispose();
    throw error;
  }
}

/**
 * Reads every weight of `model` from `files`, one tensor after the other, in the type in which it is stored; vectors (norms, biases) are
 * expanded to f32. `newHead` draws the weights of a head that the files lack. Throws ModelError if another tensor is missing, left over or of
 * another shape.
 */
export async function loadWeights(model: LanguageModel, files: ModelFiles, newHead?: Rng, store = asRead): Promise<void> {
  const left = new Set(files.tensors.keys());
  const reader = new WeightReader(model.device, files);
  for (const [name, parameter] of model.namedParameters()) {
    if (newHead !== undefined && beginsAnew(model, files, name)) {
      parameter.value = newWeight(model, parameter.shape, newHead);
      continue;
    }
    const entry = findEntry(files, name, parameter);
    left.delete(entry.name);
    setStored(parameter, name, await reader.read(entry, parameter), store);
  }
  const unknown = [...left].filter((name) => model.reasonToLeave(name) === null);
  if (unknown.length > 0)
    throw new ModelError(
      `${files.path}: ${unknown.length} tensors belong to no layer of this architecture: ${unknown.slice(0, 5).join(", ")}`,
    );
  const byReason = new Map<string, string[]>();
  for (const name of [...left, ...(files.integers ?? [])]) {
    const reason = model.reasonToLeave(name) ?? "integers, which no layer has";
    byReason.set(reason, [...(byReason.get(reason) ?? []), name]);
  }
  for (const [reason, names] of byReason) model.notices.push(`${files.path}: of no use here: ${listed(names)} (${reason})`);
}

/**
 * Settles whether the output projection is tied to the embedding, so that config and tensors say the same. Where the config ties
 * them and the files hold a projection all the same: if its numbers differ from the embedding's, the two are not tied, as in
 * transformers 5; if they are equal, the projection is left out; if the files hold no embedding, the projection is the embedding.
 * Throws ModelError.
 */
export async function settleTying(files: ModelFiles): Promise<ModelFiles> {
  const { config, tensors, path, notices = [] } = files;
  const projection = tensors.get(projectionName);
  const { tiesByDefault, embedding: name } = familyOf(config, path);
  const isTied = config.tie_word_embeddings ?? tiesByDefault;
  if (projection === undefined || isTied !== true || classesOf(config) !== null) return files;
  const embedding = lookUp(files, name);
  const others = new Map(tensors);
  if (embedding === undefined) {
    others.delete(projectionName);
    others.set(name, { ...projection, name });
    return { ...files, tensors: others, readTensor: (wanted) => files.readTensor(wanted === name ? projectionName : wanted) };
  }
  if (await holdSameNumbers(projection, embedding)) {
    others.delete(projectionName);
    return { ...files, tensors: others };
  }
  const notice =
    `${path}: the config ties the output projection to the embedding, but ${projectionName} holds other numbers than ${embedding.name}: ` +
    "the two are not tied, as in transformers 5";
  return { ...files, config: { ...config, tie_word_embeddings: false }, notices: [...notices, notice] };
}

const projectionName = "lm_head.weight";

/** Compared piece by piece: two embeddings can be larger than all else that a run needs. */
async function holdSameNumbers(a: TensorEntry, b: TensorEntry): Promise<boolean> {
  if (a.shape.join() !== b.shape.join() || a.dtype !== b.dtype || !isNumber(a.dtype)) return false;
  for (let at = 0; at < a.bytes; at += pieceBytes) {
    const bytes = Math.min(pieceBytes, a.bytes - at);
    const [x, y] = await Promise.all([a, b].map((entry) => readEntry({ ...entry, offset: entry.offset + at, bytes })));
    if (Buffer.compare(x!, y!) !== 0) return false;
  }
  return true;
}

/** Gives every weight a block of the device in its stored type, without reading: for the symbolic device. */
export function placeWeights(model: LanguageModel, files: ModelFiles, store = asRead): void {
  for (const [name, parameter] of model.namedParameters()) {
    if (beginsAnew(model, files, name)) {
      parameter.value = unscoped(() => Tensor.empty(model.device, parameter.shape));
      continue;
    }
    setStored(parameter, name, emptyValue(model.device, findEntry(files, name, parameter), parameter), store);
  }
}

/** Gives a parameter its value: a matrix as `store` stores it, a vector as it was read. */
function setStored(parameter: Parameter, name: string, read: Tensor, store: StoreWeight): void {
  const stored = read.shape.length === 1 ? read : store(name, read);
  if (stored !== read) read.dispose();
  parameter.value = stored;
}

/** Whether a weight belongs to a head that the files lack. Modules on the way to it that they lack become part of it. */
function beginsAnew(model: LanguageModel, files: ModelFiles, name: string): boolean {
  if (lookUp(files, name) !== undefined) return false;
  const { headModules, optionalModules } = model;
  const path = [...headModules, ...optionalModules].find((module) => name.startsWith(`${module}.`));
  if (path === undefined) return false;
  if (!headModules.includes(path)) model.headModules = [...headModules, path];
  return true;
}

/** Puts a head of so many outputs on a loaded model, beside its output projection; `rng` draws the weights. Throws ConfigError if it has one. */
export function placeHead(model: LanguageModel, outputs: number, rng: Rng, hasBias?: boolean): void {
  if (model.head !== null)
    throw new ConfigError(`the base has a head already (${model.headName}): it cannot have another beside it`);
  model.addHead(outputs, hasBias);
  for (const [name, parameter] of model.namedParameters()) {
    if (parameter.isLoaded) continue;
    parameter.value = newWeight(model, parameter.shape, rng);
    const path = [...model.headModules, ...model.optionalModules].find((module) => name.startsWith(`${module}.`))!;
    if (!model.headModules.includes(path)) model.headModules = [...model.headModules, path];
  }
}

/** A head's first weights: matrices normal, vectors 0. */
function newWeight({ device, headDeviation }: LanguageModel, shape: Shape, rng: Rng): Tensor {
  return drawnValues(device, shape, () => (shape.length === 1 ? 0 : headDeviation * rng.normal()));
}

/**
 * The tensor that files hold for a parameter. A model that was saved without its head has names without their first part ("h.0…" for
 * "transformer.h.0…"), as transformers writes and reads them; BERT's oldest files call the weights of a norm gamma and beta.
 */
function lookUp({ tensors }: ModelFiles, name: string): TensorEntry | undefined {
  const older = name.replace(/LayerNorm\.weight$/, "LayerNorm.gamma").replace(/LayerNorm\.bias$/, "LayerNorm.beta");
  const found = [name, older].flatMap((long) => [long, long.slice(long.indexOf(".") + 1)]).find((known) => tensors.has(known));
  return found === undefined ? undefined : tensors.get(found);
}

function findEntry(files: ModelFiles, name: string, parameter: Parameter): TensorEntry {
  const entry = lookUp(files, name);
  if (entry === undefined) {
    const what = files.integers?.includes(name) ? "holds integers, and no numbers that attune reads" : "is missing";
    throw new ModelError(`${files.path}: the tensor "${name}" ${what}`);
  }
  const expected = isNumber(entry.dtype) ? parameter.storedShape : parameter.shape;
  if (entry.shape.join() !== expected.join())
    throw new ModelError(`${entry.file}: expected "${name}" of shape [${expected.join(", ")}], got [${entry.shape.join(", ")}]`);
  return entry;
}

function emptyValue(device: Device, { dtype }: TensorEntry, { shape }: Parameter): Tensor {
  return unscoped(() => Tensor.empty(device, shape, shape.length === 1 ? "f32" : dtype));
}

/** The most bytes that wait in copies while the engine still works on what came before. */
const maxWaitingBytes = 32 << 20;

/** Reads weights. Those whose bytes the file holds as they are come in pieces, so that a large one is never in memory twice. */
class WeightReader {
  readonly #device: Device;
  readonly #files: ModelFiles;
  readonly #buffer = new Uint8Array(pieceBytes);
  /** The largest matrix so far that had to be turned. */
  #matrix = new Uint8Array(0);
  #waitingBytes = 0;

  constructor(device: Device, files: ModelFiles) {
    this.#device = device;
    this.#files = files;
  }

  async read(entry: TensorEntry, parameter: Parameter): Promise<Tensor> {
    const value = emptyValue(this.#device, entry, parameter);
    try {
      if (entry.isPlain && value.dtype === entry.dtype)
        if (parameter.isStoredTransposed) await this.#readTransposed(value, entry);
        else await this.#readInto(value, entry);
      else setValues(value, await this.#files.readTensor(entry.name), entry.dtype, parameter.isStoredTransposed);
      return value;
    } catch (error) {
      value.dispose();
      throw error;
    }
  }

  async #readInto(value: Tensor, entry: TensorEntry): Promise<void> {
    const { kernels } = this.#device;
    let at = 0;
    for await (const piece of readPieces(entry, this.#buffer)) {
      await this.#letWait(piece.length);
      kernels.write(value.id, at, piece);
      at += piece.length;
    }
  }

  /** The file has the matrix as (in, out). */
  async #readTransposed(value: Tensor, entry: TensorEntry): Promise<void> {
    const { bytes: elementBytes } = dtypes[entry.dtype];
    const [rows, columns] = entry.shape as [number, number];
    if (this.#matrix.length < entry.bytes) this.#matrix = new Uint8Array(entry.bytes);
    const matrix = this.#matrix.subarray(0, entry.bytes);
    let row = 0;
    for await (const piece of readPieces(entry, wholeRows(this.#buffer, columns * elementBytes))) {
      transpose(piece, matrix, { row, rows, columns, elementBytes });
      row += piece.length / (columns * elementBytes);
    }
    await this.#letWait(entry.bytes);
    value.device.kernels.write(value.id, 0, matrix);
  }

  async #letWait(bytes: number): Promise<void> {
    this.#waitingBytes += bytes;
    if (this.#waitingBytes <= maxWaitingBytes) return;
    await this.#device.kernels.sync();
    this.#waitingBytes = bytes;
  }
}

const isNumber = (dtype: DType) => dtypes[dtype].block === 1;

/**
 * Fills a tensor from the bytes of a file, expanded to f32 where the tensor is f32 and the file's type is another. `isTransposed` says that the
 * file holds a matrix as (in, out), if in plain numbers.
 */
export function setValues(tensor: Tensor, bytes: Uint8Array, dtype: DType, isTransposed = false): void {
  const { shape } = tensor;
  const { kernels } = tensor.device;
  const values = isTransposed && isNumber(dtype) ? transposed(bytes, shape[1]!, shape[0]!, dtypes[dtype].bytes) : bytes;
  if (tensor.dtype === dtype) {
    kernels.write(tensor.id, 0, values);
    return;
  }
  const stored = unscoped(() => Tensor.empty(tensor.device, shape, dtype));
  kernels.write(stored.id, 0, values);
  kernels.convert(stored.id, dtype, tensor.id, tensor.dtype, tensor.size);
  stored.dispose();
}

/**
 * A tensor as a source for writing: it is read from the device when its turn comes, in a plain type: its own, f32 for blocks, or the one that is given, to
 * which it is rounded. The reverse of `setValues`.
 */
export function sourceOf(name: string, tensor: Tensor, isTransposed = false, type?: PlainType): TensorSource {
  const [rows, columns] = tensor.shape as [number, number];
  const dtype = type ?? plainTypes.find((plain) => plain === tensor.dtype) ?? "f32";
  return {
    name,
    dtype,
    shape: isTransposed ? [columns, rows] : tensor.shape,
    data: () =>
      isTransposed
        ? bytesIn(tensor, dtype).then((bytes) => transposed(bytes, rows, columns, dtypes[dtype].bytes))
        : piecesIn(tensor, dtype),
  };
}

const plainTypes = ["f32", "f16", "bf16"] as const;

export type PlainType = (typeof plainTypes)[number];

async function bytesIn(tensor: Tensor, dtype: PlainType): Promise<Uint8Array> {
  const bytes = new Uint8Array(tensor.size * dtypes[dtype].bytes);
  let at = 0;
  for await (const piece of piecesIn(tensor, dtype)) {
    bytes.set(piece, at);
    at += piece.length;
  }
  return bytes;
}

/** The bytes of a tensor as `dtype` in pieces of whole rows, each of which lasts until the next one. */
async function* piecesIn(tensor: Tensor, dtype: PlainType): AsyncGenerator<Uint8Array> {
  const { device, shape, size } = tensor;
  const { kernels } = device;
  const plain = tensor.dtype === dtype ? tensor : unscoped(() => Tensor.empty(device, shape, dtype));
  const buffer = spareBuffers.pop() ?? new Uint8Array(pieceBytes);
  try {
    if (plain !== tensor) kernels.convert(tensor.id, tensor.dtype, plain.id, dtype, size);
    const bytes = size * dtypes[dtype].bytes;
    const step = wholeRows(buffer, Math.max(1, tensor.columns) * dtypes[dtype].bytes);
    for (let at = 0; at < bytes; at += step.length) {
      const piece = step.subarray(0, Math.min(step.length, bytes - at));
      await kernels.read(plain.id, at, piece);
      yield piece;
    }
  } finally {
    if (plain !== tensor) plain.dispose();
    if (spareBuffers.length < 2) spareBuffers.push(buffer);
  }
}

/** Used again, as a model has hundreds of tensors: what each of them left would stay in memory until it is collected. */
const spareBuffers: Uint8Array[] = [];

/** The part of a buffer that whole rows fill; all of it where a row is longer. */
function wholeRows(buffer: Uint8Array, rowBytes: number): Uint8Array {
  const rows = Math.floor(buffer.length / rowBytes);
  return rows === 0 ? buffer : buffer.subarray(0, rows * rowBytes);
}

/** The bytes of a matrix (rows, columns) of plain numbers as those of (columns, rows). */
export function transposed(bytes: Uint8Array, rows: number, columns: number, elementBytes: number): Uint8Array {
  const to = new Uint8Array(bytes.length);
  transpose(bytes, to, { row: 0, rows, columns, elementBytes });
  return to;
}

/** Some rows of a matrix (rows, columns), from `row` on, into their places in the matrix (columns, rows). */
function transpose(
  from: Uint8Array,
  to: Uint8Array,
  { row, rows, columns, elementBytes }: { row: number; rows: number; columns: number; elementBytes: number },
): void {
  const numbers = ({ buffer, byteOffset, length }: Uint8Array) =>
    elementBytes === 4 ? new Uint32Array(buffer, byteOffset, length / 4) : new Uint16Array(buffer, byteOffset, length / 2);
  const source = numbers(from.byteOffset % elementBytes === 0 ? from : from.slice());
  const target = numbers(to);
  for (let i = 0; i < source.length / columns; i++)
    for (let column = 0; column < columns; column++) target[column * rows + row + i] = source[i * columns + column]!;
}
