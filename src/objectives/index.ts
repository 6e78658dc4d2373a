import type { Objective } from "./objective.js";
import { sft } from "./sft/sft.js";

/** Every objective. Adding one is a folder and a line here. */
// biome-ignore lint/suspicious/noExplicitAny: the loop hands a batch only to the objective that made it; the list forgets its type.
export const objectives: readonly Objective<any>[] = [sft];
