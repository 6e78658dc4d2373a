import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import * as attune from "../src/index.js";
import { makeFolder, tinyRecipe } from "./support/run.js";
import { tinyLlama } from "./support/tiny-llama.js";

const model = join(tinyLlama, "tied");
const none = join(tinyLlama, "nothing-here");

test("the class of an error says what has to be mended", async () => {
  const folder = makeFolder();
  const trained = (changes: Readonly<Record<string, unknown>>) => () => attune.train(tinyRecipe(folder, changes));
  const file = join(folder, "a-file");
  writeFileSync(file, "");

  const { ConfigError, DataError, ModelError, CheckpointError, InterruptedError } = attune;
  const cases: readonly (readonly [{ readonly name: string }, string, () => Promise<unknown>])[] = [
    [ConfigError, "no recipe", () => attune.train(`${none}.yaml`)],
    [ConfigError, "no such setting", trained({ lora_rnk: 1 })],
    [ConfigError, "no such template", trained({ template: "none" })],
    [DataError, "no data", trained({ dataset: `${none}.jsonl` })],
    [DataError, "no such name of data", trained({ dataset: "none" })],
    [DataError, "no held-out data", trained({ eval_dataset: `${none}.jsonl` })],
    [DataError, "no rows", trained({ dataset: file })],
    [ModelError, "no model", trained({ model_name_or_path: none })],
    [ModelError, "no adapter", trained({ adapter_name_or_path: none })],
    [CheckpointError, "no checkpoint", trained({ resume_from_checkpoint: none })],
    [CheckpointError, "no folder to write into", trained({ output_dir: join(file, "out") })],
    [CheckpointError, "no folder for TensorBoard", trained({ report_to: "tensorboard", logging_dir: join(file, "logs") })],
    [InterruptedError, "stopped", () => attune.train(tinyRecipe(folder), { signal: AbortSignal.abort() })],
    [ModelError, "no model to chat with", () => attune.Chat.open({ model: none })],
    [ModelError, "no adapter to chat with", () => attune.Chat.open({ model, adapter: none })],
    [ModelError, "no classifier", () => attune.Classifier.open({ model })],
    [ModelError, "no model to export", () => attune.exportModel({ model: none, to: "hf", out: join(folder, "exported") })],
    [ModelError, "no adapter to export", () => attune.exportModel({ adapter: none, to: "hf", out: join(folder, "exported") })],
    [ConfigError, "no such format", () => attune.exportModel({ model, to: "onnx" as "hf", out: join(folder, "exported") })],
    [CheckpointError, "no empty folder", () => attune.exportModel({ model, to: "hf", out: folder })],
    [
      ModelError,
      "no adapters",
      () => attune.combineAdapters([{ path: none, weight: 1 }], join(folder, "c"), { method: "linear" }),
    ],
  ];
  for (const [expected, what, run] of cases)
    await assert.rejects(run, (error: unknown) => {
      assert.equal((error as Error).constructor.name, expected.name, `${what}: ${(error as Error).message}`);
      return true;
    });
});
