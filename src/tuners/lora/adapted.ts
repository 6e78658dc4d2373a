import type { LanguageModel } from "../../models/language-model.js";
import { DoraLinear } from "./dora-linear.js";
import { LoraEmbedding } from "./lora-embedding.js";
import { type AdaptedLinear, LoraLinear } from "./lora-linear.js";
import { PissaLinear } from "./pissa-linear.js";

/** The tables of vectors of a model that LoRA has adapted. */
export function adaptedEmbeddings(model: LanguageModel): [path: string, layer: LoraEmbedding][] {
  const layers: [path: string, layer: LoraEmbedding][] = [];
  for (const [path, module] of model.namedModules()) if (module instanceof LoraEmbedding) layers.push([path, module]);
  return layers;
}

/** The Linear layers of a model that LoRA has adapted, of whichever variant. */
export function adaptedLinears(model: LanguageModel): [path: string, layer: AdaptedLinear][] {
  const layers: [path: string, layer: AdaptedLinear][] = [];
  for (const [path, module] of model.namedModules())
    if (module instanceof LoraLinear || module instanceof DoraLinear || module instanceof PissaLinear)
      layers.push([path, module]);
  return layers;
}
