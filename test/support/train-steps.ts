import assert from "node:assert/strict";
import type { Row } from "../../src/data/example.js";
import type { LanguageModel } from "../../src/models/language-model.js";
import { nextToken } from "../../src/objectives/next-token.js";
import type { Task } from "../../src/objectives/objective.js";
import type { StepEvent } from "../../src/runs/events.js";
import { noProgress, train } from "../../src/train/loop.js";
import { StepPlan } from "../../src/train/step-plan.js";
import { traineeOf } from "./trainee.js";

export interface StepSettings {
  readonly learning_rate: number;
  readonly schedule: "cosine" | "constant";
  readonly warmup_steps: number;
  readonly weight_decay: number;
  readonly max_grad_norm: number;
}

/** Trains whatever is trainable in the model on given micro-batches (row numbers), through the one loop. */
export async function trainSteps(
  model: LanguageModel,
  rows: readonly Row[],
  microBatches: readonly (readonly number[])[],
  accumulationSteps: number,
  { learning_rate, schedule, warmup_steps, weight_decay, max_grad_norm }: StepSettings,
  task: Task = nextToken,
): Promise<StepEvent[]> {
  const trainee = traineeOf(model, { weightDecay: weight_decay });
  const steps: StepEvent[] = [];
  for await (const event of train({
    trainee,
    task,
    trainRows: rows,
    evalRows: [],
    plan: new StepPlan(() => microBatches, { accumulationSteps, epochs: 1, maxSteps: 0 }),
    settings: {
      learningRate: learning_rate,
      schedule,
      warmupSteps: warmup_steps,
      maxGradNorm: max_grad_norm,
      seed: 1,
      evalSteps: 0,
      saveSteps: 0,
      evalBatchSize: 1,
    },
    progress: noProgress(),
    save: () => assert.fail("nothing is to be saved"),
    signal: new AbortController().signal,
  }))
    if (event.type === "step") steps.push(event);
  trainee.dispose();
  return steps;
}
