import { classification } from "./classification/classification.js";
import type { Objective } from "./objective.js";
import { bco } from "./preference/bco.js";
import { dpo } from "./preference/dpo.js";
import { kto } from "./preference/kto.js";
import { pt } from "./pt/pt.js";
import { rm } from "./rm/rm.js";
import { sft } from "./sft/sft.js";

/** Every objective. Adding one is a folder and a line here. */
export const objectives: readonly Objective[] = [sft, pt, classification, dpo, kto, bco, rm];
