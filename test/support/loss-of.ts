import assert from "node:assert/strict";
import type { Tensor } from "../../src/core/tensor.js";
import type { Row } from "../../src/data/example.js";
import type { LanguageModel } from "../../src/models/language-model.js";
import type { Batch, Task } from "../../src/objectives/objective.js";
import { SharedBase } from "../../src/tuners/shared-base.js";

/** The loss of a task of one term, summed over a batch: to be called in `differentiate` or in `scope`. */
export function lossOf<R extends Row, B extends Batch>(task: Task<R, B>, model: LanguageModel, batch: B): Tensor {
  const [term, ...more] = Object.values(task.terms(model, batch, new SharedBase(model)));
  assert.ok(term !== undefined && "sum" in term && more.length === 0, "one term, recorded");
  return term.sum;
}
