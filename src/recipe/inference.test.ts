import assert from "node:assert/strict";
import test from "node:test";
import { z } from "zod";
import { ConfigError } from "../errors.js";
import { parseInference, settingsOf } from "./inference.js";
import type { Methods } from "./schema.js";

const methods: Methods = {
  tuners: [{ name: "lora", config: z.strictObject({ lora_rank: z.int().default(8) }) }],
  objectives: [{ name: "sft" }],
  backends: [{ name: "native", needless: { flash_attn: "there is one attention" } }],
};

const parse = (text: string, ...overrides: string[]) => parseInference({ text, file: "chat.yaml" }, overrides, methods);

test("a recipe of LLaMA-Factory for inference names model, adapter, template and how answers are drawn", () => {
  const { recipe, notices } = parse(
    "model_name_or_path: owner/base\nadapter_name_or_path: saves/lora\ntemplate: qwen3_nothink\n" +
      "infer_backend: huggingface  # choices: [huggingface, vllm, sglang]\ntrust_remote_code: true\ntemperature: 0.5\ntop_p: 0.9\nflash_attn: fa2\n",
    "max_new_tokens=64",
  );
  const { model_name_or_path, adapter_name_or_path, template, temperature, top_p, max_new_tokens, top_k } = recipe;
  assert.deepEqual(
    { model_name_or_path, adapter_name_or_path, template, temperature, top_p, max_new_tokens, top_k },
    {
      ...{ model_name_or_path: "owner/base", adapter_name_or_path: "saves/lora", template: "qwen3_nothink" },
      ...{ temperature: 0.5, top_p: 0.9, max_new_tokens: 64, top_k: null },
    },
  );
  assert.deepEqual(
    notices.map((notice) => notice.split(": ").slice(0, 2).join(": ")),
    ["infer_backend", "trust_remote_code", "flash_attn"].map((key, i) => `chat.yaml:${[4, 5, 8][i]}: ${key} is not needed`),
  );
});

test("recipes for merging and training open a chat too: what these read is told and left", () => {
  const { recipe, notices } = parse(
    "model: m\nexport_dir: out\nexport_quantization_bit: 4\nlora_rank: 4\nlearning_rate: 1e-4\nfinetuning_type: lora\n",
  );
  assert.equal(recipe.model_name_or_path, "m");
  assert.deepEqual(notices, [
    "chat.yaml:1: model is read as model_name_or_path",
    "chat.yaml:2: export_dir is not needed: only `attune export` reads it",
    "chat.yaml:3: export_quantization_bit is not needed: only `attune export` reads it",
    "chat.yaml:4: lora_rank is not needed: only training reads it",
    "chat.yaml:5: learning_rate is not needed: only training reads it",
    "chat.yaml:6: finetuning_type is not needed: only training reads it",
  ]);
});

test("mistakes in a recipe of a chat are named with their line", () => {
  const problems = (text: string) => {
    try {
      parse(text);
    } catch (error) {
      assert.ok(error instanceof ConfigError, String(error));
      return error.message;
    }
    return assert.fail(`accepted: ${text}`);
  };
  assert.match(problems("template: qwen"), /^chat\.yaml: model_name_or_path is missing/);
  assert.match(
    problems("model: m\ntemperatur: 1"),
    /^chat\.yaml:2: unknown setting "temperatur"\. Did you mean "temperature"\?$/,
  );
  assert.match(problems("model: m\ntop_p: 2"), /^chat\.yaml:2: top_p: expected a number above 0 and up to 1, got 2$/);
  assert.match(problems("model: m\nrope_scaling: yarn"), /^chat\.yaml:2: rope_scaling: "yarn" is not supported: /);
  assert.match(
    problems("model: m\nadapter_name_or_path: a, b"),
    /^chat\.yaml:2: adapter_name_or_path: one adapter, not several: /,
  );
  assert.match(problems("model: m\nuse_kt: true"), /^chat\.yaml:2: use_kt: true is not supported: left for the PyTorch backend/);
});

test("the settings of a file are given as they are, those of the command line in their place", () => {
  const source = { text: "export_dir: out\nexport-size: 5\nmodel: m\n", file: "merge.yaml" };
  assert.deepEqual(settingsOf(source, ["export_size=2"]), { export_dir: "out", export_size: 2, model_name_or_path: "m" });
  assert.throws(() => settingsOf({ text: "a: 1\nA: 2\na: 3", file: "x.yaml" }), /^ConfigError: x\.yaml:3: a is set twice/);
});
