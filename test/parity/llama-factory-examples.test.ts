/**
 * LLaMA-Factory's own example recipes, which are not in this repository: each that is about text trains two steps of a tiny model of its family on
 * its demo data, unchanged but for the model, the data's folder, the output and the steps; each other is refused by a line that names the key.
 * Recipes for inference and merging are read as a chat reads them.
 *
 *     ATTUNE_LF_EXAMPLES   its folder examples/
 *     ATTUNE_LF_DATA       its folder data/, with dataset_info.json and the demo files
 */
import assert from "node:assert/strict";
import { copyFileSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import { parse } from "yaml";
import { everyMethod, runRecipe } from "../../src/backends/index.js";
import { ConfigError } from "../../src/errors.js";
import { parseInference } from "../../src/recipe/inference.js";
import { parseRecipe, readRecipe } from "../../src/recipe/parse.js";
import { familyFolder } from "../support/families.js";
import { makeFolder } from "../support/run.js";
import { tinyLlama } from "../support/tiny-llama.js";

const { ATTUNE_LF_EXAMPLES: examples, ATTUNE_LF_DATA: data } = process.env;
const skip =
  examples && data ? false : "set ATTUNE_LF_EXAMPLES and ATTUNE_LF_DATA to LLaMA-Factory's folders examples/ and data/";

/** What no recipe about text on one machine has: keys, and values of `stage`, `finetuning_type` and others. */
const elsewhere = [
  /^(deepspeed|fsdp|fp8|ray_num_workers|use_kt|use_mca|tensor_model_parallel_size): /m,
  /^(image_max_pixels|video_max_pixels|add_special_tokens|new_special_tokens_config): /m,
  /^(use_galore|use_apollo|use_badam|use_adam_mini|use_dft_loss|use_asft_loss|use_eaft_loss|use_llama_pro): true/m,
  /^(mixture_of_depths|task|rope_scaling): /m,
  /^finetuning_type: oft/m,
  /^(model_class|train_dataset): /m, // of its v1
  /^stage: ppo[\s\S]*^top_p: 0/m, // own answers are drawn by temperature alone
  /^template: (gpt|deepseek|qwen3_5)/m, // of a family that does not run here
];

const recipes = skip
  ? []
  : readdirSync(examples!, { recursive: true })
      .map(String)
      .filter(
        (file) => /\.ya?ml$/.test(file) && /^(model|model_name_or_path): /m.test(readFileSync(join(examples!, file), "utf8")),
      )
      .sort();

test("LLaMA-Factory's examples", { skip }, async (t) => {
  assert.ok(recipes.length > 0, `no recipes in ${examples}`);
  const folder = makeFolder();
  const models = {
    llama: tinyModel(folder, "llama", join(tinyLlama, "tied")),
    qwen: tinyModel(folder, "qwen", familyFolder("qwen3")),
  };
  for (const file of recipes)
    await t.test(file, async () => {
      const path = join(examples!, file);
      const text = readFileSync(path, "utf8");
      const output = join(folder, "out", file);
      if (/(^|\/)(inference|infer_lora|merge_lora)\//.test(file)) {
        const source = await readRecipe(path);
        const readChat = () => parseInference(source, [], everyMethod);
        if (!/^use_kt: true/m.test(text) && !/_vl/.test(text)) assert.ok(readChat().recipe.template !== null);
        else assert.throws(readChat, /: (use_kt: true is not supported|template: expected)/);
        return;
      }
      const isElsewhere = elsewhere.some((pattern) => pattern.test(text));
      const predicts = !isElsewhere && /^do_predict: true/m.test(text);
      const overrides = [
        `model_name_or_path=${/qwen/i.test(text) ? models.qwen : models.llama}`,
        ...[`output_dir=${output}`, `dataset_dir=${data}`, "max_steps=2", "cutoff_len=256"],
        ...(predicts ? ["adapter_name_or_path=null", "max_samples=2", "max_new_tokens=8"] : []),
      ];
      const read = async () => parseRecipe(await readRecipe(path), overrides, everyMethod);
      if (isElsewhere) {
        await assert.rejects(read, (error: Error) => {
          assert.ok(error instanceof ConfigError, String(error));
          const lines = error.message.split("\n").filter((line) => !/: (dataset|output_dir) is missing/.test(line));
          const keys = Object.keys(parse(text) as object);
          assert.ok(lines.length > 0);
          for (const line of lines) {
            assert.doesNotMatch(line, /unknown setting/);
            assert.ok(keys.includes(/^\S+:\d+: (\w+):/.exec(line)?.[1] ?? ""), line);
          }
          return true;
        });
        return;
      }
      const { recipe, notices } = await read();
      let steps = 0;
      for await (const event of runRecipe(recipe, { signal: new AbortController().signal, notices }))
        if (event.type === "step") steps++;
      assert.equal(steps, predicts ? 0 : 2);
      const expected = predicts ? "generated_predictions.jsonl" : "all_results.json";
      assert.ok(readdirSync(output).includes(expected), `${expected} is not among ${readdirSync(output).join(", ")}`);
    });
});

/** A tiny model with room for long rows and a tokenizer of bytes. */
function tinyModel(folder: string, name: string, source: string): string {
  const target = join(folder, name);
  mkdirSync(target);
  const config = JSON.parse(readFileSync(join(source, "config.json"), "utf8")) as object;
  writeFileSync(join(target, "config.json"), JSON.stringify({ ...config, max_position_embeddings: 4096 }));
  copyFileSync(join(source, "model.safetensors"), join(target, "model.safetensors"));
  for (const file of ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])
    copyFileSync(join(tinyLlama, "tied", file), join(target, file));
  return target;
}
