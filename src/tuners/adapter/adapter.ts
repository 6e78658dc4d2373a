import { z } from "zod";
import type { Device } from "../../core/device.js";
import { activation, activations } from "../../core/ops/activation.js";
import { add } from "../../core/ops/add.js";
import { dropout } from "../../core/ops/dropout.js";
import { scale } from "../../core/ops/scale.js";
import { scaleBy } from "../../core/ops/scale-by.js";
import type { Rng } from "../../core/rng.js";
import { scope, Tensor, unscoped } from "../../core/tensor.js";
import { ConfigError, ModelError } from "../../errors.js";
import { type AdapterConfig as AdapterJson, adapterConfigName, checkSize, isUnused } from "../../io/adapters/adapter-folder.js";
import { adapterHub } from "../../io/adapters/adapterhub.js";
import type { TensorEntry } from "../../io/model-files.js";
import { drawnValues } from "../../nn/init.js";
import { LayerNorm } from "../../nn/layer-norm.js";
import { Linear, type Projection } from "../../nn/linear.js";
import { Module, Parameter } from "../../nn/module.js";
import { Residual, type ResidualNorms } from "../../nn/residual.js";
import { defineTuner } from "../tuner.js";

const reductionFactor = z.number().min(1e-6).max(1e38);

/**
 * Adapter Tuning: where a sub-layer meets the residual connection around it stands a small network with a bottleneck, the only thing that
 * trains.   A(h) = s · (W↑ f(W↓ h + b↓) + b↑)
 *
 * Sources: Houlsby et al. 2019, arXiv:1902.00751 (after attention and after the MLP); Pfeiffer et al. 2020, arXiv:2005.00247 (after the MLP);
 * He et al. 2021, arXiv:2110.04366 (parallel to the MLP, scaled). Names of settings and of weights, and what each setting computes, are those
 * of AdapterHub's `adapters` 1.3 (configuration/adapter_config.py, methods/bottleneck.py, methods/modeling.py); so are the defaults of the
 * three kinds, its double_seq_bn, seq_bn and par_bn. As there, a parallel adapter reads what goes around the sub-layer: in a model that
 * normalises before its sub-layers, that is before the norm.
 */
const Settings = z.strictObject({
  mh_adapter: z.boolean().describe("an adapter after the attention of every layer; houlsby: true"),
  output_adapter: z.boolean().describe("an adapter after the feed-forward part of every layer; every kind: true"),
  reduction_factor: z
    .union([reductionFactor, z.record(z.string(), reductionFactor)])
    .describe(
      "width of the model over that of the bottleneck; or one for each layer by its number, with a `default`; 16, parallel: 2",
    ),
  non_linearity: z.enum(Object.keys(activations)).describe("the function in the bottleneck; houlsby: swish, else relu"),
  is_parallel: z.boolean().describe("the adapter reads what goes around the sub-layer, not what comes out of it; parallel: true"),
  scaling: z
    .union([z.number().min(-1e38).max(1e38), z.literal("learned")])
    .describe("factor of what the adapter adds; learned: it trains, from 1; 1, parallel: 4"),
  original_ln_before: z.boolean().describe("the adapter reads the sum of sub-layer and residual; pfeiffer: true"),
  original_ln_after: z.boolean().describe("the residual is added after the adapter; every kind: true"),
  residual_before_ln: z
    .boolean()
    .describe("what comes out of the sub-layer goes around the adapter, not what it reads; every kind: true"),
  ln_before: z.boolean().describe("a LayerNorm of its own before the bottleneck; every kind: false"),
  ln_after: z.boolean().describe("a LayerNorm of its own after the bottleneck; every kind: false"),
  adapter_residual_before_ln: z.boolean().describe("that LayerNorm takes in what goes around the adapter; every kind: false"),
  dropout: z
    .number()
    .min(0)
    .lt(1)
    .describe("chance of zeroing a feature of what the adapter adds, in training only; every kind: 0"),
  leave_out: z.array(z.int().min(0)).describe("numbers of the layers without adapters, from 0"),
  init_weights: z
    .enum(["bert", "mam_adapter", "houlsby"])
    .describe(
      "bert: N(0, 0.02²), nearly the base model; mam_adapter: up-projection 0, the base model itself; houlsby: N(0, 0.01²) up to two " +
        "deviations; parallel: mam_adapter, else bert",
    ),
});

type Settings = z.output<typeof Settings>;

/** The library's defaults, where the kinds do not say otherwise. */
const libraryDefaults: Partial<Settings> = {
  is_parallel: false,
  scaling: 1,
  original_ln_before: false,
  original_ln_after: true,
  residual_before_ln: true,
  ln_before: false,
  ln_after: false,
  adapter_residual_before_ln: false,
  dropout: 0,
  leave_out: [],
  init_weights: "bert",
};

const kinds = {
  houlsby: { mh_adapter: true, output_adapter: true, reduction_factor: 16, non_linearity: "swish" },
  pfeiffer: { mh_adapter: false, output_adapter: true, reduction_factor: 16, non_linearity: "relu", original_ln_before: true },
  parallel: {
    mh_adapter: false,
    output_adapter: true,
    reduction_factor: 2,
    non_linearity: "relu",
    is_parallel: true,
    scaling: 4,
    init_weights: "mam_adapter",
  },
} as const;
type Kind = keyof typeof kinds;

export type AdapterConfig = Settings & { readonly adapter_config: Kind };

const notSet = <T extends z.ZodType>(type: T) =>
  type
    .nullable()
    .default(null as never)
    .describe(type.description ?? "");

export const AdapterConfig: z.ZodType<AdapterConfig> = z
  .strictObject({
    adapter_config: z
      .enum(["houlsby", "pfeiffer", "parallel"])
      .default("houlsby")
      .describe("kind of adapter, which decides whatever is not set (AdapterHub: double_seq_bn, seq_bn, par_bn)"),
    ...Object.fromEntries(Object.entries(Settings.shape).map(([name, type]) => [name, notSet(type)])),
  })
  .transform((given) => {
    const set = Object.fromEntries(Object.entries(given).filter(([, value]) => value !== null));
    return { ...libraryDefaults, ...kinds[given.adapter_config], ...set } as AdapterConfig;
  })
  .refine(
    keepsResidual,
    "original_ln_after: without it, original_ln_before must be set and residual_before_ln not: nothing else adds the residual",
  );

/** Whether what went around the sub-layer still reaches the next one. */
function keepsResidual(config: AdapterConfig): boolean {
  return config.original_ln_after || (config.original_ln_before && !config.residual_before_ln && !config.is_parallel);
}

/**
 * A residual connection with an adapter: x went around the sub-layer, which made y, both (T, C). With the defaults, houlsby gives
 * x + y + A(y), pfeiffer x + y + A(x + y), parallel x + y + A(x). Where the model normalises after its sub-layers, pfeiffer's adapter reads
 * what comes out of that norm, which then follows the adapter once more. (For Gemma, the library takes the last layer's norm in all layers, by
 * a slip in `init_bottleneck`; we take each layer's own.)
 */
export class AdaptedResidual extends Module {
  /** The norm of `ln_before`, if any, and W↓ (R, C). */
  readonly adapter_down: Projection[] = [];
  /** W↑ (C, R) */
  readonly adapter_up: Linear;
  /** (1), if it trains. */
  readonly scaling: Parameter | null;
  readonly adapter_norm_after: LayerNorm | null;
  readonly #norms: ResidualNorms;
  readonly #config: AdapterConfig;

  constructor({ norms }: Residual, device: Device, width: number, bottleneck: number, config: AdapterConfig, rng: Rng) {
    super();
    const down = new Linear(width, bottleneck, { bias: true });
    if (config.ln_before) this.adapter_down.push(layerNorm(device, width));
    this.adapter_down.push(down);
    this.adapter_up = new Linear(bottleneck, width, { bias: true });
    this.scaling =
      config.scaling === "learned"
        ? new Parameter(
            [1],
            filled(device, [1], () => 1),
          )
        : null;
    this.adapter_norm_after = config.ln_after ? layerNorm(device, width) : null;
    this.#norms = norms;
    this.#config = config;
    if ((norms.before ?? norms.after) !== undefined && !config.original_ln_after)
      throw new ConfigError("original_ln_after: must be set for a model that normalises after its sub-layers");

    const [downStart, upStart] = startOf(config.init_weights, width, rng);
    down.weight.value = filled(device, down.weight.shape, downStart);
    this.adapter_up.weight.value = filled(device, this.adapter_up.weight.shape, upStart);
    for (const { bias } of [down, this.adapter_up]) bias!.value = filled(device, bias!.shape, 0);
    for (const [, parameter] of this.namedParameters()) parameter.requiresGrad = true;
  }

  forward(x: Tensor, y: Tensor): Tensor {
    return scope(() => this.#join(x, y)); // in a scope of its own, no op takes the memory of x or y
  }

  #join(x: Tensor, y: Tensor): Tensor {
    const { is_parallel, original_ln_before, original_ln_after, residual_before_ln, adapter_residual_before_ln } = this.#config;
    const read = is_parallel ? x : original_ln_before ? this.#normed(add(x, y)) : y;
    const around = is_parallel || residual_before_ln ? y : read;
    const made = this.#adapt(read);
    const norm = this.adapter_norm_after;
    const adapted =
      norm === null
        ? add(around, made)
        : adapter_residual_before_ln && !is_parallel
          ? norm.forward(add(around, made))
          : add(around, norm.forward(made));
    return original_ln_after ? add(x, this.#norms.before?.forward(adapted) ?? adapted) : adapted;
  }

  #normed(sum: Tensor): Tensor {
    return (this.#norms.before ?? this.#norms.after)?.forward(sum) ?? sum;
  }

  #adapt(h: Tensor): Tensor {
    const { non_linearity, scaling, dropout: p } = this.#config;
    const narrow = activation(
      this.adapter_down.reduce((input, layer) => layer.forward(input), h),
      activations[non_linearity]!,
    );
    const up = this.adapter_up.forward(narrow);
    const scaled = this.scaling !== null ? scaleBy(up, this.scaling.value) : scaling === 1 ? up : scale(up, Number(scaling));
    return dropout(scaled, p);
  }
}

/** What a weight begins as: one number, or numbers drawn one after the other. */
type Start = number | (() => number);

/** How W↓ and W↑ begin; biases begin at 0. Source: methods/modeling.py. */
function startOf(init: AdapterConfig["init_weights"], width: number, rng: Rng): readonly [down: Start, up: Start] {
  switch (init) {
    case "bert": {
      const draw = () => 0.02 * rng.normal();
      return [draw, draw];
    }
    case "mam_adapter": {
      const bound = 1 / Math.sqrt(width); // Kaiming-uniform with a = √5
      return [() => rng.uniform(-bound, bound), 0];
    }
    case "houlsby": {
      const draw = (): number => {
        const value = rng.normal();
        return Math.abs(value) <= 2 ? 0.01 * value : draw();
      };
      return [draw, draw];
    }
  }
}

function filled(device: Device, shape: readonly number[], start: Start): Tensor {
  if (typeof start !== "number") return drawnValues(device, shape, start);
  const tensor = unscoped(() => Tensor.empty(device, shape));
  device.kernels.fill(tensor.id, start, tensor.size);
  return tensor;
}

/** With PyTorch's defaults. */
function layerNorm(device: Device, width: number): LayerNorm {
  const norm = new LayerNorm(width, 1e-5);
  norm.weight.value = filled(device, [width], 1);
  norm.bias.value = filled(device, [width], 0);
  return norm;
}

export const adapter = defineTuner<AdapterConfig>({
  name: "adapter",
  summary: "trains small networks with a bottleneck between the sub-layers of the base model, which stays as it is",
  config: AdapterConfig,

  bind: (config) => ({
    apply(model, rng) {
      model.freeze();
      const { device, shape } = model;
      const bottleneckOf = bottlenecks(config, shape.width, shape.layers);
      const wanted = { attention_residual: config.mh_adapter, mlp_residual: config.output_adapter };
      let count = 0;
      for (const [path, module] of [...model.namedModules()]) {
        const [, layer, name] = /\.(\d+)\.(attention_residual|mlp_residual)$/.exec(path) ?? [];
        if (!(module instanceof Residual) || !wanted[name as keyof typeof wanted] || config.leave_out.includes(Number(layer)))
          continue;
        model.replace(path, new AdaptedResidual(module, device, shape.width, bottleneckOf(Number(layer)), config, rng));
        count++;
      }
      if (count === 0) throw new ConfigError("adapter: mh_adapter, output_adapter and leave_out leave no place for an adapter");
    },
    adapter: {
      library: adapterHub,
      toJson() {
        const { adapter_config: _, ...settings } = config;
        return { config: settings };
      },
    },
  }),

  adapter: {
    library: adapterHub,
    recognises: ({ config, peft_type }) => typeof config === "object" && config !== null && peft_type === undefined,
    fromJson,
  },
});

/** R of each layer. Throws ConfigError for numbers of layers that the model does not have. */
function bottlenecks({ reduction_factor: factors, leave_out }: AdapterConfig, width: number, layers: number) {
  const check = (key: string, layer: number) => {
    if (Number.isInteger(layer) && layer >= 0 && layer < layers) return;
    throw new ConfigError(`${key}: expected numbers of layers from 0 to ${layers - 1}, got ${layer}`);
  };
  for (const layer of leave_out) check("leave_out", layer);
  if (typeof factors !== "number")
    for (const key of Object.keys(factors)) if (key !== "default") check("reduction_factor", Number(key));
  return (layer: number) => bottleneckWidth(factors, width, layer);
}

function bottleneckWidth(factors: Settings["reduction_factor"], width: number, layer: number): number {
  const factor = typeof factors === "number" ? factors : (factors[layer] ?? factors.default);
  if (factor === undefined) throw new ConfigError(`reduction_factor: says nothing of layer ${layer}, and has no default`);
  return Math.max(1, Math.floor(width / factor));
}

/** Keys of the library's BnConfig that change nothing as long as PHM layers and invertible adapters are not used. */
const withoutEffect = new Set([
  ...[
    "phm_dim",
    "factorized_phm_W",
    "shared_W_phm",
    "shared_phm_rule",
    "factorized_phm_rule",
    "phm_c_init",
    "phm_init_range",
    "learn_phm",
  ],
  ...["hypercomplex_nonlinearity", "phm_rank", "phm_bias", "inv_adapter_reduction_factor", "init_weights_seed"],
]);

/** Names that functions had in files without a version, and have now. Source: the library's utils.py, ACTIVATION_RENAME. */
const oldFunctions: Readonly<Record<string, string>> = { gelu: "gelu_new", gelu_orig: "gelu" };

function fromJson(json: AdapterJson, tensors: ReadonlyMap<string, TensorEntry>): AdapterConfig {
  const where = `${adapterConfigName}: config`;
  const { architecture = null, ...config } = json.config as Record<string, unknown>;
  if (architecture !== null)
    throw new ModelError(
      `${where}: of AdapterHub's methods attune reads bottleneck adapters, this is ${JSON.stringify(architecture).slice(0, 100)}.`,
    );
  const known: Record<string, unknown> = { ...libraryDefaults };
  for (const [key, value] of Object.entries(config)) {
    if (Object.hasOwn(Settings.shape, key)) known[key] = value ?? known[key];
    else if (!withoutEffect.has(key) && !isUnused(key, value) && value !== 0)
      throw new ModelError(
        `${where}: ${JSON.stringify(key.slice(0, 100))} is set to something attune does not know, so the adapter would compute something ` +
          "else than it was trained for.",
      );
  }
  if (typeof known.non_linearity === "string") {
    const name = known.non_linearity.toLowerCase();
    known.non_linearity = json.version === undefined ? (oldFunctions[name] ?? name) : name;
  }
  const parsed = Settings.safeParse(known);
  if (!parsed.success) {
    const { path, message } = parsed.error.issues[0]!;
    throw new ModelError(`${where}: ${path.map(String).join(".").slice(0, 200)}: ${message}.`);
  }
  const adapter_config = parsed.data.is_parallel ? "parallel" : parsed.data.mh_adapter ? "houlsby" : "pfeiffer";
  const settings = { adapter_config, ...parsed.data } as const;
  if (!keepsResidual(settings))
    throw new ModelError(`${where}: nothing adds the residual of the layers: such an adapter cannot work.`);
  if (settings.scaling !== "learned" && !Number.isFinite(Math.fround(settings.scaling)))
    throw new ModelError(`${where}: scaling: ${settings.scaling} is too large.`);
  checkBottlenecks(settings, tensors);
  return settings;
}

/** Before memory is taken for bottlenecks, their widths have to be those of the weights, or narrower than the model. Throws ModelError. */
function checkBottlenecks({ reduction_factor: factors }: Settings, tensors: ReadonlyMap<string, TensorEntry>): void {
  let [widest, width] = [0, 0];
  for (const [name, { shape }] of tensors) {
    const [, layer] = /\.(\d+)\.(?:attention|mlp)_residual\.adapter_down\.\d+\.weight$/.exec(name) ?? [];
    if (layer === undefined || shape.length !== 2) continue; // or its norm's
    const size = bottleneckWidth(factors, shape[1]!, Number(layer));
    checkSize(tensors, { name, axis: 0, key: "reduction_factor", size });
    [widest, width] = [Math.max(widest, size), shape[1]!];
  }
  for (const factor of typeof factors === "number" ? [factors] : Object.values(factors))
    if (width / factor > Math.max(width, widest))
      throw new ModelError(`${adapterConfigName}: config: reduction_factor: for ${factor}, no tensor is wide enough.`);
}
