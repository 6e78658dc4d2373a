import assert from "node:assert/strict";
import test from "node:test";
import { SymbolicDevice } from "./symbolic.js";

test("each kernel's part is counted under its name, and the parts add up to the whole", () => {
  const device = new SymbolicDevice();
  const { kernels } = device;
  const x = kernels.alloc(4 * 8 * 16);
  kernels.matmul(x, x, "f32", x, 2, 8, 16, 1, false, "f32");
  kernels.matmul(x, x, "f32", x, 2, 8, 16, 1, false, "f32");
  kernels.add(x, x, kernels.view(x, 0, 40), 10); // a kernel among the arguments of another
  const { byKernel, flops, bytesMoved } = device.cost;
  assert.deepEqual(
    [...byKernel],
    [
      ["matmul", { flops: 2 * (2 * 2 * 8 * 16), bytesMoved: 2 * 4 * (8 * 16 + 2 * (8 + 16)) }],
      ["add", { flops: 10, bytesMoved: 4 * 3 * 10 }],
    ],
  );
  assert.equal(flops, 1024 + 10);
  assert.equal(bytesMoved, 1408 + 120);

  device.reset();
  assert.equal(device.cost.byKernel.size, 0);
});
