import { adapter } from "./adapter/adapter.js";
import { freeze } from "./freeze/freeze.js";
import { full } from "./full/full.js";
import { lora } from "./lora/lora.js";
import { pTuning } from "./p-tuning/p-tuning.js";
import { prefixTuning } from "./prefix-tuning/prefix-tuning.js";
import { qlora } from "./qlora/qlora.js";
import type { Tuner } from "./tuner.js";

/** Every tuning method. Adding one is a folder and a line here. */
export const tuners: readonly Tuner[] = [lora, qlora, full, freeze, adapter, pTuning, prefixTuning];
