import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import { Rng } from "../src/core/rng.js";
import { openModelFolder } from "../src/io/hf-folder.js";
import { openSafetensors, readEntry, toTensorEntry } from "../src/io/safetensors.js";
import { loadModel } from "../src/models/load.js";
import { weightDecays } from "../src/optim/weight-decay.js";
import { tuners } from "../src/tuners/index.js";
import { trainModules } from "../src/tuners/train-whole.js";
import { device } from "./support/gradient-check.js";
import { collect, makeFolder, tinyRecipe } from "./support/run.js";

/** A line of decay.json; made by test/fixtures/make_decay.py with the Trainer of transformers. */
interface Case {
  readonly folder: string;
  readonly method: string;
  readonly settings: Record<string, unknown>;
  readonly decays: readonly string[];
  readonly stays: readonly string[];
}

const fixtures = join(import.meta.dirname, "../../test/fixtures");
const cases = JSON.parse(readFileSync(join(fixtures, "decay.json"), "utf8")) as Case[];

for (const { folder, method, settings, decays, stays } of cases)
  test(`${folder}, ${method} ${JSON.stringify(settings)}: what decays is what the Trainer of transformers decays`, async () => {
    const model = await loadModel({ ...device, compute: "f32" }, await openModelFolder(join(fixtures, folder)));
    try {
      const tuner = tuners.find(({ name }) => name === method)!;
      tuner.bind(tuner.config.parse(settings)).apply(model, new Rng(1));
      trainModules(model, model.headModules);
      const trained = [...model.trainableParameters().keys()].sort();
      const found = weightDecays(model, 0.1);
      assert.deepEqual(trained, [...decays, ...stays].sort());
      assert.deepEqual(
        trained.filter((name) => found.get(name) === 0.1),
        decays,
      );
    } finally {
      model.dispose();
    }
  });

/** What is left of the first number of each tensor of an adapter after a run in which weight decay does nearly all; NaN where it began at 0. */
async function shrinkage(settings: Record<string, unknown>): Promise<Map<string, number>> {
  const [without, decayed] = await Promise.all([0, 0.5].map((weight_decay) => adapterAfter({ ...settings, weight_decay })));
  const ratio = ([after]: Float32Array, [before]: Float32Array) => (Math.abs(before!) > 1e-5 ? after! / before! : Number.NaN);
  return new Map([...decayed!].map(([name, values]) => [name, ratio(values, without!.get(name)!)]));
}

async function adapterAfter(settings: Record<string, unknown>): Promise<Map<string, Float32Array>> {
  const folder = makeFolder();
  const schedule = { max_steps: 20, learning_rate: 1e-2, lr_scheduler_type: "constant", warmup_steps: 0, adam_epsilon: 1e6 };
  await collect(tinyRecipe(folder, { lora_dropout: undefined, ...schedule, ...settings }));
  const name = settings.finetuning_type === "adapter" ? "adapter.safetensors" : "adapter_model.safetensors";
  const { tensors } = await openSafetensors(join(folder, "out", name));
  const read = async (tensor: Parameters<typeof toTensorEntry>[0]) =>
    new Float32Array((await readEntry(toTensorEntry(tensor))).buffer);
  return new Map(await Promise.all([...tensors].map(async ([key, tensor]) => [key, await read(tensor)] as const)));
}

const twentySteps = (1 - 1e-2 * 0.5) ** 20;

test("DoRA's magnitudes shrink as its factors do", async () => {
  const ratios = await shrinkage({ use_dora: true });
  const magnitudes = [...ratios].filter(([name]) => name.endsWith("lora_magnitude_vector"));
  assert.ok(magnitudes.length > 0);
  for (const [name, ratio] of magnitudes) assert.ok(Math.abs(ratio - twentySteps) < 1e-3, `${name}: ${ratio}`);
});

test("a scale that an adapter learns shrinks; its biases and norms do not", async () => {
  const ratios = await shrinkage({ finetuning_type: "adapter", scaling: "learned", ln_before: true, ln_after: true });
  assert.ok([...ratios.keys()].some((name) => name.endsWith("scaling")));
  for (const [name, ratio] of ratios) {
    const isMatrix = /adapter_down\.1\.weight|adapter_up\.weight/.test(name);
    if (name.endsWith("scaling") || isMatrix) assert.ok(Math.abs(ratio - twentySteps) < 1e-3, `${name}: ${ratio}`);
    else assert.ok(Number.isNaN(ratio) || Math.abs(ratio - 1) < 1e-3, `${name}: ${ratio}`);
  }
});
