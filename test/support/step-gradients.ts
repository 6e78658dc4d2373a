import type { Row } from "../../src/data/example.js";
import type { Batch, Task } from "../../src/objectives/objective.js";
import type { Optimizer } from "../../src/optim/optimizer.js";
import type { Trainee } from "../../src/train/assemble.js";
import { runStep, type StepResult } from "../../src/train/step.js";

export const anyStep = { step: 0, seed: 0, learningRate: 0, peakLearningRate: 0, maxGradNorm: 0 };

/** What a step tells, and the gradients that its update would have used. */
export async function gradientsOf<R extends Row, B extends Batch>(
  trainee: Trainee,
  task: Task<R, B>,
  microBatches: readonly (readonly R[])[],
): Promise<{ result: StepResult; gradients: Map<string, Float32Array> }> {
  const gradients = new Map<string, Float32Array>();
  const reads: Promise<unknown>[] = [];
  const optimizer = {
    update(_learningRate: number, scale: number) {
      for (const [name, { value }] of trainee.parameters)
        if (value.grad !== null)
          reads.push(
            value.grad.read().then((values) =>
              gradients.set(
                name,
                values.map((g) => g * scale),
              ),
            ),
          );
    },
    flaws: async () => 0,
  } as unknown as Optimizer;
  const result = await runStep({ ...trainee, optimizer }, task, microBatches, anyStep);
  await Promise.all(reads);
  for (const parameter of trainee.parameters.values()) parameter.zeroGrad();
  return { result, gradients };
}
