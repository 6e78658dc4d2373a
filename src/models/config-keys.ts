import { z } from "zod";
import { activations } from "../core/ops/activation.js";
import type { Activation } from "../engine/kernels.js";
import { RopeScaling } from "../nn/rotary.js";

/** What several families read from config.json in the same way. */

/** `hidden_act` and its like. */
export const activationKey = z.string().transform((name, context): Activation => {
  const kind = Object.hasOwn(activations, name) ? activations[name] : undefined;
  if (kind !== undefined) return kind;
  context.addIssue(`expected one of ${Object.keys(activations).join(", ")}, got ${JSON.stringify(name)}`);
  return z.NEVER;
});

/** `layer_types`: which layers see the whole past, and which a window of it. */
export const layerTypesKey = z.array(z.enum(["full_attention", "sliding_attention"])).nullish();
export type LayerTypes = z.output<typeof layerTypesKey>;

/** How many of the last keys each layer sees, 0 for all. Without `layer_types`, `slides` tells which layers have a window. */
export function windowsOf(
  {
    layer_types,
    sliding_window: window,
    num_hidden_layers: layers,
  }: {
    readonly layer_types?: LayerTypes;
    readonly sliding_window?: number | null | undefined;
    readonly num_hidden_layers: number;
  },
  slides: (layer: number) => boolean,
  context: z.RefinementCtx,
): number[] {
  if (layer_types && layer_types.length !== layers)
    context.addIssue(`layer_types has ${layer_types.length} entries for ${layers} layers`);
  return Array.from({ length: layers }, (_, i) => {
    const isSliding = layer_types ? layer_types[i] === "sliding_attention" : slides(i);
    return isSliding ? (window ?? 0) : 0;
  });
}

export const ropeKey = z.record(z.string(), z.unknown()).nullish();

/** The keys of RoPE: transformers 5 gathers them in `rope_parameters`, older files have them apart. */
export const ropeKeys = {
  rope_theta: z.number().positive().nullish(),
  rope_scaling: ropeKey,
  rope_parameters: ropeKey,
  partial_rotary_factor: z.number().nullish(),
};

/** Base and scaling of RoPE from its keys; `theta` is the base if they have none. Adds an issue where attune cannot rotate so. */
export function readRope(
  rope: Readonly<Record<string, unknown>>,
  theta: number,
  context: z.RefinementCtx,
): { theta: number; ropeScaling: RopeScaling } {
  const rotated = rope.partial_rotary_factor ?? 1;
  if (rotated !== 1) context.addIssue(`partial_rotary_factor ${JSON.stringify(rotated)}: only whole heads are rotated here`);
  const scaling = RopeScaling.safeParse({ ...rope, rope_type: rope.rope_type ?? rope.type ?? "default" });
  if (!scaling.success) {
    const got = JSON.stringify(rope).slice(0, 200);
    context.addIssue(`rope_scaling: expected type default, linear, llama3 or yarn with its settings, got ${got}`);
  }
  return {
    theta: typeof rope.rope_theta === "number" ? rope.rope_theta : theta,
    ropeScaling: scaling.data ?? { rope_type: "default" },
  };
}

/** The width of a head and the number of key/value heads. Adds an issue if heads do not come out whole. */
export function readHeads(
  config: {
    readonly hidden_size: number;
    readonly num_attention_heads: number;
    readonly num_key_value_heads?: number | null | undefined;
    readonly head_dim?: number | null | undefined;
  },
  context: z.RefinementCtx,
): { headDim: number; kvHeads: number } {
  const { hidden_size: width, num_attention_heads: heads } = config;
  const headDim = config.head_dim ?? width / heads;
  const kvHeads = config.num_key_value_heads ?? heads;
  if (!Number.isInteger(headDim) || headDim % 2 !== 0)
    context.addIssue(`hidden_size ${width} over ${heads} heads gives no even head width`);
  if (heads % kvHeads !== 0) context.addIssue(`${heads} heads are not a multiple of ${kvHeads} key/value heads`);
  return { headDim, kvHeads };
}
