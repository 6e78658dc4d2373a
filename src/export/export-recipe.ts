import { ConfigError } from "../errors.js";
import { closest } from "../text/closest.js";
import type { NumberType } from "./choices.js";
import type { ExportOptions } from "./export.js";

/** What an export recipe asks for. */
export interface RecipeExport {
  readonly options: Omit<ExportOptions, "onNotice" | "onProgress" | "signal">;
  /** One line for each setting that changes nothing here, with the reason. */
  readonly notices: readonly string[];
}

const typeOf: Readonly<Record<string, NumberType>> = { float32: "f32", float16: "f16", bfloat16: "bf16" };

/** Settings that change nothing of what is written. */
const needless: Readonly<Record<string, string>> = {
  export_device: "models are merged on the CPU",
  trust_remote_code: "attune never runs code from a model's repository",
  finetuning_type: "the adapter's own files say its method",
  stage: "the adapter's own files say what it was trained for",
  infer_backend: "what was written is measured with attune's own engine",
  flash_attn: "attention is the model's own",
  cache_dir: "models are stored where HF_HOME says, shared with Python",
  use_fast_tokenizer: "there is one tokenizer",
  hf_hub_token: "a recipe is no place for a secret; set HF_TOKEN instead",
  quantization_bit: "an adapter of QLoRA is merged into the base that it was trained on",
  quantization_method: "an adapter of QLoRA is merged into the base that it was trained on",
  export_quantization_nsamples: "nothing is calibrated",
  export_quantization_maxlen: "nothing is calibrated",
  export_quantization_dataset: "nothing is calibrated",
};

const read = ["model_name_or_path", "adapter_name_or_path", "template", "export_dir", "export_size", "infer_dtype"] as const;

/** Settings that an export recipe may have: those that are read, and those that are told or refused. */
export function exportSettings(): string[] {
  return [...read, ...Object.keys(needless), ...Object.keys(refused)];
}

/**
 * An export as LLaMA-Factory's recipes for `llamafactory-cli export` describe it, for `exportModel`:
 *
 *     const { options, notices } = exportOfRecipe(settings, "recipe.yaml");   // settings: what the YAML file says
 *     await exportModel({ ...options, onNotice });
 *
 * It writes a Hugging Face folder, `export_dir`, in shards of `export_size` GB; `infer_dtype` is the type of its weights. Source: LLaMA-Factory
 * 0.9.5, hparams/model_args.py (ExportArguments) and train/tuner.py (export_model). With `infer_dtype: auto` weights are bf16 here; there they keep the
 * base's type unless that is f32. Throws ConfigError that names every setting which is refused or unknown.
 */
export function exportOfRecipe(settings: Readonly<Record<string, unknown>>, where: string): RecipeExport {
  const problems: string[] = [];
  const notices: string[] = [];
  const given = Object.entries(settings).filter(([, value]) => value !== null && value !== undefined);
  const isKnown = (key: string) =>
    [read, Object.keys(refused), Object.keys(needless)].some((keys) => keys.includes(key as never));
  for (const [key, value] of given) {
    if (!isKnown(key)) {
      const near = closest(key, [...read, ...Object.keys(refused), ...Object.keys(needless)]);
      problems.push(
        `unknown setting ${JSON.stringify(key)} of an export.${near ? ` Did you mean ${JSON.stringify(near)}?` : ""}`,
      );
    } else if (Object.hasOwn(refused, key)) {
      if (value !== false) problems.push(`${key}: ${refused[key]}`);
    } else if (Object.hasOwn(needless, key)) notices.push(`${where}: ${key} is not needed: ${needless[key]}`);
  }

  const text = (key: (typeof read)[number]) => {
    const value = settings[key] ?? undefined;
    if (value !== undefined && (typeof value !== "string" || value === ""))
      problems.push(`${key}: expected a text, got ${JSON.stringify(value)}`);
    return value as string | undefined;
  };
  const [model, adapter, template, out] = [
    text("model_name_or_path"),
    text("adapter_name_or_path"),
    text("template"),
    text("export_dir"),
  ];
  if (out === undefined) problems.push("export_dir is missing: it names the folder to write (--out on the command line)");
  if (model === undefined && adapter === undefined) problems.push("model_name_or_path is missing: it names the base model");
  if (adapter?.includes(","))
    problems.push("adapter_name_or_path: one adapter is merged at a time; combine several with combineAdapters first");
  const { export_size: size = 5, infer_dtype: dtype = "auto" } = settings;
  if (typeof size !== "number" || !(size > 0))
    problems.push(`export_size: expected a number of GB above 0, got ${JSON.stringify(size)}`);
  if (dtype !== "auto" && !Object.hasOwn(typeOf, String(dtype)))
    problems.push(`infer_dtype: expected one of auto, ${Object.keys(typeOf).join(", ")}, got ${JSON.stringify(dtype)}`);
  if (problems.length > 0) throw new ConfigError(problems.map((problem) => `${where}: ${problem}`).join("\n"));
  return {
    options: {
      to: "hf",
      out: out!,
      shardBytes: 1e9 * (size as number),
      ...(model !== undefined && { model }),
      ...(adapter !== undefined && { adapter }),
      ...(template !== undefined && { template }),
      ...(dtype !== "auto" && { type: typeOf[dtype as string]! }),
    },
    notices,
  };
}

/** Settings that ask for what attune does not write; `false` asks for nothing. */
const refused: Readonly<Record<string, string>> = {
  export_legacy_format: "weights are written as safetensors only: the older format is a pickle, which can run code. Leave it out",
  export_quantization_bit:
    "GPTQ and AWQ are not written. For 4 or 8 bits write a GGUF file: attune export --to gguf --type q4_k_m (or q8_0, q4_0)",
  export_hub_model_id: "attune does not upload. Leave it out, and push the folder with `hf upload`",
};
