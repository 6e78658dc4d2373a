type Config = Readonly<Record<string, unknown>>;

/** RoPE's settings as a config.json has them, gathered. */
export interface RopeSettings {
  /** `rope_theta`, `rope_type`, `factor` … and the trained context, which some types need. */
  readonly settings: Config;
  /** In words, what the config says of rotary positions without effect. */
  readonly passedOver: readonly string[];
}

/**
 * Gathers what a config.json says of rotary positions. Where two places disagree, transformers 5 decides: `rope_scaling`, which
 * older files have, wins over `rope_parameters`; a key inside of it wins over `rope_theta` and `partial_rotary_factor` beside it;
 * of the trained context, the value beside it wins.
 * Source: transformers 5.24, modeling_rope_utils.py, RotaryEmbeddingConfigMixin.
 */
export function ropeSettings(config: Config): RopeSettings {
  const { rope_theta, partial_rotary_factor, original_max_position_embeddings: original } = config;
  const older = asObject(config.rope_scaling);
  const newer = asObject(config.rope_parameters);
  const isOlder = Object.keys(older).length > 0;
  const own = isOlder ? older : newer;
  const passedOver: string[] = [];
  if (isOlder && Object.keys(newer).some((key) => JSON.stringify(newer[key]) !== JSON.stringify(older[key])))
    passedOver.push("rope_parameters, beside rope_scaling");
  if (typeof rope_theta === "number" && "rope_theta" in own && own.rope_theta !== rope_theta)
    passedOver.push("rope_theta, beside that of the scaling");
  const beside = {
    rope_theta: rope_theta ?? 10000,
    ...(typeof partial_rotary_factor === "number" && { partial_rotary_factor }),
    original_max_position_embeddings: config.max_position_embeddings,
  };
  const settings = { ...beside, ...own, ...(typeof original === "number" && { original_max_position_embeddings: original }) };
  return { settings: { ...settings, rope_type: own.rope_type ?? own.type ?? "default" }, passedOver };
}

function asObject(value: unknown): Config {
  return typeof value === "object" && value !== null ? (value as Config) : {};
}
