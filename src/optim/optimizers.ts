import { adafactor } from "./adafactor.js";
import { adamW, adamW8bit } from "./adamw.js";
import { lion } from "./lion.js";
import { muon } from "./muon.js";
import type { OptimizerKind } from "./optimizer.js";
import { sgd } from "./sgd.js";

/** All optimizers. A new one is a file beside these, and a line here. */
export const optimizers = [adamW, adamW8bit, adafactor, lion, muon, sgd] as const;

/** What `optim` may be. */
export type OptimizerName = (typeof optimizers)[number]["names"][number];
export const optimizerNames: readonly OptimizerName[] = optimizers.flatMap<OptimizerName>(({ names }) => names);

export function optimizerNamed(name: OptimizerName): OptimizerKind {
  return optimizers.find(({ names }) => (names as readonly string[]).includes(name))!;
}
