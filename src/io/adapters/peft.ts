import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import type { z } from "zod";
import { ModelError } from "../../errors.js";
import { namesIn, writeFileAtomic } from "../disk.js";
import { pickleRefused } from "../hf-folder.js";
import type { TensorEntry } from "../model-files.js";
import { openSafetensors, readFinite, type TensorSource, toTensorEntry, writeSafetensors } from "../safetensors.js";
import {
  type AdapterConfig,
  type AdapterFiles,
  type AdapterLibrary,
  adapterConfigName,
  isUnused,
  readAdapterConfig,
  shownPath,
} from "./adapter-folder.js";
import { baseAdaptersName } from "./base-adapters.js";

/**
 * Adapter folders as PEFT writes and reads them: `adapter_config.json` and `adapter_model.safetensors`. `promptName` is given by methods of prompt
 * learning: where attune has the vectors that PEFT saves as `prompt_embeddings`, whatever the method.
 * Source: PEFT 0.21, utils/save_and_load.py.
 */
export function peft(promptName: string | null = null): AdapterLibrary {
  return {
    name: "peft",
    loading: (of) => loadingWithPeft({ ...of, isPrompt: promptName !== null }),
    open: (path) => openAdapter(path, promptName),
    save: (path, settings, { name, taskType = "CAUSAL_LM", modulesToSave = [], baseAdapters = [] }, tensors) => {
      const common = { task_type: taskType, base_model_name_or_path: name, inference_mode: true };
      const whole = [...new Set([...modulesToSaveOf(settings), ...modulesToSave])];
      const config = { ...common, ...settings, ...(whole.length > 0 && { modules_to_save: whole }) };
      const withBase = baseAdapters.length === 0 ? config : { ...config, [baseAdaptersName]: baseAdapters };
      return saveAdapter(path, withPeftType(withBase, "settings"), tensors, promptName);
    },
  };
}

const adapterWeightsName = "adapter_model.safetensors";
const pickleWeightsName = "adapter_model.bin";

/** adapter_config.json of PEFT: which method it is for. */
export type PeftConfig = AdapterConfig & { readonly peft_type: string };

/**
 * What a tensor is called in a file. PEFT wraps the base model once for prompt learning and twice for other methods; here a tensor has the name
 * that it has in the model: `MODULE.lora_A.weight`.
 */
function peftName(name: string, promptName: string | null): string {
  if (name === promptName) return "prompt_embeddings";
  return (promptName === null ? "base_model.model." : "base_model.") + name;
}

/** The reverse of `peftName`, and the name of the adapter if it is part of the tensor's; undefined if it is no such name. */
function ownName(name: string, promptName: string | null): { name: string; adapter: string | null } | undefined {
  if (promptName !== null && name === "prompt_embeddings") return { name: promptName, adapter: null };
  const prefix = promptName === null ? "base_model.model." : "base_model.";
  return name.startsWith(prefix) ? withoutAdapterName(name.slice(prefix.length)) : undefined;
}

/** Names of tensors that have the adapter's in them. */
const namedAfterAdapter = [
  /^(?<before>.+\.lora_[AB])\.(?<adapter>[^.]+)(?<after>\.weight)$/,
  /^(?<before>.+\.lora_embedding_[AB])\.(?<adapter>[^.]+)$/,
  /^(?<before>.+\.lora_magnitude_vector)\.(?<adapter>[^.]+)\.weight$/,
  /^(?<before>.+)\.modules_to_save\.(?<adapter>[^.]+)(?<after>\..+)$/,
];

/**
 * PEFT calls adapters, and their tensors while they are in memory, by names: `MODULE.lora_A.default.weight`. Files written past its
 * `save_pretrained` keep them; it takes those of the name that it is told to load.
 */
function withoutAdapterName(name: string): { name: string; adapter: string | null } {
  for (const pattern of namedAfterAdapter) {
    const { before, adapter, after = "" } = pattern.exec(name)?.groups ?? {};
    if (adapter !== undefined) return { name: before + after, adapter };
  }
  return { name: name.replace(/\.lora_magnitude_vector\.weight$/, ".lora_magnitude_vector"), adapter: null };
}

/** The modules whose whole weights an adapter holds. Throws ModelError. */
export function modulesToSaveOf({ modules_to_save: names }: AdapterConfig): readonly string[] {
  if (names === undefined || names === null) return [];
  if (Array.isArray(names) && names.every((name): name is string => typeof name === "string")) return names;
  throw new ModelError(`${adapterConfigName}: modules_to_save: expected a list of names.`);
}

/** What every method's config may hold beside its own. */
const commonKeys = new Set([
  "peft_type",
  "task_type",
  "base_model_name_or_path",
  "revision",
  "inference_mode",
  "modules_to_save",
  "peft_version",
  baseAdaptersName, // attune's own
  "auto_mapping", // checked when the file is read
]);

/**
 * Checks an untrusted adapter config against the keys that a method understands. Other keys may be there as long as they say "not used";
 * `meanings` says, for error messages, what some of them do. Throws ModelError that names the key.
 */
export function checkAdapterConfig<Known extends z.ZodObject>(
  where: string,
  config: AdapterConfig,
  known: Known,
  meanings: Readonly<Record<string, string>> = {},
): z.output<Known> {
  for (const [key, value] of Object.entries(config)) {
    if (Object.hasOwn(known.shape, key) || commonKeys.has(key) || isUnused(key, value)) continue;
    const shown = JSON.stringify(key.slice(0, 100));
    const what = Object.hasOwn(meanings, key)
      ? `is set: the adapter ${meanings[key]}, which attune does not do`
      : "is set to something attune does not know";
    throw new ModelError(`${where}: ${shown} ${what}, so the adapter would compute something else than it was trained for.`);
  }
  const parsed = known.safeParse(config);
  if (parsed.success) return parsed.data;
  const issue = parsed.error.issues[0]!;
  const message = issue.code === "invalid_key" ? issue.issues[0]!.message : issue.message;
  throw new ModelError(`${where}: ${shownPath(issue.path)}: ${message}.`);
}

function withPeftType(config: AdapterConfig, where: string): PeftConfig {
  const { peft_type } = config;
  if (typeof peft_type !== "string") throw new ModelError(`${where}: peft_type is missing or no text.`);
  return { ...config, peft_type };
}

/** Opens an adapter folder and checks everything but the values. Throws ModelError that names the file. */
export async function openAdapter(path: string, promptName: string | null = null): Promise<AdapterFiles> {
  const config = withPeftType(await readAdapterConfig(path), join(path, adapterConfigName));
  const found = await namesIn(path);
  if (!found.includes(adapterWeightsName) && found.includes(pickleWeightsName)) {
    throw pickleRefused(join(path, pickleWeightsName), adapterWeightsName);
  }
  const file = await openSafetensors(join(path, adapterWeightsName));
  const tensors = new Map<string, TensorEntry>();
  const storedNames = new Map<string, string>();
  const firstOf = new Map<string, string>(); // a tensor of each adapter
  for (const stored of file.tensors.values()) {
    const shown = JSON.stringify(stored.name.slice(0, 200));
    const own = ownName(stored.name, promptName);
    if (own === undefined)
      throw new ModelError(
        `${file.path}: tensor ${shown} does not begin with "${peftName("", promptName)}": PEFT would pass over it.`,
      );
    if (tensors.has(own.name))
      throw new ModelError(`${file.path}: tensor ${shown} is there twice, with an adapter's name and without.`);
    if (own.adapter !== null && !firstOf.has(own.adapter)) firstOf.set(own.adapter, shown);
    tensors.set(own.name, { ...toTensorEntry(stored), name: own.name });
    storedNames.set(own.name, stored.name);
  }
  if (firstOf.size > 1)
    throw new ModelError(
      `${file.path}: holds tensors of several adapters: ${[...firstOf.values()].slice(0, 3).join(", ")}. Save each in a folder of its own.`,
    );
  return {
    path,
    config,
    tensors,
    async readTensor(name) {
      const entry = tensors.get(name);
      if (!entry) throw new ModelError(`${file.path}: has no tensor ${peftName(name, promptName)}.`);
      return await readFinite(entry, storedNames.get(name));
    },
  };
}

/**
 * Writes an adapter folder that PEFT loads. Tensors carry attune's names.
 * The config comes last: a folder without it is not taken for an adapter. Throws as `writeSafetensors`.
 */
export async function saveAdapter(
  path: string,
  config: PeftConfig,
  tensors: Iterable<TensorSource>,
  promptName: string | null = null,
): Promise<void> {
  await mkdir(path, { recursive: true });
  const renamed = [...tensors].map((tensor) => ({ ...tensor, name: peftName(tensor.name, promptName) }));
  await writeSafetensors(join(path, adapterWeightsName), renamed, { metadata: { format: "pt" } });
  await writeFileAtomic(join(path, adapterConfigName), `${JSON.stringify(config, null, 2)}\n`);
}

/**
 * PEFT 0.21 feeds a prompt or prefix to transformers 5.24's cache so that `generate` writes another text than the model says, without a word; calls
 * of the model itself are right.
 */
function loadingWithPeft({
  isClassifier,
  isPrompt,
  baseAdapters,
}: {
  readonly isClassifier: boolean;
  readonly isPrompt: boolean;
  readonly baseAdapters: readonly string[];
}): string {
  const task = isClassifier ? "SequenceClassification" : "CausalLM";
  const isStacked = baseAdapters.length > 0;
  const load = [
    ...(isPrompt && !isClassifier ? ["import torch"] : []),
    `from peft import ${isStacked ? "PeftModel" : `AutoPeftModelFor${task}`}`,
    `from transformers import ${isStacked ? `AutoModelFor${task}, ` : ""}AutoTokenizer`,
    "",
    'folder = "path/to/this/folder"',
    "tokenizer = AutoTokenizer.from_pretrained(folder)",
    ...(isStacked
      ? [
          `model = AutoModelFor${task}.from_pretrained("the base model")`,
          `for below in ${JSON.stringify(baseAdapters)}:`,
          '    model = PeftModel.from_pretrained(model, f"{folder}/{below}").merge_and_unload()',
          "model = PeftModel.from_pretrained(model, folder).eval()",
        ]
      : [`model = AutoPeftModelFor${task}.from_pretrained(folder).eval()`]),
  ];
  const chat = [
    'messages = [{"role": "user", "content": "Hello!"}]',
    'inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)',
  ];
  const generate = [
    "answer = model.generate(**inputs, max_new_tokens=64, do_sample=False)",
    'print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
  ];
  const stepByStep = [
    'ids = inputs["input_ids"]',
    "with torch.no_grad():",
    "    for _ in range(64):",
    "        token = model(input_ids=ids).logits[0, -1].argmax()",
    "        if token == tokenizer.eos_token_id:",
    "            break",
    "        ids = torch.cat([ids, token[None, None]], dim=1)",
    'print(tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
  ];
  const classify = ['logits = model(**tokenizer("Hello!", return_tensors="pt")).logits'];
  const code = [...load, ...(isClassifier ? classify : [...chat, ...(isPrompt ? stepByStep : generate)])].join("\n");
  const warning =
    isPrompt && !isClassifier
      ? " PEFT 0.21's own `generate` writes another text with virtual tokens under transformers 5.24, without an error; asked for one token after the other, as here, the model is right."
      : "";
  const order = isStacked
    ? " **Not on the base alone:** this adapter was trained on the base with other adapters merged into it. They lie in this folder, and are merged first."
    : "";
  return `Read by PEFT (0.21 with transformers 5.24 was tested).${order}${warning}\n\n\`\`\`python\n${code}\n\`\`\``;
}
