import assert from "node:assert/strict";
import test from "node:test";
import { loadEngine } from "../../engine/load.js";
import { ShapeError } from "../../errors.js";
import { differentiate } from "../tape.js";
import { scope, Tensor } from "../tensor.js";
import { crossEntropy } from "./cross-entropy.js";

const device = { kernels: loadEngine(), compute: "f32" } as const;

test("the loss of logits and its gradient, softmax minus one at the target; the logits stay as they are", async () => {
  const values = Float32Array.of(1, 2, 3, 0, 0, 0);
  const targets = Int32Array.of(2, 0);
  const logits = Tensor.from(device, values, [2, 3]);
  const total = Math.exp(1) + Math.exp(2) + Math.exp(3);
  const expected = Math.log(total) - 3 + Math.log(3);

  const plain = scope(() => crossEntropy(logits, targets));
  assert.ok(Math.abs((await plain.item()) - expected) < 1e-6);
  logits.requiresGrad = true;
  const loss = differentiate(() => crossEntropy(logits, targets));
  assert.ok(Math.abs((await loss.item()) - expected) < 1e-6);
  const gradient = [Math.exp(1) / total, Math.exp(2) / total, Math.exp(3) / total - 1, 1 / 3 - 1, 1 / 3, 1 / 3];
  for (const [i, value] of (await logits.grad!.read()).entries())
    assert.ok(Math.abs(value - gradient[i]!) < 1e-6, `${i}: ${value}`);
  assert.deepEqual(await logits.read(), values);
  assert.throws(() => crossEntropy(logits, Int32Array.of(1)), ShapeError);
});
