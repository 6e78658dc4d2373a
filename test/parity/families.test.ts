/** What attune makes of each family, loaded by transformers and PEFT. */
import assert from "node:assert/strict";
import { mkdtempSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test, { before } from "node:test";
import { Rng } from "../../src/core/rng.js";
import { openSafetensors, readEntry, toTensorEntry } from "../../src/io/safetensors.js";
import { full } from "../../src/tuners/full/full.js";
import { lora } from "../../src/tuners/lora/lora.js";
import { saveTuned } from "../../src/tuners/tuned-files.js";
import { assertClose } from "../support/assert-close.js";
import { familyFolder, referenced } from "../support/families.js";
import { runPython, skipWithoutPeers } from "../support/peers.js";
import { logitsOf, reference, runReference, sequences } from "../support/tiny-llama.js";

const variants = [
  ...referenced.map((family) => ({ ...family, title: family.name, settings: {} })),
  ...referenced
    .filter(({ name }) => name === "gpt2" || name === "phi3")
    .map((family) => ({ ...family, title: `${family.name}-dora`, settings: { use_dora: true } })),
  ...referenced
    .filter(({ name }) => name === "gpt2")
    .map((family) => ({ ...family, title: "gpt2-whole-module", settings: { additional_target: "h.1.mlp.c_fc" } })),
];

const folder = mkdtempSync(join(tmpdir(), "attune-families-"));
const outOf = (title: string, kind: string) => join(folder, `${title}-${kind}.safetensors`);
const expected = new Map<string, Record<"base" | "adapter" | "merged", Float32Array>>();

before(async () => {
  if (skipWithoutPeers) return;
  const jobs: { model: string; adapter: string | null; out: string }[] = [];
  for (const { name, title, load, settings } of variants) {
    const { model, files } = await load();
    const base = await logitsOf(model);
    const tuning = lora.bind(lora.config.parse({ lora_rank: 4, ...settings }));
    tuning.apply(model, new Rng(3));
    await runReference(model, reference.lora);
    const [adapter, merged] = [join(folder, `${title}-adapter`), join(folder, `${title}-merged`)];
    const origin = { name: familyFolder(name), config: files.config };
    await saveTuned(adapter, model, tuning, origin);
    jobs.push({ model: familyFolder(name), adapter, out: outOf(title, "adapter") });
    const withAdapter = await logitsOf(model);
    tuning.merge!(model);
    full.bind({}).apply(model, new Rng(0));
    await saveTuned(merged, model, full.bind({}), origin);
    jobs.push({ model: merged, adapter: null, out: outOf(title, "merged") });
    expected.set(title, { base, adapter: withAdapter, merged: await logitsOf(model) });
    model.dispose();
  }
  writeFileSync(join(folder, "jobs.json"), JSON.stringify({ ids: sequences.map((ids) => [...ids]), jobs }));
  runPython("families.py", [join(folder, "jobs.json")]);
});

async function theirLogits(title: string, kind: string): Promise<Float32Array> {
  const file = await openSafetensors(outOf(title, kind));
  const parts: Float32Array[] = [];
  for (const i of sequences.keys())
    parts.push(new Float32Array((await readEntry(toTensorEntry(file.tensors.get(`logits.${i}`)!))).buffer));
  return Float32Array.from(parts.flatMap((part) => [...part]));
}

for (const { title } of variants)
  test(`${title}: a LoRA adapter in PEFT, and merged in transformers, computes what it computes here`, {
    skip: skipWithoutPeers,
  }, async () => {
    const { base, adapter, merged } = expected.get(title)!;
    assertClose(await theirLogits(title, "adapter"), adapter, 1e-4, "adapter");
    assertClose(await theirLogits(title, "merged"), merged, 1e-4, "merged");
    assert.ok(
      adapter.some((value, i) => Math.abs(value - base[i]!) > 0.1),
      "the adapter changes nothing",
    );
  });
