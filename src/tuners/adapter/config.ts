import { z } from "zod";
import { activations } from "../../core/ops/activation.js";
import { ConfigError } from "../../errors.js";

const reductionFactor = z.number().min(1e-6).max(1e38);

/**
 * What an adapter of this method computes, each choice by itself; `adapter_config` names a kind that makes all of them. Names, and what each
 * setting computes, are those of AdapterHub's `adapters` 1.3 (configuration/adapter_config.py); so are the defaults of the three kinds, its
 * double_seq_bn, seq_bn and par_bn.
 */
export const Settings = z.strictObject({
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

export type Settings = z.output<typeof Settings>;

/** The library's defaults, where the kinds do not say otherwise. */
export const libraryDefaults: Partial<Settings> = {
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
export function keepsResidual(config: AdapterConfig): boolean {
  return config.original_ln_after || (config.original_ln_before && !config.residual_before_ln && !config.is_parallel);
}

/** Width of the bottleneck in a layer. Throws ConfigError where nothing is said of the layer. */
export function bottleneckWidth(factors: Settings["reduction_factor"], width: number, layer: number): number {
  const factor = typeof factors === "number" ? factors : (factors[layer] ?? factors.default);
  if (factor === undefined) throw new ConfigError(`reduction_factor: says nothing of layer ${layer}, and has no default`);
  return Math.max(1, Math.floor(width / factor));
}
