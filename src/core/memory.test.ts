import assert from "node:assert/strict";
import test from "node:test";
import { ShapeError } from "../errors.js";
import { add } from "./ops/add.js";
import { rmsNorm } from "./ops/rms-norm.js";
import { SymbolicDevice } from "./symbolic.js";
import { checkpoint, differentiate, record } from "./tape.js";
import { scope, Tensor } from "./tensor.js";

const kilobyte = () => {
  const device = new SymbolicDevice();
  return { device, empty: () => Tensor.empty(device, [256]), live: () => device.cost.liveBytes / 1024 };
};

test("a scope frees what is made in it, except what it returns", () => {
  const { empty, live } = kilobyte();
  const kept = scope(() => {
    empty();
    const pair = { a: empty(), list: [empty()] };
    assert.equal(live(), 3);
    return pair;
  });
  assert.equal(live(), 2);
  kept.a.dispose();
  kept.list[0]!.dispose();
  kept.a.dispose(); // twice is harmless
  assert.equal(live(), 0);
});

test("nested scopes hand results outwards; a throwing scope frees everything", () => {
  const { empty, live } = kilobyte();
  scope(() => {
    scope(() => {
      empty();
      return empty();
    });
    assert.equal(live(), 1);
  });
  assert.equal(live(), 0);
  assert.throws(() =>
    scope(() => {
      empty();
      throw new Error("stop");
    }),
  );
  assert.equal(live(), 0);
});

test("a tensor used after its scope is an error, not a wrong answer", () => {
  const { empty } = kilobyte();
  let lost!: Tensor;
  scope(() => {
    lost = empty();
  });
  assert.throws(() => lost.id, ShapeError);
});

test("what the tape saves outlives its scope and is freed by backward", () => {
  const { device, empty, live } = kilobyte();
  const leaf = Tensor.empty(device, [1]);
  leaf.requiresGrad = true;
  const base = live();
  const loss = differentiate(() => {
    const y = scope(() => {
      const saved = empty();
      empty();
      return record(Tensor.empty(device, [1]), [leaf], [saved], (dy, grads) => {
        assert.ok(saved.id > 0);
        grads.pass(leaf, dy);
      });
    });
    assert.ok(live() - base >= 1 && live() - base < 2, "the saved kilobyte, not the other");
    return y;
  });
  loss.dispose();
  leaf.grad!.dispose();
  assert.equal(live(), base);
});

test("contents that are cheap to compute again give their memory back between forward and backward", () => {
  const device = new SymbolicDevice();
  const x = Tensor.empty(device, [4, 256]);
  const weight = Tensor.empty(device, [256]);
  x.requiresGrad = true;
  let remade = 0;
  const live = () => device.cost.liveBytes;
  const before = live();
  differentiate(() => {
    const y = scope(() => {
      const h = rmsNorm(x, weight, 1e-5);
      return record(Tensor.empty(device, [1]), [h], [h], (_dy, grads) => {
        const without = live();
        assert.ok(h.id > 0);
        assert.equal(live() - without, 4096);
        remade++;
        grads.into(h, () => {});
      });
    });
    assert.ok(live() - before < 4096);
    return y;
  }).dispose();
  assert.equal(remade, 1);
  x.grad!.dispose();
  assert.equal(live(), before);
});

test("where products round to bf16, what the tape alone needs rests in bf16, unless every bit matters", () => {
  const device = new SymbolicDevice("bf16");
  const live = () => device.cost.liveBytes / 1024;
  const leaf = Tensor.empty(device, [1]);
  leaf.requiresGrad = true;
  const before = live();
  differentiate(() => {
    const y = scope(() => {
      const [rounded, exact] = [Tensor.empty(device, [1024]), Tensor.empty(device, [1024]).keepExact()];
      return record(Tensor.empty(device, [1]), [leaf], [rounded, exact], (dy, grads) => {
        const resting = live();
        assert.ok(rounded.id > 0 && exact.id > 0);
        assert.equal(live() - resting, 2, "4 KB again for 2");
        grads.pass(leaf, dy);
      });
    });
    assert.ok(live() - before >= 6 && live() - before < 6.5, "2 KB and 4 KB");
    return y;
  }).dispose();
  leaf.grad!.dispose();
  assert.equal(live(), before);
});

test("an op works in place only where nobody else needs the memory", () => {
  const { empty } = kilobyte();
  scope(() => {
    const [a, b] = [empty(), empty()];
    const idOfB = b.id;
    assert.equal(add(a, b).id, idOfB);
    assert.throws(() => b.id, ShapeError, "b's memory was taken over");
    const c = empty();
    const shared = c.alias();
    assert.notEqual(add(a, c).id, shared.id);
  });
  const outside = empty();
  scope(() => assert.notEqual(add(outside, outside).id, outside.id));
});

test("memory taken over is not filled again with what it held before", () => {
  const device = new SymbolicDevice();
  const x = Tensor.empty(device, [4, 256]);
  x.requiresGrad = true;
  const weight = Tensor.empty(device, [256]);
  let normRuns = 0;
  const counting = device.kernels.rmsNorm;
  device.kernels.rmsNorm = (...args) => {
    normRuns++;
    counting(...args);
  };
  differentiate(() => {
    const y = scope(() => add(x, rmsNorm(x, weight, 1e-5)));
    return record(Tensor.empty(device, [1]), [y], [y], (_dy, grads) => {
      assert.ok(y.id > 0);
      grads.into(y, () => {});
    });
  });
  assert.equal(normRuns, 1);
});

test("checkpointing holds no activations of its body", () => {
  const peakOf = (wrap: boolean) => {
    const device = new SymbolicDevice();
    const x = Tensor.empty(device, [64, 256]);
    const weights = Array.from({ length: 8 }, () => Tensor.empty(device, [256]));
    x.requiresGrad = true;
    const layer = (h: Tensor) => scope(() => weights.reduce((a, w) => add(a, rmsNorm(a, w, 1e-5)), h));
    differentiate(() => {
      let h = x as Tensor;
      for (let i = 0; i < 8; i++) {
        const before = h;
        h = wrap ? checkpoint(() => layer(before)) : layer(before);
      }
      return record(Tensor.empty(device, [1]), [h], [], (_dy, grads) => grads.into(h, () => {}));
    });
    return device.cost.peakBytes;
  };
  assert.ok(peakOf(true) < 0.45 * peakOf(false));
});
