import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import { Rng } from "../../src/core/rng.js";
import { tuners } from "../../src/tuners/index.js";
import { applyAdapter } from "../../src/tuners/tuned-files.js";
import { assertClose } from "../support/assert-close.js";
import { runPython, skipWithoutPeers } from "../support/peers.js";
import { collect, makeFolder, tinyRecipe } from "../support/run.js";
import { loadTinyLlama, logitsOf, reference, tinyLlama } from "../support/tiny-llama.js";

test("PEFT, loading an adapter over others as its card says, computes the same logits, and warns where it is loaded", {
  skip: skipWithoutPeers,
}, async () => {
  const folder = makeFolder();
  const train = async (name: string, settings: object) => {
    const output_dir = join(folder, name);
    await collect(tinyRecipe(folder, { max_steps: 4, ...settings, output_dir }));
    return output_dir;
  };
  const one = await train("one", {});
  const two = await train("two", { use_dora: true, seed: 7 });
  const old = { adapter_name_or_path: one, create_new_adapter: true };
  const middle = await train("middle", old);
  const top = await train("top", { ...old, adapter_name_or_path: `${middle},${two}`, pissa_init: true });

  const below = ["base_adapters/1/base_adapters/1", "base_adapters/1", "base_adapters/2"];
  const ids = join(folder, "ids.json");
  writeFileSync(ids, JSON.stringify(reference.sequences.map((sequence) => sequence.ids)));
  const printed = runPython("peft_stack.py", [join(tinyLlama, "tied"), top, JSON.stringify(below), ids]);
  const { logits, warnings } = JSON.parse(printed) as { logits: number[][]; warnings: string[] };

  const { model } = await loadTinyLlama("tied");
  const bare = await logitsOf(model);
  await applyAdapter(top, model, tuners, new Rng(0));
  const ours = await logitsOf(model);
  assertClose(ours, Float32Array.from(logits.flat()), 2e-4, "logits");
  assert.ok(
    Math.max(...ours.map((value, i) => Math.abs(value - bare[i]!))) > 0.1,
    "the adapters change nothing: this test cannot fail",
  );
  assert.ok(
    warnings.some((message) => /base_adapters/.test(message)),
    warnings.join("\n"),
  );
  model.dispose();
});
