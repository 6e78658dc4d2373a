import assert from "node:assert/strict";
import test from "node:test";
import { z } from "zod";
import { ConfigError } from "../errors.js";
import { tuners } from "../tuners/index.js";
import { checkWork, formatPipeline, type Pipeline, parseWork, settingsOfWork } from "./pipeline.js";
import type { Methods } from "./schema.js";

/** A policy's objective, a judge's, and that of a policy which learns from a judge. */
const methods: Methods = {
  tuners,
  backends: [{ name: "native" }],
  objectives: [
    { name: "sft" },
    {
      name: "judge",
      config: z.strictObject({ margin: z.number().default(0).describe("m") }),
      handsOver: (folder, result) => ({ reward_model: folder, reward_model_type: result === "adapter" ? "lora" : "full" }),
    },
    {
      name: "learner",
      config: z.strictObject({
        reward_model: z.string().nullable().default(null).describe("r"),
        reward_model_type: z.enum(["lora", "full"]).default("lora").describe("t"),
      }),
    },
  ],
};

const base = "model_name_or_path: m\ndataset: a.jsonl\noutput_dir: out\nlearning_rate: 1e-4\n";

function parse(text: string, ...overrides: string[]): { pipeline: Pipeline; notices: readonly string[] } {
  const { pipeline, notices } = parseWork({ text: base + text, file: "r.yaml" }, overrides, methods);
  assert.ok(pipeline !== undefined);
  return { pipeline, notices };
}

function problemsOf(text: string, ...overrides: string[]): string {
  try {
    parse(text, ...overrides);
  } catch (error) {
    assert.ok(error instanceof ConfigError);
    return error.message;
  }
  assert.fail("nothing is wrong");
}

test("each stage begins from what the last policy saved; a judge's folder goes to whoever has a setting for it", () => {
  const { pipeline, notices } = parse("stages: [sft, judge, learner, sft]");
  assert.deepEqual(notices, []);
  assert.deepEqual(
    pipeline.stages.map(({ name, isPolicy, recipe }) => [name, isPolicy, recipe.output_dir, recipe.adapter_name_or_path]),
    [
      ["1-sft", true, "out/1-sft", null],
      ["2-judge", false, "out/2-judge", "out/1-sft"],
      ["3-learner", true, "out/3-learner", "out/1-sft"],
      ["4-sft", true, "out/4-sft", "out/3-learner"],
    ],
  );
  assert.deepEqual(pipeline.stages[2]!.recipe.objective, { reward_model: "out/2-judge", reward_model_type: "lora" });
  assert.ok(pipeline.stages.every(({ recipe }) => recipe.model_name_or_path === "m" && recipe.stages === null));
  const { draft } = pipeline.stages[2]!;
  assert.deepEqual([draft.adapter_name_or_path, draft.objective], [null, { reward_model: null, reward_model_type: null }]);
});

test("a whole model is the base of the next stage, and a judge of its own", () => {
  const { pipeline } = parse("finetuning_type: full\nmodel_revision: v1\nstages: sft,judge,learner");
  assert.deepEqual(
    pipeline.stages.map(({ recipe }) => [recipe.model_name_or_path, recipe.model_revision, recipe.adapter_name_or_path]),
    [
      ["m", "v1", null],
      ["out/1-sft", "main", null],
      ["out/1-sft", "main", null],
    ],
  );
  assert.deepEqual(pipeline.stages[2]!.recipe.objective, { reward_model: "out/2-judge", reward_model_type: "full" });
  assert.ok(pipeline.stages.every(({ draft }) => draft.model_name_or_path === "m" && draft.model_revision === "v1"));
});

test("a stage's own settings win over the file, the command line over both; what begins the pipeline begins its first stage", () => {
  const text =
    "seed: 1\nmargin: 1\nstages:\n  - sft\n  - stage: judge\n    dataset: b.jsonl\n    learning-rate: 2e-5\n    margin: 2\n";
  const { pipeline, notices } = parse(text, "adapter_name_or_path=old", "seed=7", "--output-dir", "elsewhere");
  const [first, second] = pipeline.stages;
  assert.deepEqual(
    [first!.recipe.dataset, first!.recipe.learning_rate, first!.recipe.adapter_name_or_path],
    [["a.jsonl"], 1e-4, "old"],
  );
  assert.deepEqual([second!.recipe.dataset, second!.recipe.learning_rate], [["b.jsonl"], 2e-5]);
  assert.deepEqual([second!.recipe.adapter_name_or_path, second!.recipe.output_dir], ["elsewhere/1-sft", "elsewhere/2-judge"]);
  assert.deepEqual([first!.recipe.seed, second!.recipe.seed, second!.recipe.objective], [7, 7, { margin: 2 }]);
  assert.deepEqual(notices, [], "that one stage does not read what another does is no news");
});

test("a stage that names a model or adapter begins from that, and one that names a judge is given no other", () => {
  const { pipeline } = parse(
    "stages:\n  - sft\n  - {stage: judge, model_name_or_path: big}\n  - {stage: learner, reward_model: mine}\n  - {stage: sft, adapter_name_or_path: null}",
  );
  const starts = pipeline.stages.map(({ recipe }) => [recipe.model_name_or_path, recipe.adapter_name_or_path]);
  assert.deepEqual(starts, [
    ["m", null],
    ["big", null],
    ["m", "out/1-sft"],
    ["m", null],
  ]);
  assert.deepEqual(pipeline.stages[2]!.recipe.objective, { reward_model: "mine", reward_model_type: "lora" });
});

test("every problem of every stage is told at once, with its line and its stage", () => {
  const text = "stages:\n  - sft\n  - stage: judge\n    mragin: 2\n  - stage: learner\n    seed: -1\n  - dop\nlora_rnak: 2\n";
  const lines = problemsOf(text).split("\n");
  assert.equal(lines.length, 4);
  assert.match(lines[0]!, /^r\.yaml:12: unknown setting "lora_rnak"\. Did you mean "lora_rank"/);
  assert.match(lines[1]!, /^stage 2 \(judge\): r\.yaml:8: unknown setting "mragin"\. Did you mean "margin"/);
  assert.match(lines[2]!, /^stage 3 \(learner\): r\.yaml:10: seed: expected a whole number/);
  assert.match(lines[3]!, /^stage 4 \(dop\): r\.yaml:5: stages, item 4: stage: unknown: "dop"; expected one of sft, judge/);
});

test("what makes no pipeline is refused", () => {
  for (const [text, message] of [
    ["stages: []", /r\.yaml:5: stages: expected a list of names, or of mappings/],
    ["stages: 3", /stages: expected a list of names/],
    ["stages: [[sft]]", /stages: expected a list of names/],
    ["stage: sft\nstages: [sft]", /r\.yaml:5: stage and stages both say/],
    ["stages:\n  - {seed: 1}", /r\.yaml:6: item 1 of stages does not say which stage it is/],
    ["stages:\n  - {stage: sft, output_dir: x}", /r\.yaml:6: output_dir is said once, for all stages/],
    [
      "stages: [sft]\nresume_from_checkpoint: out/1-sft/checkpoint-3",
      /r\.yaml:6: resume_from_checkpoint: a pipeline finds by itself/,
    ],
    [
      "stages: [sft, {stage: learner, finetuning_type: full}]",
      /^stage 2 \(learner\): finetuning_type full trains the model itself, and 1-sft leaves an adapter \(lora\)/,
    ],
    [
      "stages: [sft, {stage: learner, finetuning_type: prefix-tuning}]",
      /cannot go on from the adapter that 1-sft leaves \(lora\).*create_new_adapter: true/,
    ],
    ["stages:\n  - {stage: sft, seed: 1, seed: 2}", /seed is set twice/],
  ] as const)
    assert.match(problemsOf(text), message);
  parse("stages: [sft, {stage: learner, finetuning_type: prefix-tuning, create_new_adapter: true}]");
  parse("stages: [sft, {stage: learner, finetuning_type: qlora}]");
  assert.throws(() => parseWork({ text: "stages: [sft]\nmodel_name_or_path: m\ndataset: d", file: "r.yaml" }, [], methods), {
    message: /^r\.yaml: output_dir is missing/,
  });
});

test("what only some stages have to say begins with their names", () => {
  const { notices } = parse(
    "loraplus_lr_ratio: 4\nmargin: 3\nstages:\n  - sft\n  - {stage: sft, max_steps: 3, num_train_epochs: 2}",
    "margin=3",
  );
  assert.deepEqual(notices, [
    'override "margin=3": margin is not used: only judge reads it',
    "stage 2 (sft): r.yaml:9: num_train_epochs is not used: max_steps decides",
  ]);
});

test("the settings of a pipeline, every default written out, are checked to the same pipeline", () => {
  for (const text of [
    "stages: [sft, judge, learner]\noverwrite_output_dir: true",
    "finetuning_type: full\nmodel_revision: v1\nstages: [{stage: sft, dataset: other}, learner]",
    "adapter_name_or_path: old\nstages: [judge, {stage: learner, adapter_name_or_path: null}, {stage: sft, model_name_or_path: big}]",
  ]) {
    const { pipeline } = parse(text);
    const again = checkWork(settingsOfWork({ pipeline }), methods);
    assert.deepEqual(again.pipeline!.stages, pipeline.stages);
    assert.deepEqual(again.pipeline, pipeline);
    assert.deepEqual(again.notices, []);
    const read = parseWork({ text: formatPipeline(pipeline), file: "recipe.yaml" }, [], methods);
    assert.deepEqual(read.pipeline!.stages, pipeline.stages);
    assert.equal(read.pipeline!.overwrite, false);
  }
});

test("a recipe of one run is the same as ever", () => {
  const { recipe } = parseWork({ text: base, file: "r.yaml" }, ["seed=3"], methods);
  assert.deepEqual([recipe!.stage, recipe!.seed, recipe!.output_dir], ["sft", 3, "out"]);
});
