import assert from "node:assert/strict";
import { estimateStep, type StepWork } from "../../src/advise/estimate.js";
import { Rng } from "../../src/core/rng.js";
import { differentiate } from "../../src/core/tape.js";
import type { LanguageModel } from "../../src/models/language-model.js";
import { AdamW } from "../../src/optim/adamw.js";
import { gradientSquares } from "../../src/optim/clip.js";
import { engine } from "./gradient-check.js";

/**
 * Takes one step of `work` on its model, tuned already, and holds the estimate to the engine's peak, byte by byte. `liveBefore` is what the engine
 * held before the model was loaded. Disposes the model.
 */
export async function assertEstimatedPeak(model: LanguageModel, work: StepWork, liveBefore: number): Promise<void> {
  const { task, rows, parts } = work;
  const { bits = 32 } = parts.optimizer;
  const parameters = model.trainableParameters();
  const optimizer = new AdamW(parameters, { beta1: 0.9, beta2: 0.999, eps: 1e-8, weightDecay: new Map(), bits });
  const batch = task.collate(rows);
  engine.resetPeak();
  differentiate(() => task.loss(model, batch), new Rng(0)).dispose();
  gradientSquares(parameters.values()).dispose();
  optimizer.update(1e-4, 1);
  await engine.sync();
  const measured = engine.stats().peakLiveBytes - liveBefore;
  assert.equal(estimateStep(work).peakBytes, measured);
  optimizer.dispose();
  model.dispose();
}
