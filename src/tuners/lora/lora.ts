import { z } from "zod";
import { dropout } from "../../core/ops/dropout.js";
import { addLinear } from "../../core/ops/linear.js";
import type { Rng } from "../../core/rng.js";
import { Tensor, unscoped } from "../../core/tensor.js";
import { ConfigError } from "../../errors.js";
import { checkAdapterConfig, peft } from "../../io/peft.js";
import type { LanguageModel } from "../../models/language-model.js";
import { Linear } from "../../nn/linear.js";
import { Module, Parameter } from "../../nn/module.js";
import { defineTuner } from "../tuner.js";

/**
 * LoRA: keep W frozen and train a rank-r change to it.   y = x Wᵀ + (α/r) · dropout(x) Aᵀ Bᵀ
 *
 * Source: Hu et al. 2021, arXiv:2106.09685, eq. 3 and §4.1. The paper draws A from a Gaussian; like microsoft/LoRA and PEFT we use
 * Kaiming-uniform(√5). Names and saved keys are PEFT's: lora_A, lora_B. Defaults are LLaMA-Factory's.
 */
export const LoraConfig = z.strictObject({
  lora_rank: z.int().min(1).default(8).describe("rank of the update: adds r · (in + out) weights per layer"),
  lora_alpha: z
    .number()
    .positive()
    .nullable()
    .default(null)
    .describe("the update is multiplied by alpha / r; empty: twice the rank"),
  lora_dropout: z.number().min(0).lt(1).default(0).describe("chance of zeroing an input feature, in training only"),
  lora_target: z
    .union([z.string().min(1), z.array(z.string().min(1)).min(1)])
    .default("all")
    .transform((names) => (typeof names === "string" ? names.split(",").map((name) => name.trim()) : names))
    .describe("Linear layers to adapt, by the end of their names; all: every one but the output projection"),
});
export type LoraConfig = z.output<typeof LoraConfig>;

/** A frozen Linear plus its update. x (..., in) → y (..., out), with A (r, in) and B (out, r). */
export class LoraLinear extends Module {
  readonly base_layer: Linear;
  readonly lora_A: Linear;
  readonly lora_B: Linear;
  readonly #scaling: number;
  readonly #dropout: number;

  constructor(base: Linear, { lora_rank: r, lora_alpha, lora_dropout }: LoraConfig, rng: Rng) {
    super();
    this.base_layer = base;
    const { device } = base.weight.value;
    const bound = 1 / Math.sqrt(base.inFeatures); // Kaiming-uniform with a = √5
    const a = Float32Array.from({ length: r * base.inFeatures }, () => rng.uniform(-bound, bound));
    this.lora_A = trainable(unscoped(() => Tensor.from(device, a, [r, base.inFeatures])));
    this.lora_B = trainable(unscoped(() => Tensor.zeros(device, [base.outFeatures, r]))); // zero, so step 0 equals the base model
    this.#scaling = (lora_alpha ?? 2 * r) / r;
    this.#dropout = lora_dropout;
  }

  forward(x: Tensor): Tensor {
    const y = this.base_layer.forward(x);
    const narrow = this.lora_A.forward(dropout(x, this.#dropout)); // (..., r)
    return addLinear(y, narrow, this.lora_B.weight.value, this.#scaling);
  }

  /** W + (α/r) · B A in f32, shape (out, in): an ordinary Linear that needs no LoRA code to run. */
  merged(): Linear {
    const { base_layer: base, lora_A, lora_B } = this;
    const a = lora_A.weight.value;
    const b = lora_B.weight.value;
    const { kernels } = a.device;
    const { value: stored } = base.weight;
    const w = unscoped(() => Tensor.empty(a.device, stored.shape));
    kernels.convert(stored.id, stored.dtype, w.id, "f32", w.size);
    kernels.matmulInputGrad(
      b.id,
      a.id,
      "f32",
      w.id,
      base.outFeatures,
      lora_A.outFeatures,
      base.inFeatures,
      this.#scaling,
      true,
      "f32",
    );
    base.weight.value = w;
    lora_A.dispose();
    lora_B.dispose();
    return base;
  }
}

function trainable(value: Tensor): Linear {
  const [outFeatures, inFeatures] = value.shape as [number, number];
  const layer = new Linear(inFeatures, outFeatures, { weight: new Parameter(value.shape, value) });
  layer.weight.requiresGrad = true;
  return layer;
}

export const lora = defineTuner<LoraConfig>({
  name: "lora",
  summary: "trains a small low-rank change to each Linear layer; the base model stays as it is",
  config: LoraConfig,

  apply(model, config, rng) {
    model.freeze();
    const found = [...linearsOf(model)];
    const wanted = config.lora_target;
    const chosen = found.filter(([path]) => wanted.some((name) => name === "all" || isNamed(path, name)));
    for (const name of wanted)
      if (name !== "all" && !chosen.some(([path]) => isNamed(path, name)))
        throw new ConfigError(
          `lora_target: no Linear layer is named "${name}". There are: ${leafNames(found.map(([path]) => path)).join(", ")}, or all`,
        );
    for (const [path, base] of chosen) model.replace(path, new LoraLinear(base, config, rng));
  },

  merge(model) {
    for (const [path, layer] of [...model.namedModules()]) if (layer instanceof LoraLinear) model.replace(path, layer.merged());
  },

  adapter: {
    library: peft,
    recognises: ({ peft_type }) => peft_type === "LORA",
    toJson: ({ lora_rank, lora_alpha, lora_dropout }, model) => ({
      peft_type: "LORA",
      r: lora_rank,
      lora_alpha: lora_alpha ?? 2 * lora_rank,
      lora_dropout,
      target_modules: targetNames(model),
      bias: "none",
      fan_in_fan_out: false,
      init_lora_weights: true,
      use_rslora: false,
      use_dora: false,
    }),
    fromJson(adapter, tensors) {
      const { r, lora_alpha, lora_dropout } = checkAdapterConfig("adapter_config.json", adapter, PeftLoraConfig);
      const paths = [...tensors.keys()].flatMap((name) => /^(.*)\.lora_[AB]\.weight$/.exec(name)?.[1] ?? []);
      const lora_target = [...new Set(paths)]; // whole paths: what is adapted in fact
      return { lora_rank: r, lora_alpha, lora_dropout, lora_target };
    },
  },
});

/**
 * The keys of adapter_config.json that attune understands, with PEFT's defaults. `init_lora_weights` lists only starts that leave the base
 * model as it is: with the others (PiSSA, OLoRA, LoftQ, CorDA, LoRA-GA) the adapter does not fit the unchanged base.
 * Source: PEFT 0.21, tuners/lora/config.py.
 */
const PeftLoraConfig = z.object({
  peft_type: z.literal("LORA"),
  r: z.int().min(1),
  lora_alpha: z.number().positive(),
  lora_dropout: z.number().min(0).lt(1).default(0),
  /** Which modules are adapted is better told from the tensors. */
  target_modules: z.unknown().optional(),
  exclude_modules: z.unknown().optional(),
  layers_to_transform: z.unknown().optional(),
  layers_pattern: z.unknown().optional(),
  bias: z.literal("none").default("none"),
  init_lora_weights: z.union([z.boolean(), z.enum(["gaussian", "eva", "orthogonal"])]).default(true),
});

/** Every Linear but the heads, which hang at the model itself. */
function* linearsOf(model: LanguageModel): Generator<[path: string, layer: Linear]> {
  for (const [path, module] of model.namedModules()) if (module instanceof Linear && path.includes(".")) yield [path, module];
}

/** As PEFT matches: the whole path, or its end after a dot. */
function isNamed(path: string, name: string): boolean {
  return path === name || path.endsWith(`.${name}`);
}

function leafNames(paths: readonly string[]): string[] {
  return [...new Set(paths.map((path) => path.split(".").at(-1)!))].sort();
}

/** Short names where every Linear of that name is adapted, else whole paths. */
function targetNames(model: LanguageModel): string[] {
  const plain = [...linearsOf(model)].map(([path]) => path.replace(/\.base_layer$/, ""));
  const adapted = [...model.namedModules()].filter(([, module]) => module instanceof LoraLinear).map(([path]) => path);
  const leaves = leafNames(adapted);
  const isWhole = leaves.every((leaf) => plain.every((path) => !isNamed(path, leaf) || adapted.includes(path)));
  return isWhole ? leaves : adapted;
}
