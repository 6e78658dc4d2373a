import { ConfigError } from "../../errors.js";
import { adapterHub } from "../../io/adapters/adapterhub.js";
import { Residual } from "../../nn/residual.js";
import { defineTuner } from "../tuner.js";
import { AdaptedResidual } from "./adapted-residual.js";
import { settingsOf } from "./adapterhub-config.js";
import { AdapterConfig, bottleneckWidth } from "./config.js";

/**
 * Adapter Tuning: where a sub-layer meets the residual connection around it stands a small network with a bottleneck, the only thing that
 * trains.   A(h) = s · (W↑ f(W↓ h + b↓) + b↑)
 *
 * Sources: Houlsby et al. 2019, arXiv:1902.00751 (after attention and after the MLP); Pfeiffer et al. 2020, arXiv:2005.00247 (after the MLP);
 * He et al. 2021, arXiv:2110.04366 (parallel to the MLP, scaled). Names of settings and of weights, and what each setting computes, are those
 * of AdapterHub's `adapters` 1.3 (methods/bottleneck.py, methods/modeling.py). As there, a parallel adapter reads what goes around the
 * sub-layer: in a model that normalises before its sub-layers, that is before the norm.
 */
export const adapter = defineTuner<AdapterConfig>({
  name: "adapter",
  summary: "trains small networks with a bottleneck between the sub-layers of the base model, which stays as it is",
  config: AdapterConfig,
  defaults: [
    {
      where: {
        words: "where `scaling` is 4 or more, as in `parallel`",
        fits: ({ scaling }) => typeof scaling === "number" && scaling >= 4,
      },
      ...{ learning_rate: 1e-4, rowsPerStep: 4, warmup_ratio: 0.1 },
    },
    { learning_rate: 1e-3, rowsPerStep: 4, warmup_ratio: 0.1 },
  ],

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
    fromJson: settingsOf,
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
