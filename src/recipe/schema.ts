import { z } from "zod";
import { positiveF32 } from "../core/positive-f32.js";
import { mixStrategies } from "../data/mix.js";
import { optimizerNames } from "../optim/optimizers.js";
import { scheduleNames } from "../optim/schedule.js";
import { templateNames } from "../text/templates.js";
import { toolFormatNames } from "../text/tool-formats.js";
import type { StepDefaults } from "../tuners/tuner.js";

/**
 * The settings of a run, under LLaMA-Factory's names. What only one tuner, objective or backend reads is not here: each brings its own
 * schema (`Method.config`), so a new method adds no line to this file.
 *
 * Source: LLaMA-Factory src/llamafactory/hparams at ff6d4d12 and Hugging Face's TrainingArguments; defaults are theirs unless the
 * description says otherwise.
 */

/** A comma list or a YAML list, at least one item. */
const wordList = z
  .union([z.string(), z.array(z.string())])
  .transform((value) => {
    const items = typeof value === "string" ? value.split(",") : value;
    return items.map((item) => item.trim()).filter((item) => item !== "");
  })
  .refine((items) => items.length > 0);

/** `name=value,name=value`, as transformers writes it, or a mapping. */
const optimArgs = z
  .union([z.string(), z.record(z.string(), z.unknown())])
  .refine((value) => typeof value !== "string" || /^\s*(\w+\s*=[^,=]+(,\s*\w+\s*=[^,=]+)*)?$/.test(value))
  .transform((value) => (typeof value === "string" ? argumentsIn(value) : value));

function argumentsIn(text: string): Record<string, unknown> {
  const items = text.split(",").filter((item) => item.trim() !== "");
  const read = (value: string) =>
    ({ true: true, false: false })[value.toLowerCase()] ?? (Number.isNaN(Number(value)) ? value : Number(value));
  return Object.fromEntries(
    items.map((item) => item.split("=").map((part) => part.trim())).map(([name, value]) => [name, read(value!)]),
  );
}

/** Numbers as a comma list or a YAML list. */
const numberList = z
  .union([z.string(), z.array(z.number())])
  .refine(
    (value) => typeof value !== "string" || value.split(",").every((item) => item.trim() !== "" && Number.isFinite(Number(item))),
  )
  .transform((value) => (typeof value === "string" ? value.split(",").map(Number) : value));

const count = z.int().min(1);

/** The adapters that a setting names, by commas as LLaMA-Factory has them. */
export function adapterNames(setting: string): string[] {
  return setting
    .split(",")
    .map((name) => name.trim())
    .filter((name) => name !== "");
}

/** A limit far above any use: counts stay exact, and loops end. */
export const maxSteps = 1e8;

const model = {
  model_name_or_path: z.string().min(1).describe("the base model: a folder, a GGUF file, or a repository name of the hub"),
  model_revision: z
    .string()
    .min(1)
    .default("main")
    .describe("branch, tag or commit of the repository; the same as `owner/name@revision` in the name"),
  adapter_name_or_path: z
    .string()
    .min(1)
    .nullable()
    .default(null)
    .describe("an adapter to continue training from; with create_new_adapter, those to train a new one over, by commas"),
  create_new_adapter: z
    .boolean()
    .default(false)
    .describe(
      "merge the adapters of adapter_name_or_path into the base, in f32, and train a new one over them; their copies are saved with it, in base_adapters",
    ),
};

const method = {
  stage: z.string().default("sft").describe("what is minimised"),
  stages: z
    .union([
      z.string().transform((value) => value.split(",").map((name) => name.trim())),
      z.array(z.union([z.string(), z.record(z.string(), z.unknown())])).min(1),
    ])
    .nullable()
    .prefault(null)
    .describe(
      "several runs, one after the other, in place of `stage`: names, or mappings of `stage` and settings of its own; each begins from what the last one saved (attune's own; docs/rlhf.md)",
    ),
  finetuning_type: z.string().default("lora").describe("which parameters train, and how they enter the model"),
};

const data = {
  dataset: wordList.describe("the training data: files, or names of `dataset_info.json`"),
  dataset_dir: z
    .string()
    .min(1)
    .default("data")
    .describe("the folder of `dataset_info.json`, and where files are looked for second"),
  eval_dataset: wordList.nullable().prefault(null).describe("held-out data, named like `dataset`"),
  val_size: z
    .union([z.number().min(0).lt(1), count])
    .default(0)
    .describe("how much of `dataset` to hold out: a share, or a number of rows"),
  mix_strategy: z
    .enum(mixStrategies)
    .default("concat")
    .describe(
      "how several datasets become one: one after another; or rows in turns or by `interleave_probs`, until one has no more (under), each was through once (over), or all rows are used (once). Held-out rows are taken out before, and not mixed",
    ),
  interleave_probs: numberList
    .nullable()
    .prefault(null)
    .describe("how often each dataset is drawn from, as in Hugging Face's datasets with the same `seed`; not set: in turns"),
  disable_shuffling: z
    .boolean()
    .default(false)
    .describe("train rows in the order of the data in every epoch; packed, a sequence ends where the next row does not fit"),
  template: z.enum(templateNames).nullable().default(null).describe("the chat template; the model's own where not set"),
  tool_format: z
    .enum(toolFormatNames)
    .nullable()
    .default(null)
    .describe(
      "how tools and calls of them are written, for a chat template that has no place for them; LLaMA-Factory's other formats are not known",
    ),
  default_system: z
    .string()
    .nullable()
    .default(null)
    .describe("the system message where a row has none; saved in the chat template, so answers get it too"),
  enable_thinking: z
    .boolean()
    .nullable()
    .default(null)
    .describe(
      "what templates of reasoning models see under this name; false: answers begin after an empty thought, and thoughts of the data are left out; not set: the template's default, thoughts are learned where the data has them. Saved in the chat template",
    ),
  cutoff_len: z.int().min(2).default(2048).describe("longest row, in tokens; what is longer is cut, with a notice"),
  max_samples: count.nullable().default(null).describe("read at most this many rows of each dataset"),
  packing: z.boolean().default(false).describe("fill every sequence to `cutoff_len` with whole rows; rows never see each other"),
  neat_packing: z.boolean().default(false).describe("the same as `packing`, which is always neat here"),
  train_on_prompt: z.boolean().default(false).describe("count the prompt in the loss, not only the answers"),
  mask_history: z.boolean().default(false).describe("count only the last answer of a conversation in the loss"),
  on_bad_record: z
    .enum(["error", "skip"])
    .default("error")
    .describe("what to do with a row that cannot be used: stop, or leave it out and tell; docs/data.md (attune's own)"),
};

const steps = {
  per_device_train_batch_size: count.default(1).describe("rows per forward and backward; LLaMA-Factory: 8"),
  gradient_accumulation_steps: count
    .nullable()
    .default(null)
    .describe("batches summed before the weights change; not set: see `learning_rate`"),
  num_train_epochs: z.number().gt(0).default(3).describe("passes over the data; may be fractional"),
  max_steps: z
    .union([count.max(maxSteps), z.literal(-1)])
    .default(-1)
    .describe("stop after this many steps, whatever `num_train_epochs` says; -1: do not"),
  learning_rate: positiveF32
    .nullable()
    .default(null)
    .describe(
      "the peak learning rate; not set: the method's own, with its own accumulation and warm-up where these are not set either (the table below)",
    ),
  lr_scheduler_type: z.enum(scheduleNames).default("linear").describe("how the learning rate goes down after the warm-up"),
  lr_scheduler_kwargs: z
    .record(z.string(), z.unknown())
    .nullable()
    .default(null)
    .describe("settings of the schedule: those of transformers' function for it, such as `num_cycles`, `min_lr`, `power`"),
  warmup_ratio: z
    .number()
    .min(0)
    .max(1)
    .nullable()
    .default(null)
    .describe("share of the steps in which the learning rate rises from 0; not set: see `learning_rate`"),
  warmup_steps: z
    .union([z.int().min(0), z.number().min(0).lt(1)])
    .default(0)
    .describe("the same as a number of steps, or below 1 as a share of them (transformers 5); wins over `warmup_ratio` unless 0"),
  optim: z
    .enum(optimizerNames)
    .default("adamw_torch")
    .describe(
      "how weights are updated: AdamW with moments in f32, or in 8 bits (`adamw_8bit`, as in bitsandbytes), under several names; Adafactor, Lion, Muon, SGD",
    ),
  optim_args: optimArgs
    .nullable()
    .prefault(null)
    .describe("settings of the optimizer, as `momentum=0.9,nesterov=true` or a mapping: of `sgd` momentum, dampening, nesterov"),
  use_muon: z.boolean().default(false).describe("the same as `optim: muon`"),
  weight_decay: z
    .number()
    .min(0)
    .max(1e38)
    .default(0)
    .describe("what a step takes away of a weight, times the learning rate; of all that trains but biases and norms"),
  adam_beta1: z.number().min(0).lt(1).default(0.9).describe("decay of the first moment of AdamW and Lion"),
  adam_beta2: z
    .number()
    .min(0)
    .lt(1)
    .default(0.999)
    .describe("decay of AdamW's second moment; of Lion, how fast its momentum forgets (its paper: 0.99)"),
  adam_epsilon: positiveF32.default(1e-8).describe("added to the root of AdamW's second moment"),
  max_grad_norm: z
    .union([z.literal(0), positiveF32])
    .default(1)
    .describe("gradients are scaled down to this norm; 0: never"),
  disable_dropout: z
    .boolean()
    .default(false)
    .describe("leave out the dropout that the base's own config.json asks for (TRL's name; the adapter's own stays)"),
  neftune_noise_alpha: z
    .union([z.literal(0), positiveF32])
    .nullable()
    .default(null)
    .describe(
      "NEFTune: training adds uniform noise of ±α/√(L·C) to the vectors of tokens, L the length of the row itself, packed or not; not set or 0: none",
    ),
  seed: z.int().min(0).default(42).describe("of initialisation, data order, dropout and noise"),
  do_train: z
    .boolean()
    .default(true)
    .describe(
      "false: train nothing, and only evaluate (`do_eval`) or answer (`do_predict`), by `adapter_name_or_path` or the base alone; so is a recipe with one of these and `eval_dataset`, without `dataset`",
    ),
};

/** Where transformers can send metrics, beside TensorBoard. */
export const otherReporters = [
  ...["azure_ml", "clearml", "codecarbon", "comet_ml", "dagshub", "dvclive", "flyte", "kubeflow", "mlflow", "neptune", "swanlab"],
  ...["trackio", "wandb"],
] as const;

const reporterList = z
  .union([z.string(), z.array(z.string())])
  .transform((value) => (typeof value === "string" ? value.split(",") : value).map((name) => name.trim()));

const predictions = {
  do_eval: z
    .boolean()
    .default(false)
    .describe("evaluate held-out rows at the end, whatever `eval_strategy` says; where nothing trains, that is all there is"),
  do_predict: z
    .boolean()
    .default(false)
    .describe(
      "at the end, let the model answer the held-out rows: `generated_predictions.jsonl`, and BLEU-4 and ROUGE in `predict_results.json`",
    ),
  predict_with_generate: z.boolean().default(false).describe("needs not be said: `do_predict` always writes answers"),
  max_new_tokens: count.max(1e6).default(1024).describe("tokens that an answer has at most"),
  do_sample: z.boolean().default(true).describe("draw answers by chance, or take the likeliest token each time"),
  temperature: z.number().gt(0).max(1e3).default(0.95).describe("above 1 answers vary more, below less"),
  top_p: z.number().gt(0).max(1).default(0.7).describe("draw from the likeliest tokens whose chances add up to this"),
  top_k: z.int().min(0).default(50).describe("draw from so many of the likeliest tokens; 0: all"),
  repetition_penalty: z
    .number()
    .gt(0)
    .max(1e3)
    .default(1)
    .describe("above 1, tokens that stand in the text already become less likely"),
};

const output = {
  output_dir: z.string().min(1).describe("where adapter, checkpoints and logs go"),
  overwrite_output_dir: z.boolean().default(false).describe("replace what an earlier run left in `output_dir`"),
  resume_from_checkpoint: z
    .union([z.boolean(), z.string().min(1)])
    .default(false)
    .describe("true: go on from the newest complete checkpoint in `output_dir`; or the checkpoint to go on from"),
  logging_steps: count.default(10).describe("a line in the logs every this many steps; LLaMA-Factory: 500"),
  eval_strategy: z
    .enum(["no", "steps", "epoch"])
    .nullable()
    .default(null)
    .describe(
      "when to evaluate, and at the end; no: never; not set: every `eval_steps` if given, else after each epoch, if there is held-out data",
    ),
  eval_steps: count.nullable().default(null).describe("evaluate every this many steps; not set: `logging_steps`"),
  save_strategy: z
    .enum(["no", "steps", "epoch", "best"])
    .default("steps")
    .describe("when to save checkpoints; best: after each evaluation that is the best so far; the end is always saved"),
  save_steps: count.default(500).describe("a checkpoint every this many steps"),
  save_total_limit: count.nullable().default(null).describe("keep only the newest checkpoints; not set: all"),
  load_best_model_at_end: z
    .boolean()
    .default(false)
    .describe(
      "save the weights of the best evaluation as the result; each evaluation that is the best so far is saved as a checkpoint, which `save_total_limit` never deletes",
    ),
  metric_for_best_model: z
    .string()
    .min(1)
    .nullable()
    .default(null)
    .describe(
      "what tells which evaluation is the best: `loss` (where not set), or a metric such as `accuracy`, with `eval_` before it or not",
    ),
  greater_is_better: z
    .boolean()
    .nullable()
    .default(null)
    .describe("whether more of that metric is better; not set: unless its name ends in `loss`"),
  early_stopping_steps: count
    .nullable()
    .default(null)
    .describe(
      "end the run after so many evaluations in a row that brought nothing better (evaluations, not steps, whatever the name says)",
    ),
  early_stopping_threshold: z
    .number()
    .min(0)
    .default(0)
    .describe("what is better by no more than this is nothing better for `early_stopping_steps`"),
  save_only_model: z.boolean().default(false).describe("checkpoints without optimizer state: smaller, but no resume from them"),
  report_to: reporterList
    .prefault("none")
    .describe("tensorboard, or all: also write files for TensorBoard; other services get nothing"),
  logging_dir: z
    .string()
    .min(1)
    .nullable()
    .default(null)
    .describe("where TensorBoard's files go; not set: a folder in `output_dir`/runs, named after the time and the machine"),
  save_dtype: z
    .enum(["f32", "bf16", "f16", "base"])
    .nullable()
    .default(null)
    .describe(
      "the type of the saved model's weights where the whole model is saved (full, freeze); base: as in the base's files; not set: f32 for what trained, the rest as it is stored; checkpoints keep f32 (attune's own)",
    ),
  plot_loss: z.boolean().default(true).describe("draw `training_loss.png` at the end; LLaMA-Factory: false"),
};

const machine = {
  backend: z.string().default("native").describe("what executes the run (attune's own)"),
  gradient_checkpointing: z
    .boolean()
    .default(false)
    .describe("compute activations twice instead of keeping them: less memory, slower"),
};

/** The settings as the documentation groups them. */
export const recipeGroups = {
  "The model": model,
  "The method": method,
  "The data": data,
  "The steps": steps,
  "The predictions": predictions,
  "The output": output,
  "The machine": machine,
} as const;

export const RecipeKeys = z.strictObject({ ...model, ...method, ...data, ...steps, ...predictions, ...output, ...machine });

/** A tuner, an objective or a backend, as far as recipes care. */
export interface Method {
  readonly name: string;
  /** The settings that only it reads, under LLaMA-Factory's names. */
  readonly config?: z.ZodType;
  /** Names that other trainers give to its settings, and to those of other methods too. */
  readonly otherNames?: Readonly<Record<string, string>>;
  /** Of an objective: `Objective.narrows`. */
  readonly narrows?: z.ZodType;
  /** What docs/recipe.md says below the settings, in Markdown. */
  readonly notes?: string;
  /** A tuner's own steps, where the recipe names no learning rate. */
  readonly defaults?: readonly StepDefaults[];
  /** An objective whose rows always fill sequences of `cutoff_len`; or, where false, never. */
  readonly packs?: boolean;
  /** What an objective multiplies a tuner's own rate by. */
  readonly rateFactor?: number;
  /** Settings of other trainers that change nothing about the result under this method, each with the reason. */
  readonly needless?: Readonly<Record<string, string>>;
  /** How adapters of a tuner are read; absent for one that trains the model itself, whose result is a whole model. */
  readonly adapter?: unknown;
  /** Of an objective: `Objective.handsOver`. */
  readonly handsOver?: (folder: string, result: "adapter" | "model") => Readonly<Record<string, string>>;
}

/** What `finetuning_type`, `stage` and `backend` choose from. */
export interface Methods {
  readonly tuners: readonly Method[];
  readonly objectives: readonly Method[];
  readonly backends: readonly Method[];
}

/** A setting that chooses a method, and the list that it chooses from. */
export function axesOf({ tuners, objectives, backends }: Methods) {
  return { finetuning_type: tuners, stage: objectives, backend: backends };
}

/** The settings that a method has defaults of its own for. */
export interface Steps {
  readonly learning_rate: number;
  readonly gradient_accumulation_steps: number;
  readonly warmup_ratio: number;
}

/** The defaults of LLaMA-Factory and transformers: of a method that has none of its own, and of what a recipe with a learning rate leaves open. */
export const commonSteps: Steps = { learning_rate: 5e-5, gradient_accumulation_steps: 1, warmup_ratio: 0 };

/** A checked recipe: every default filled in, every setting in range. */
export interface Recipe extends Readonly<Omit<z.output<typeof RecipeKeys>, "eval_strategy" | "eval_steps" | keyof Steps>>, Steps {
  readonly eval_strategy: "no" | "steps" | "epoch";
  readonly eval_steps: number;
  /** Output of the schema of the tuner that `finetuning_type` names. */
  readonly tuner: Readonly<Record<string, unknown>>;
  /** Output of the schema of the objective that `stage` names. */
  readonly objective: Readonly<Record<string, unknown>>;
  /** Output of the schema of the backend that `backend` names. */
  readonly backendConfig: Readonly<Record<string, unknown>>;
}

/** JSON Schema of one setting, as far as it is read here. */
export interface KeySchema {
  readonly type?: string;
  readonly description?: string;
  readonly default?: unknown;
  readonly enum?: readonly unknown[];
  readonly const?: unknown;
  readonly minimum?: number;
  readonly exclusiveMinimum?: number;
  readonly maximum?: number;
  readonly exclusiveMaximum?: number;
  readonly minLength?: number;
  readonly anyOf?: readonly KeySchema[];
  readonly items?: KeySchema;
  readonly additionalProperties?: KeySchema;
}

/** The settings of a schema by name. */
export function keySchemas(schema: z.ZodType): Record<string, KeySchema> {
  const { properties = {} } = z.toJSONSchema(schema, { io: "input" }) as { properties?: Record<string, KeySchema> };
  const oneType = ({ type, ...rest }: KeySchema): KeySchema =>
    Array.isArray(type) ? { ...rest, anyOf: type.map((each: string) => ({ type: each })) } : { ...rest, ...(type && { type }) };
  return Object.fromEntries(Object.entries(properties).map(([key, property]) => [key, oneType(property)]));
}

/** JSON Schema (draft 2020-12) of recipe files, with the settings of every method: for editors, forms and documentation. */
export function recipeJsonSchema(
  methods: Methods,
): Record<string, unknown> & { readonly properties: Readonly<Record<string, KeySchema>> } {
  const properties: Record<string, KeySchema> = keySchemas(RecipeKeys);
  for (const [key, choices] of Object.entries(axesOf(methods))) {
    properties[key] = { ...properties[key], enum: choices.map(({ name }) => name) };
    for (const { config } of choices) if (config) Object.assign(properties, keySchemas(config));
  }
  return { ...z.toJSONSchema(RecipeKeys, { io: "input" }), title: "attune recipe", properties };
}

/** What a setting takes, in words: `a number above 0`, `one of linear, cosine`, `true or false`. */
export function expectation(schema: KeySchema): string {
  if (schema.const !== undefined) return String(schema.const);
  if (schema.enum) return schema.enum.length === 1 ? String(schema.enum[0]) : `one of ${schema.enum.join(", ")}`;
  if (schema.anyOf) {
    const choices = schema.anyOf.filter((choice) => choice.type !== "null").map(expectation);
    return choices.join(", or ");
  }
  switch (schema.type) {
    case "boolean":
      return "true or false";
    case "integer":
      return `a whole number${range(schema)}`;
    case "number":
      return `a number${range(schema)}`;
    case "array":
      if (schema.items?.anyOf?.some(({ type }) => type === "object")) return "a list of texts or mappings";
      return `a list of ${{ integer: "whole numbers", number: "numbers", object: "mappings" }[schema.items?.type ?? ""] ?? "texts"}`;
    case "object":
      return "a mapping";
    default:
      return "a text";
  }
}

function range(schema: KeySchema): string {
  const { minimum, maximum } = schema;
  if (minimum !== undefined && maximum !== undefined && maximum !== Number.MAX_SAFE_INTEGER)
    return ` from ${minimum} to ${maximum}`;
  const bounds: string[] = [];
  if (schema.exclusiveMinimum !== undefined) bounds.push(`above ${schema.exclusiveMinimum}`);
  else if (minimum !== undefined && minimum !== Number.MIN_SAFE_INTEGER) bounds.push(`from ${minimum}`);
  if (schema.exclusiveMaximum !== undefined) bounds.push(`below ${schema.exclusiveMaximum}`);
  else if (maximum !== undefined && maximum !== Number.MAX_SAFE_INTEGER) bounds.push(`up to ${maximum}`);
  return bounds.length === 0 ? "" : ` ${bounds.join(" and ")}`;
}
