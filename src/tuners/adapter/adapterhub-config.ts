import { ModelError } from "../../errors.js";
import { type AdapterConfig as AdapterJson, adapterConfigName, checkSize, isUnused } from "../../io/adapters/adapter-folder.js";
import type { TensorEntry } from "../../io/model-files.js";
import { type AdapterConfig, bottleneckWidth, keepsResidual, libraryDefaults, Settings } from "./config.js";

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

/**
 * Settings that compute what an adapter of AdapterHub's library was trained for. Throws ModelError for what attune does not know, or whose
 * widths are not those of `tensors`.
 */
export function settingsOf(json: AdapterJson, tensors: ReadonlyMap<string, TensorEntry>): AdapterConfig {
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
