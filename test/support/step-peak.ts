import assert from "node:assert/strict";
import { estimateStep, type StepWork } from "../../src/advise/estimate.js";
import type { Row } from "../../src/data/example.js";
import { evaluate } from "../../src/evaluate/evaluate.js";
import type { LanguageModel } from "../../src/models/language-model.js";
import type { Batch } from "../../src/objectives/objective.js";
import { type Trainee, trainedName } from "../../src/train/assemble.js";
import { runStep } from "../../src/train/step.js";
import { engine } from "./gradient-check.js";
import { traineeOf } from "./trainee.js";

const settings = { step: 0, seed: 0, learningRate: 1e-4, peakLearningRate: 1e-4, maxGradNorm: 1 };

/**
 * Takes steps of 1, 2 and 4 micro-batches of `work` on its model, tuned already, and evaluates; each time, the estimate must be the engine's peak, byte by
 * byte. `liveBefore` is what the engine held before the model was loaded. Disposes the model.
 */
export async function assertEstimatedPeak(
  model: LanguageModel,
  work: Omit<StepWork, "accumulationSteps">,
  liveBefore: number,
): Promise<void> {
  await assertPeakOf(traineeOf(model, { optim: work.parts.optimizer.name }), work, liveBefore);
  model.dispose();
}

/** The same for what was put together from the parts of `work`. Disposes it. */
export async function assertPeakOf<R extends Row, B extends Batch>(
  trainee: Trainee,
  work: Omit<StepWork<R, B>, "accumulationSteps">,
  liveBefore: number,
): Promise<void> {
  const { task, rows, evalRows } = work;
  for (const accumulationSteps of [1, 2, 4]) {
    engine.resetPeak();
    await runStep(trainee, task, Array<typeof rows>(accumulationSteps).fill(rows), settings);
    await evaluate(trainee.base, trainedName, task, evalRows, { batchSize: evalRows.length });
    await engine.sync();
    const measured = engine.stats().peakLiveBytes - liveBefore;
    const { peakBytes } = await estimateStep({ ...work, accumulationSteps });
    assert.equal(peakBytes, measured, `${accumulationSteps} micro-batches`);
  }
  trainee.dispose();
}
