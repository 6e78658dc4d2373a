import { classification } from "./classification/classification.js";
import type { Objective } from "./objective.js";
import { bco } from "./preference/bco.js";
import { dpo } from "./preference/dpo.js";
import { kto } from "./preference/kto.js";
import { pt } from "./pt/pt.js";
import { grpo } from "./rl/grpo/grpo.js";
import { ppo } from "./rl/ppo/ppo.js";
import { rloo } from "./rl/rloo/rloo.js";
import { rm } from "./rm/rm.js";
import { sft } from "./sft/sft.js";

/** Every objective. Adding one is a folder and a line here. */
export const objectives: readonly Objective[] = [sft, pt, classification, dpo, kto, bco, rm, ppo, grpo, rloo];
