/** Every stage that learns from preferences, through the CLI, on data and settings that are not as they should be. */
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import test, { type TestContext } from "node:test";
import { temporaryFolder } from "../src/io/testing/folders.js";
import { tinyLlama } from "./support/tiny-llama.js";

const attune = join(import.meta.dirname, "../../bin/attune.js");

interface Ended {
  readonly code: number;
  readonly said: string;
  readonly out: string;
}

const goodPairs = Array.from({ length: 6 }, (_, i) => ({ prompt: `Q${i}`, chosen: `yes${"!".repeat(i)}`, rejected: "no" }));
const judged = goodPairs.flatMap(({ prompt, chosen, rejected }) => [
  { prompt, completion: chosen, label: true },
  { prompt, completion: rejected, label: false },
]);

async function train(t: TestContext, stage: string, rows: readonly object[], settings: Readonly<Record<string, unknown>> = {}) {
  const folder = temporaryFolder(t);
  const [file, out] = [join(folder, "rows.jsonl"), join(folder, "out")];
  writeFileSync(file, rows.map((row) => JSON.stringify(row)).join("\n"));
  const all = {
    ...{ stage, model_name_or_path: join(tinyLlama, "tied"), dataset: file, output_dir: out, compute_dtype: "f32" },
    ...{ max_steps: 2, per_device_train_batch_size: 2, cutoff_len: 200, plot_loss: false, ...settings },
  };
  const args = Object.entries(all).map(([key, value]) => `${key}=${typeof value === "object" ? JSON.stringify(value) : value}`);
  return await new Promise<Ended>((resolve) =>
    execFile(process.execPath, [attune, "train", ...args], (error, stdout, stderr) =>
      resolve({ code: error === null ? 0 : Number(error.code), said: stdout + stderr, out }),
    ),
  );
}

const unusable = [
  { prompt: "equal", chosen: "same", rejected: "same" },
  { prompt: "one side", chosen: "yes", rejected: null },
  { prompt: "says nothing", chosen: "", rejected: "no" },
];

for (const stage of ["dpo", "rm", "kto", "bco"])
  test(`${stage}: rows of which nothing can be learned are counted and named, and the others train`, async (t) => {
    const { code, said, out } = await train(t, stage, [...goodPairs, ...unusable]);
    assert.equal(code, 0, said);
    assert.match(
      said,
      /3 of 9 rows are left out.*with equal answers \(rows\.jsonl:7\).*without a "rejected" answer.*rows\.jsonl:8/s,
    );
    assert.ok(existsSync(join(out, "adapter_model.safetensors")));
  });

for (const stage of ["dpo", "kto"])
  test(`${stage}: a data set of which no row is left, and a prompt longer than the cutoff, are named`, async (t) => {
    const none = await train(t, stage, unusable);
    assert.notEqual(none.code, 0);
    assert.match(none.said, /No row is left to train on\. 3 of 3 rows/);
    const long = { prompt: "why ".repeat(200), chosen: "yes", rejected: "no" };
    const cut = await train(t, stage, [long, ...goodPairs], { truncation: "keep_start", cutoff_len: 64 });
    assert.equal(cut.code, 0, cut.said);
    assert.match(cut.said, /1 of which keep_start at cutoff_len = 64 leaves no token of an answer \(rows\.jsonl:1\)/);
  });

test("a reference is kept, or is another model, through the CLI; what cannot be kept, and what has none, is said", async (t) => {
  const kept = await train(t, "dpo", goodPairs, { precompute_ref_log_probs: true });
  assert.equal(kept.code, 0, kept.said);
  assert.ok(existsSync(join(kept.out, "reference_log_probs.safetensors")));
  const results = JSON.parse(readFileSync(join(kept.out, "all_results.json"), "utf8")) as { reference_sha256: string };
  assert.match(results.reference_sha256, /^[0-9a-f]{64}$/);

  const other = await train(t, "kto", judged, { ref_model: join(tinyLlama, "untied") });
  assert.equal(other.code, 0, other.said);
  assert.match(other.said, /the reference is not what training begins from, but untied/);

  const partners = await train(t, "kto", judged, { precompute_ref_log_probs: true });
  assert.notEqual(partners.code, 0);
  assert.match(
    partners.said,
    /precompute_ref_log_probs: stage kto asks the reference about texts that are known only while it trains/,
  );

  const without = await train(t, "dpo", goodPairs, { pref_loss: "simpo", ref_model: join(tinyLlama, "untied") });
  assert.notEqual(without.code, 0);
  assert.match(without.said, /ref_model: pref_loss simpo compares with no reference: leave it out/);
});

test("a setting that is misspelt, and one of another stage, are named with the right one", async (t) => {
  const misspelt = await train(t, "dpo", goodPairs, { ref_modle: "x" });
  assert.notEqual(misspelt.code, 0);
  assert.match(misspelt.said, /unknown setting "ref_modle". Did you mean "ref_model"\?/);
  const unknown = await train(t, "dpo", goodPairs, { pref_loss: "sigmoidal" });
  assert.notEqual(unknown.code, 0);
  assert.match(unknown.said, /pref_loss/);
});
