import assert from "node:assert/strict";
import test from "node:test";
import { ConfigError } from "../errors.js";
import { exportOfRecipe } from "./export-recipe.js";

test("LLaMA-Factory's merge recipe is an export to a Hugging Face folder", () => {
  // examples/merge_lora/qwen3_lora_sft.yaml of LLaMA-Factory 0.9.5
  const recipe = {
    model_name_or_path: "Qwen/Qwen3-4B-Instruct-2507",
    adapter_name_or_path: "saves/qwen3-4b/lora/sft",
    template: "qwen3_nothink",
    trust_remote_code: true,
    export_dir: "saves/qwen3_sft_merged",
    export_size: 5,
    export_device: "cpu",
    export_legacy_format: false,
  };
  const { options, notices } = exportOfRecipe(recipe, "merge.yaml");
  assert.deepEqual(options, {
    to: "hf",
    model: "Qwen/Qwen3-4B-Instruct-2507",
    adapter: "saves/qwen3-4b/lora/sft",
    template: "qwen3_nothink",
    out: "saves/qwen3_sft_merged",
    shardBytes: 5e9,
  });
  assert.deepEqual(notices, [
    "merge.yaml: trust_remote_code is not needed: attune never runs code from a model's repository",
    "merge.yaml: export_device is not needed: models are merged on the CPU",
  ]);
  const typed = exportOfRecipe({ model_name_or_path: "m", export_dir: "o", export_size: 0.5, infer_dtype: "float16" }, "x");
  assert.deepEqual(typed.options, { to: "hf", model: "m", out: "o", shardBytes: 5e8, type: "f16" });
});

test("what an export recipe may not ask for is refused, all of it at once, with what to do instead", () => {
  const good = { model_name_or_path: "m", export_dir: "o" };
  const cases: [Record<string, unknown>, RegExp][] = [
    [{ export_legacy_format: true }, /export_legacy_format: weights are written as safetensors only/],
    [{ export_quantization_bit: 4 }, /GPTQ and AWQ are not written.*--to gguf --type q4_k_m/],
    [{ export_hub_model_id: "a/b" }, /does not upload/],
    [{ export_siz: 5 }, /unknown setting "export_siz" of an export\. Did you mean "export_size"\?/],
    [{ export_size: 0 }, /export_size: expected a number of GB above 0, got 0/],
    [{ infer_dtype: "int8" }, /infer_dtype: expected one of auto, float32, float16, bfloat16, got "int8"/],
    [{ export_dir: null }, /export_dir is missing/],
    [{ model_name_or_path: null }, /model_name_or_path is missing/],
    [{ adapter_name_or_path: "a,b" }, /one adapter is merged at a time/],
  ];
  for (const [change, message] of cases)
    assert.throws(
      () => exportOfRecipe({ ...good, ...change }, "r.yaml"),
      (error) => error instanceof ConfigError && message.test(error.message) && error.message.startsWith("r.yaml: "),
    );
  assert.throws(() => exportOfRecipe({ ...good, export_size: -1, export_hub_model_id: "a" }, "r"), /upload.*\n.*export_size/);
});
