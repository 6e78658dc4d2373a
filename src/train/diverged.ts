import type { Row } from "../data/example.js";
import { DivergedError } from "../errors.js";
import { firstBroken, isFiniteTensor } from "../models/finite.js";
import type { Parameter } from "../nn/module.js";
import type { TermValue } from "../objectives/objective.js";
import type { Optimizer } from "../optim/optimizer.js";
import type { SharedBase } from "../tuners/shared-base.js";
import { trainedName } from "./assemble.js";

/** What to tell when a number is no longer finite: at which step, where, and what to do. Nothing of that step has been saved. */

const goOn = "What was saved before is good: resume_from_checkpoint=true goes on from the newest checkpoint, if there is one";

/** Where training stands. */
interface Now {
  /** Steps that the weights have behind them. */
  readonly step: number;
  /** The peak, as the recipe says it. */
  readonly learningRate: number;
}

/** A loss of `rows`, null if each of its terms is finite; `which` says when it was taken: `step 5: the loss`. */
export async function lossDiverged(
  which: string,
  values: Readonly<Record<string, TermValue>>,
  base: SharedBase,
  rows: readonly Row[],
  { step, learningRate }: Now,
): Promise<DivergedError | null> {
  const terms = Object.entries(values);
  const flaw = terms.find(([, { sum }]) => !Number.isFinite(sum));
  if (flaw === undefined) return null;
  const [name, { sum: loss }] = flaw;
  const what = terms.length > 1 ? `${which} (${name})` : which;
  const broken = await firstBroken(base.with(trainedName, (model) => [...model.namedParameters()]));
  if (broken !== null)
    return new DivergedError(
      `${what} is ${loss}, for the weight ${broken} holds a number that is not finite. ` +
        "Get the model, or the adapter that training goes on from, once more: its file is damaged",
    );
  const most = 5;
  const more = rows.length > most ? ` and ${rows.length - most} more` : "";
  const where = `${rows
    .slice(0, most)
    .map((row) => row.where)
    .join(", ")}${more}`;
  return new DivergedError(
    `${what} is ${loss} on ${where}. The weights are as they were after step ${step}. ` +
      `Try a lower learning_rate (now ${learningRate}) or a longer warmup, and look at these rows. ${goOn}`,
  );
}

/** A gradient, before the weights changed. */
export async function gradientDiverged(
  parameters: ReadonlyMap<string, Parameter>,
  loss: number,
  { step, learningRate }: Now,
): Promise<DivergedError> {
  const culprit = (await firstBrokenGradient(parameters)) ?? "all weights together";
  return new DivergedError(
    `step ${step + 1}: the gradient of ${culprit} is not finite (loss ${loss}). The weights are as they were after step ${step}. ` +
      `Try a lower learning_rate (now ${learningRate}) or max_grad_norm 1.0. ${goOn}`,
  );
}

/** A weight or a moment, which the update after step `step` has made so. */
export async function updateDiverged(
  parameters: ReadonlyMap<string, Parameter>,
  optimizer: Optimizer,
  { step, learningRate }: Now,
): Promise<DivergedError> {
  const weight = await firstBroken(parameters);
  const culprit = weight === null ? `a moment of ${(await optimizer.firstFlawed()) ?? "a weight"}` : `the weight ${weight}`;
  return new DivergedError(
    `step ${step + 1}: the update made ${culprit} not finite. Nothing of this step is saved. Try a lower learning_rate (now ` +
      `${learningRate}), and look at weight_decay, adam_epsilon and loraplus_lr_ratio if they are set. ${goOn}`,
  );
}

/** The weights before they are saved: all finite, but so large that whoever squares them gets infinity. */
export function weightsRanAway({ step, learningRate }: Now): DivergedError {
  return new DivergedError(
    `step ${step}: the weights that train have run away: the sum of their squares is no finite number. They are not saved. Try a lower ` +
      `learning_rate (now ${learningRate}). ${goOn}`,
  );
}

async function firstBrokenGradient(parameters: ReadonlyMap<string, Parameter>): Promise<string | null> {
  for (const [name, { value }] of parameters) if (value.grad !== null && !(await isFiniteTensor(value.grad))) return name;
  return null;
}
