import { full } from "./full/full.js";
import { lora } from "./lora/lora.js";
import type { Tuner } from "./tuner.js";

/** Every tuning method. Adding one is a folder and a line here. */
// biome-ignore lint/suspicious/noExplicitAny: each tuner checks its own settings before it sees them; the list forgets their types.
export const tuners: readonly Tuner<any>[] = [lora, full];
