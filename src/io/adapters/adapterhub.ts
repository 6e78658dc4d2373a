import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { ModelError } from "../../errors.js";
import { namesIn, writeFileAtomic } from "../disk.js";
import { pickleRefused, readJsonObject } from "../hf-folder.js";
import type { TensorEntry } from "../model-files.js";
import { openSafetensors, readFinite, type TensorSource, toTensorEntry, writeSafetensors } from "../safetensors.js";
import {
  type AdapterConfig,
  type AdapterFiles,
  type AdapterLibrary,
  type AdapterOrigin,
  adapterConfigName,
  readAdapterConfig,
} from "./adapter-folder.js";
import { baseAdaptersName } from "./base-adapters.js";

/**
 * Adapter folders as AdapterHub's `adapters` writes and reads them: `adapter_config.json` and `adapter.safetensors`; for a head that was
 * trained along, `head_config.json` and `model_head.safetensors`. The library reads them with `load_adapter(folder, use_safetensors=True)`.
 * Source: adapters 1.3, loading.py and configuration/model_adapters_config.py.
 */
export const adapterHub: AdapterLibrary = { name: "adapter-transformers", loading, open, save };

const weights = { safe: "adapter.safetensors", pickle: "pytorch_adapter.bin" };
const head = { config: "head_config.json", safe: "model_head.safetensors", pickle: "pytorch_model_head.bin" };

/** The library names adapters, and tensors after them; `load_as` gives another name there. */
const adapterName = "attune";

/** Where the library hangs adapters in a layer, and the residual connection of attune's in whose place they work. */
type Places = readonly (readonly [theirs: string, ours: string])[];
const decoderPlaces: Places = [
  ["attention_adapters", "attention_residual"],
  ["output_adapters", "mlp_residual"],
];
const bertPlaces: Places = [
  ["attention.output", "attention_residual"],
  ["output", "mlp_residual"],
];

/** Undefined if it is not the name of an adapter's tensor. */
function hubName(name: string, places: Places): string | undefined {
  for (const [theirs, ours] of places) {
    const [layer, leaf] = name.split(`.${ours}.`);
    if (leaf !== undefined) return `${layer}.${theirs}.adapters.${adapterName}.${leaf}`;
  }
  return undefined;
}

/** The norm before the bottleneck has a second name there. */
function secondName(name: string): string {
  return name.replace(".adapter_down.0.", ".adapter_norm_before.");
}

/** The reverse of `hubName` and `secondName`, whatever the adapter is called. */
function ownName(name: string, adapter: string): string | undefined {
  const [place, leaf] = name.split(`.adapters.${adapter}.`);
  if (place === undefined || leaf === undefined) return undefined;
  for (const [theirs, ours] of [...decoderPlaces, ...bertPlaces])
    if (place.endsWith(`.${theirs}`))
      return `${place.slice(0, -theirs.length)}${ours}.${leaf.replace(/^adapter_norm_before\./, "adapter_down.0.")}`;
  return undefined;
}

async function open(path: string): Promise<AdapterFiles> {
  const config = await readAdapterConfig(path);
  const { name } = config;
  if (typeof name !== "string" || name === "")
    throw new ModelError(
      `${join(path, adapterConfigName)}: expected the adapter's name under "name", got ${JSON.stringify(name)?.slice(0, 100)}.`,
    );

  const tensors = new Map<string, TensorEntry>();
  const found = await namesIn(path);
  const file = await openWeights(path, found, weights);
  for (const stored of file.tensors.values()) {
    const own = ownName(stored.name, name);
    if (own === undefined)
      throw new ModelError(
        `${file.path}: tensor ${JSON.stringify(stored.name.slice(0, 200))} does not belong to the bottleneck adapter ${JSON.stringify(name.slice(0, 100))}.`,
      );
    tensors.set(own, { ...toTensorEntry(stored), name: own });
  }
  const whole = found.includes(head.safe) || found.includes(head.pickle) ? await openHead(path, found) : [];
  for (const entry of whole) tensors.set(entry.name, entry);
  return {
    path,
    config: { ...config, modules_to_save: [...new Set(whole.map((entry) => entry.name.replace(/\.(weight|bias)$/, "")))] },
    tensors,
    async readTensor(wanted) {
      const entry = tensors.get(wanted);
      if (entry === undefined) throw new ModelError(`${path}: has no tensor ${wanted}.`);
      return await readFinite(entry, wanted);
    },
  };
}

/** The tensors of a head, which has the names that it has in the model. */
async function openHead(path: string, found: readonly string[]): Promise<TensorEntry[]> {
  const { config } = found.includes(head.config) ? await readJsonObject(join(path, head.config)) : { config: null };
  if (config !== null)
    throw new ModelError(
      `${join(path, head.config)}: a head that AdapterHub has built, which attune does not run. Save the adapter with with_head=False.`,
    );
  const file = await openWeights(path, found, head);
  return [...file.tensors.values()].map((stored) => toTensorEntry(stored));
}

function openWeights(path: string, found: readonly string[], { safe, pickle }: { safe: string; pickle: string }) {
  if (!found.includes(safe) && found.includes(pickle)) throw pickleRefused(join(path, pickle), safe);
  return openSafetensors(join(path, safe));
}

function loading({ isClassifier }: { readonly isClassifier: boolean }): string {
  const kind = isClassifier ? "AutoModelForSequenceClassification" : "AutoModelForCausalLM";
  const code = [
    "import adapters",
    `from transformers import ${kind}, AutoTokenizer`,
    "",
    'folder = "path/to/this/folder"',
    "tokenizer = AutoTokenizer.from_pretrained(folder)",
    `model = ${kind}.from_pretrained("the base model")`,
    "adapters.init(model)",
    "model.load_adapter(folder, set_active=True, use_safetensors=True)",
  ].join("\n");
  return `Read by AdapterHub's \`adapters\` (1.3 was tested, with the older transformers that it asks for):\n\n\`\`\`python\n${code}\n\`\`\``;
}

/** The config comes last: a folder without it is not taken for an adapter. */
async function save(
  path: string,
  settings: AdapterConfig,
  origin: AdapterOrigin,
  tensors: Iterable<TensorSource>,
): Promise<void> {
  await mkdir(path, { recursive: true });
  const places = origin.config.model_type === "bert" ? bertPlaces : decoderPlaces;
  const all = [...tensors];
  const isNorm = ({ name }: TensorSource) =>
    /\.adapter_down\.0\.\w+$/.test(name) && all.some((other) => other.name === name.replace(/0\.\w+$/, "1.weight"));
  const ofAdapter: TensorSource[] = [];
  const ofHead: TensorSource[] = [];
  for (const tensor of all) {
    const name = hubName(tensor.name, places);
    if (name === undefined) ofHead.push(tensor);
    else ofAdapter.push({ ...tensor, name });
    if (name !== undefined && isNorm(tensor)) ofAdapter.push({ ...tensor, name: secondName(name) });
  }
  const common = {
    model_type: origin.config.model_type ?? null,
    hidden_size: origin.config.hidden_size ?? origin.config.n_embd ?? null,
    model_name: origin.name,
    model_class: modelClass(origin),
    version: "adapters.1.3.0",
  };
  await writeSafetensors(join(path, weights.safe), ofAdapter);
  if (ofHead.length > 0) {
    const { label2id = null } = origin.config;
    const numLabels = ofHead.find(({ name }) => name.endsWith(".weight"))?.shape[0];
    await writeSafetensors(join(path, head.safe), ofHead);
    await writeJson(join(path, head.config), { ...common, name: null, config: null, label2id, num_labels: numLabels });
  }
  const { baseAdapters = [] } = origin;
  const below = baseAdapters.length > 0 && { [baseAdaptersName]: baseAdapters };
  await writeJson(join(path, adapterConfigName), { ...common, name: adapterName, ...settings, ...below });
}

/** The class of transformers in which the adapter was trained: the library compares it before it loads a head. */
function modelClass({ config, taskType }: AdapterOrigin): string | null {
  const { architectures } = config;
  const [named] = Array.isArray(architectures) ? architectures : [];
  if (typeof named !== "string") return null;
  return taskType === "SEQ_CLS" ? `${named.replace(/(For[A-Z]\w*|LMHeadModel|Model)$/, "")}ForSequenceClassification` : named;
}

async function writeJson(path: string, value: unknown): Promise<void> {
  // The library tells a factor from the word "learned" by its being a float, which JSON.stringify writes like an integer.
  const text = JSON.stringify(value, null, 2).replace(/("scaling": -?\d+)(?=,?\n)/, "$1.0");
  await writeFileAtomic(path, `${text}\n`);
}
