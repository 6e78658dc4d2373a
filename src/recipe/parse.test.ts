import assert from "node:assert/strict";
import test from "node:test";
import { z } from "zod";
import { ConfigError } from "../errors.js";
import { checkRecipe, formatRecipe, parseRecipe } from "./parse.js";
import { expectation, keySchemas, type Methods, RecipeKeys, recipeJsonSchema } from "./schema.js";

const methods: Methods = {
  tuners: [
    {
      name: "lora",
      config: z.strictObject({
        lora_rank: z.int().min(1).default(8),
        quantization_bit: z.literal(4).nullable().default(null),
        lora_alpha: z.number().gt(0).nullable().default(null),
        lora_target: z.union([z.literal("all"), z.array(z.string().min(1)).min(1)]).default("all"),
      }),
    },
    { name: "full", config: z.strictObject({}) },
  ],
  objectives: [{ name: "sft" }],
  backends: [
    {
      name: "native",
      config: z.strictObject({ threads: z.int().min(1).nullable().default(null).describe("threads of the engine") }),
      needless: { bf16: "the CPU decides", deepspeed: "one process trains", ddp_timeout: "one process trains", flash_attn: "no" },
    },
    {
      name: "cluster",
      config: z.strictObject({ hosts: z.array(z.string()).default([]), deepspeed: z.string().default("none") }),
      needless: { cluster_name: "there is one" },
    },
  ],
};

const minimal = "model_name_or_path: base\ndataset: a.jsonl, b.jsonl\noutput_dir: out\n";

const parse = (text: string, ...overrides: string[]) => parseRecipe({ text, file: "recipe.yaml" }, overrides, methods);

/** The problems of a recipe that is complete but for `text`, which begins at line 4. */
function problems(text: string, ...overrides: string[]): string {
  try {
    parse(minimal + text, ...overrides);
  } catch (error) {
    assert.ok(error instanceof ConfigError, String(error));
    assert.equal(error.exitCode, 2);
    return error.message;
  }
  return assert.fail(`accepted: ${text} ${overrides.join(" ")}`);
}

test("a minimal recipe gets LLaMA-Factory's defaults", () => {
  const { recipe, notices } = parse(minimal);
  assert.deepEqual(notices, []);
  assert.deepEqual(recipe.dataset, ["a.jsonl", "b.jsonl"]);
  assert.deepEqual(recipe.tuner, { lora_rank: 8, quantization_bit: null, lora_alpha: null, lora_target: "all" });
  assert.deepEqual(recipe.objective, {});
  const { finetuning_type, learning_rate, num_train_epochs, cutoff_len, seed, eval_strategy } = recipe;
  assert.deepEqual(
    { finetuning_type, learning_rate, num_train_epochs, cutoff_len, seed, eval_strategy },
    { finetuning_type: "lora", learning_rate: 5e-5, num_train_epochs: 3, cutoff_len: 2048, seed: 42, eval_strategy: "no" },
  );
});

const taught: Methods = {
  ...methods,
  tuners: [
    {
      name: "lora",
      config: z.strictObject({ wide: z.boolean().default(false) }),
      defaults: [
        {
          where: { words: "with `wide`", fits: (config) => (config as { wide: boolean }).wide },
          ...{ learning_rate: 3e-4, rowsPerStep: 8, warmup_ratio: 0 },
        },
        { learning_rate: 1e-3, rowsPerStep: 4, warmup_ratio: 0.1 },
      ],
    },
    { name: "full" },
  ],
  objectives: [{ name: "sft" }, { name: "pt", packs: true }],
};

test("a recipe without a learning rate gets the method's own steps and is told; one with a rate is obeyed", () => {
  const steps = (text: string, ...overrides: string[]) => {
    const { recipe, notices } = parseRecipe({ text: minimal + text, file: "recipe.yaml" }, overrides, taught);
    const { learning_rate, gradient_accumulation_steps, warmup_ratio } = recipe;
    assert.deepEqual(
      parseRecipe({ text: formatRecipe(recipe), file: "recipe.yaml" }, [], taught),
      { recipe, notices: [] },
      "what was taken is written out, and read again without a word",
    );
    return { taken: [learning_rate, gradient_accumulation_steps, warmup_ratio], notices };
  };
  assert.deepEqual(steps("").taken, [1e-3, 4, 0.1]);
  assert.deepEqual(steps("").notices, [
    "recipe.yaml: no learning_rate is set: lora takes 1e-3 with gradient_accumulation_steps 4, warmup_ratio 0.1 " +
      "(LLaMA-Factory: 5e-5; docs/defaults.md has the reasons)",
  ]);
  assert.deepEqual(steps("learning_rate: null").taken, [1e-3, 4, 0.1]);
  assert.deepEqual(steps("wide: true").taken, [3e-4, 8, 0]);
  assert.deepEqual(steps("per_device_train_batch_size: 3\nwide: true").taken, [3e-4, 2, 0], "rows of a step stay about the same");
  assert.deepEqual(steps("per_device_train_batch_size: 64").taken, [1e-3, 1, 0.1]);
  assert.deepEqual(steps("packing: true").taken, [1e-3, 1, 0.1], "a pack holds many rows");
  assert.deepEqual(steps("stage: pt").taken, [1e-3, 1, 0.1]);
  const named = steps("gradient_accumulation_steps: 2\nwarmup_ratio: 0");
  assert.deepEqual(named.taken, [1e-3, 2, 0]);
  assert.match(named.notices.join(), /lora takes 1e-3 \(LLaMA-Factory/);
  assert.deepEqual(steps("lr_scheduler_type: constant").taken, [1e-3, 4, 0], "it has no warm-up");
  assert.match(steps("warmup_steps: 5").notices.join(), /takes 1e-3 with gradient_accumulation_steps 4 \(/);

  assert.deepEqual(steps("learning_rate: 2e-3"), { taken: [2e-3, 1, 0], notices: [] });
  assert.deepEqual(steps("", "learning_rate=2e-3"), { taken: [2e-3, 1, 0], notices: [] });
  assert.deepEqual(steps("learning_rate: 2e-3\nwarmup_ratio: 0.05").taken, [2e-3, 1, 0.05]);
  assert.deepEqual(steps("finetuning_type: full"), { taken: [5e-5, 1, 0], notices: [] }, "a method without steps of its own");
  assert.throws(() => steps("weight_decay: 1000"), /weight_decay × learning_rate is 1:/, "the rate that is taken is checked");
});

test("settings of a schedule are those of its function in transformers; others are refused by name", () => {
  const { recipe } = parse(`${minimal}lr_scheduler_type: cosine_with_min_lr\nlr_scheduler_kwargs: { min_lr: 1e-6 }`);
  assert.deepEqual(recipe.lr_scheduler_kwargs, { min_lr: 1e-6 });
  const { recipe: overridden } = parse(minimal, "lr_scheduler_type=polynomial", 'lr_scheduler_kwargs={"power": 2}');
  assert.deepEqual(overridden.lr_scheduler_kwargs, { power: 2 });
  const refused = (text: string) => problems(`lr_scheduler_type: ${text}`);
  assert.match(
    refused("polynomial\nlr_scheduler_kwargs: { powr: 2, power: x }"),
    /^recipe\.yaml:5: lr_scheduler_kwargs: polynomial has no setting "powr"\. Did you mean "power"\? Its settings: lr_end, power\n.*: power: expected a number above 0 .*, got "x"$/,
  );
  assert.match(refused("cosine_with_min_lr"), /^recipe\.yaml:4: lr_scheduler_kwargs: set min_lr or min_lr_rate, one of them$/);
  assert.match(refused("cosine_with_min_lr\nlr_scheduler_kwargs: {min_lr: 0, min_lr_rate: 0}"), /one of them$/);
  assert.match(refused("polynomial\nlearning_rate: 1e-8"), /lr_end is 1e-7, and must be below learning_rate, 1e-8$/);
  assert.match(refused("constant\nlr_scheduler_kwargs: {power: 1}"), /constant has no setting "power"\. Its settings: none$/);
  assert.match(
    refused("reduce_lr_on_plateau"),
    /expected one of .*, got "reduce_lr_on_plateau": the learning rate here depends on the step/,
  );
});

test("each optimizer reads its own settings; what it does not read is said, and what nobody knows is refused", () => {
  const read = (text: string) => parse(`${minimal}learning_rate: 1e-3\n${text}`);
  assert.equal(read("use_muon: true").recipe.optim, "muon");
  assert.equal(read("optim: muon").recipe.use_muon, true);
  assert.deepEqual(read("optim: adamw_torch\nuse_muon: true").notices, ["recipe.yaml:5: optim is not used: use_muon is true"]);
  assert.deepEqual(read("optim: sgd\noptim_args: momentum=0.9, nesterov=True").recipe.optim_args, {
    momentum: 0.9,
    nesterov: true,
  });
  assert.deepEqual(read("optim: sgd\noptim_args: { momentum: 0.9 }").recipe.optim_args, { momentum: 0.9 });
  assert.deepEqual(read("optim: lion_32bit\nadam_beta2: 0.99\nadam_epsilon: 1e-6").notices, [
    "recipe.yaml:7: adam_epsilon is not used: optim lion_32bit has no such setting",
  ]);
  assert.match(
    problems("optim: sgd\nlearning_rate: 1\noptim_args: weight_decay=0.1"),
    /^recipe\.yaml:6: optim_args: sgd has no setting "weight_decay"\. Its settings: momentum, dampening, nesterov$/,
  );
  assert.match(
    problems("optim: sgd\nlearning_rate: 1\noptim_args: momentum=2"),
    /momentum: expected a number from 0 .*below 1, got 2$/,
  );
  assert.match(problems("optim_args: momentum"), /^recipe\.yaml:4: optim_args: expected a text, or a mapping, got "momentum"$/);
  assert.match(problems("optim_args: momentum=0.9"), /adamw_torch has no setting "momentum"\. Its settings: none$/);
  assert.match(problems("optim: adamw_torch_4bit"), /got "adamw_torch_4bit": moments in 4 bits are not there: write adamw_8bit$/);
  assert.match(problems("optim: rmsprop"), /got "rmsprop": it is not there$/);
});

test("a method's own rate is AdamW's: another optimizer takes its part of it, or wants a rate", () => {
  const parsed = (text: string) => parseRecipe({ text: minimal + text, file: "recipe.yaml" }, [], taught);
  assert.equal(parsed("optim: muon").recipe.learning_rate, 1e-3);
  const lion = parsed("optim: lion_32bit");
  assert.equal(lion.recipe.learning_rate, 3e-4);
  assert.match(
    lion.notices.join(),
    /lora takes 3e-4, 0\.3 times AdamW's for optim lion_32bit, with gradient_accumulation_steps 4/,
  );
  assert.equal(parsed("optim: lion_32bit\nlearning_rate: 1e-5").recipe.learning_rate, 1e-5);
  assert.equal(parsed("optim: lion_32bit\nwide: true").recipe.learning_rate, 9e-5);
  assert.throws(
    () => parsed("optim: sgd"),
    /^ConfigError: recipe\.yaml: learning_rate is missing: with optim sgd no rate suits every model\. Try several, for example 0\.01, 0\.1 and 1$/,
  );
});

test("metrics can go to TensorBoard; other services are named, and get nothing", () => {
  const reporters = (text: string) => parse(`${minimal}report_to: ${text}`).recipe.report_to;
  assert.deepEqual(parse(minimal).recipe.report_to, []);
  assert.deepEqual(["none", "[]", "wandb"].map(reporters), [[], [], []]);
  for (const text of ["tensorboard", "all", "[wandb, tensorboard]", "wandb,tensorboard"])
    assert.deepEqual(reporters(text), ["tensorboard"], text);
  const { notices } = parse(`${minimal}report_to: [wandb, swanlab]\nlogging_dir: x`);
  assert.equal(notices.length, 3);
  assert.match(
    notices[1]!,
    /^recipe\.yaml:4: report_to: swanlab gets nothing: attune sends metrics to no service\. They go to trainer_log/,
  );
  assert.match(notices[2]!, /^recipe\.yaml:5: logging_dir is not used: it is TensorBoard's/);
  assert.match(
    problems("report_to: wandbb"),
    /^recipe\.yaml:4: report_to: expected none, tensorboard, all or one of azure_ml.*, got "wandbb"$/,
  );
});

test("JSON is read as YAML is", () => {
  const text = JSON.stringify({ model_name_or_path: "base", dataset: ["x"], output_dir: "out", learning_rate: 1e-4 }, null, "\t");
  assert.equal(parse(text).recipe.learning_rate, 1e-4);
  assert.throws(
    () => parse('{\n\t"seed": 1,\n\t"seeds": 2\n}'),
    /^ConfigError: recipe\.yaml:3: unknown setting "seeds"\. Did you mean "seed"\?/,
  );
});

test("every kind of mistake is reported with its line and what to write", () => {
  const cases: [text: string, expected: RegExp][] = [
    ["learning_rte: 1", /^recipe\.yaml:4: unknown setting "learning_rte"\. Did you mean "learning_rate"\?$/],
    ["\nzzzzzz: 1", /^recipe\.yaml:5: unknown setting "zzzzzz"\. docs\/recipe\.md lists the settings$/],
    ["lora_rnk: 1", /^recipe\.yaml:4: unknown setting "lora_rnk"\. Did you mean "lora_rank"\?$/],
    ["sav_steps: 1", /^recipe\.yaml:4: unknown setting "sav_steps"\. Did you mean "save_steps", "max_steps" or "eval_steps"\?$/],
    ["__proto__: 1", /^recipe\.yaml:4: unknown setting "__proto__"/],
    ["constructor: 1", /^recipe\.yaml:4: unknown setting "constructor"/],
    [
      'learning_rate: "1e-4"',
      /^recipe\.yaml:4: learning_rate: expected a number from 1e-37 to 1e\+38, got "1e-4": write it without quotes, 1e-4$/,
    ],
    ["cutoff_len: 1_000", /^recipe\.yaml:4: cutoff_len: expected a whole number from 2, got "1_000": write 1000$/],
    ["cutoff_len: 1.5", /^recipe\.yaml:4: cutoff_len: expected a whole number from 2, got 1\.5$/],
    ["learning_rate: -1", /^recipe\.yaml:4: learning_rate: expected a number from 1e-37 to 1e\+38, got -1$/],
    ["learning_rate: .nan", /^recipe\.yaml:4: learning_rate: expected a number from 1e-37 to 1e\+38, got NaN$/],
    ["warmup_ratio: 1.5", /^recipe\.yaml:4: warmup_ratio: expected a number from 0 to 1, got 1\.5$/],
    ["adam_beta1: 1", /^recipe\.yaml:4: adam_beta1: expected a number from 0 and below 1, got 1$/],
    ["val_size: 1.5", /^recipe\.yaml:4: val_size: expected a number from 0 and below 1, or a whole number from 1, got 1\.5$/],
    ["max_steps: 0", /^recipe\.yaml:4: max_steps: expected a whole number from 1 to 100000000, or -1, got 0$/],
    ["packing: yes", /^recipe\.yaml:4: packing: expected true or false, got "yes": write true$/],
    ["dataset_dir: 3", /^recipe\.yaml:4: dataset_dir: expected a text, got 3: put it in quotes, "3"$/],
    ["dataset_dir: [a]", /^recipe\.yaml:4: dataset_dir: expected a text, got a list$/],
    ["template: lama3", /^recipe\.yaml:4: template: expected one of default, .*, got "lama3"\. Did you mean "llama3"\?$/],
    ["template: qwen2_vl", /^recipe\.yaml:4: template: .*, got "qwen2_vl": it belongs to .*; without the line, the model's own/],
    [
      "quantization_bit: 3",
      /^recipe\.yaml:4: quantization_bit: expected 4, got 3: the base is kept in 4 bits, in 8, or as it is stored$/,
    ],
    [
      "lr_scheduler_type: sine",
      /^recipe\.yaml:4: lr_scheduler_type: expected one of linear, cosine, cosine_with_restarts, .*constant_with_warmup, got "sine"$/,
    ],
    ["lora_rank: 0", /^recipe\.yaml:4: lora_rank: expected a whole number from 1, got 0$/],
    ["lora_target: []", /^recipe\.yaml:4: lora_target: expected all, or a list of texts, got an empty list$/],
    [
      "do_train: false",
      /^recipe\.yaml:4: do_train is false, and neither do_eval nor do_predict is true: there is nothing to do$/,
    ],
    ["stage: dpo", /^recipe\.yaml:4: stage: dpo is not there yet; expected one of sft$/],
    ["stage: orpo", /^recipe\.yaml:4: stage: orpo is a loss of pairs: write stage: dpo, and it as pref_loss$/],
    ["finetuning_type: magic", /^recipe\.yaml:4: finetuning_type: unknown: "magic"; expected one of lora, full$/],
    ["finetuning_type: 3", /^recipe\.yaml:4: finetuning_type: expected a text, got 3: put it in quotes/],
    ["load_in_4bit: true", /^recipe\.yaml:4: load_in_4bit: true is not supported: .*; write quantization_bit: 4 instead$/],
    ["use_galore: true", /^recipe\.yaml:4: use_galore: true is not supported: GaLore is not there; .*; remove it$/],
    ["seed: 1\nseed: 2", /^recipe\.yaml:5: seed is set twice$/],
    ["lora_r: 1\nlora_rank: 2", /^recipe\.yaml:5: lora_rank is set twice \(first by recipe\.yaml:4\)$/],
    ["seed: 1\n---\nseed: 2", /^recipe\.yaml:5: a recipe is one document/],
    ["seed: [1,\n", /^recipe\.yaml:\d: not valid YAML: /],
    ["seed: !!python/object x", /^recipe\.yaml:4: not valid YAML: Unresolved tag/],
    ["? [seed]\n: 1", /^recipe\.yaml:4: expected the name of a setting$/],
    [`x: ${"[".repeat(200_000)}`, /^recipe\.yaml: expected settings, got lists in lists without end$/],
    [`x: \n  ${"- ".repeat(100_000)}`, /^recipe\.yaml: expected settings, got lists in lists without end$/],
    ["#".repeat(1 << 20), /^recipe\.yaml: expected a recipe, which is never over 1 MB$/],
  ];
  for (const [text, expected] of cases) assert.match(problems(text), expected);
});

test("aliases that multiply are refused", () => {
  const rows = Array.from({ length: 9 }, (_, i) => `k${i + 1}: &k${i + 1} [${Array(9).fill(`*k${i}`).join(", ")}]`);
  assert.match(problems(`k0: &k0 [x]\n${rows.join("\n")}`), /^recipe\.yaml: cannot be read as YAML: Excessive alias count/);
});

test("all problems are reported at once, missing settings included", () => {
  assert.throws(
    () => parse("seed: x\nlora_rank: -1"),
    (error: ConfigError) => {
      const lines = error.message.split("\n").map((line) => line.split(": expected")[0]);
      assert.deepEqual(lines.sort(), [
        "recipe.yaml: dataset is missing: the training data: files, or names of `dataset_info.json`",
        "recipe.yaml: model_name_or_path is missing: the base model: a folder, a GGUF file, or a repository name of the hub",
        "recipe.yaml: output_dir is missing: where adapter, checkpoints and logs go",
        "recipe.yaml:1: seed",
        "recipe.yaml:2: lora_rank",
      ]);
      return true;
    },
  );
  assert.throws(() => parse(""), /model_name_or_path is missing/);
  assert.throws(() => parse("- a"), /recipe\.yaml:1: expected settings/);
});

test("settings of other trainers are renamed or explained, one line each", () => {
  const { recipe, notices } = parse(
    `${minimal}bf16: true\nddp_timeout: 180000000\ntrust_remote_code: true\nlora-r: 16\nmicro_batch_size: 2\noptim: adamw_torch\nflash_attn: null\n`,
  );
  assert.equal(recipe.tuner.lora_rank, 16);
  assert.equal(recipe.per_device_train_batch_size, 2);
  assert.deepEqual(
    notices.map((notice) => notice.split(":").slice(0, 3).join(":")),
    [
      "recipe.yaml:4: bf16 is not needed",
      "recipe.yaml:5: ddp_timeout is not needed",
      "recipe.yaml:6: trust_remote_code is not needed",
      "recipe.yaml:7: lora_r is read as lora_rank",
      "recipe.yaml:8: micro_batch_size is read as per_device_train_batch_size",
    ],
  );
  assert.ok(notices.every((notice) => !notice.includes("\n")));
});

test("a secret in a recipe is not repeated", () => {
  const { notices } = parse(`${minimal}hf_hub_token: hf_secret\n`);
  assert.doesNotMatch(notices.join(), /hf_secret/);
});

test("null means not set, and settings of another method are told", () => {
  assert.equal(parse(`${minimal}lora_rank: null\nval_size: ~\nuse_galore: null\nseed:\n`).recipe.seed, 42);
  const { recipe, notices } = parse(`${minimal}finetuning_type: full\nlora_rank: 4\n`);
  assert.deepEqual(recipe.tuner, {});
  assert.deepEqual(notices, ["recipe.yaml:5: lora_rank is not used: only lora reads it"]);
});

test("overrides win over the file, in every spelling", () => {
  const { recipe } = parse(
    `${minimal}seed: 1\nlora_rank: 4\nmax_samples: 9\n`,
    ...[
      "seed=7",
      "--lora-rank",
      "32",
      "--packing",
      "--max_steps",
      "-1",
      "--learning_rate=1e-4",
      "output_dir=2026",
      "max_samples=null",
    ],
    ...["dataset=[x, y]", 'template="qwen"', "--gradient_checkpointing", "logging_steps=3"],
  );
  const { seed, tuner, packing, max_steps, learning_rate, output_dir, max_samples, dataset, template, gradient_checkpointing } =
    recipe;
  assert.deepEqual(
    {
      seed,
      rank: tuner.lora_rank,
      packing,
      max_steps,
      learning_rate,
      output_dir,
      max_samples,
      dataset,
      template,
      gradient_checkpointing,
    },
    {
      ...{ seed: 7, rank: 32, packing: true, max_steps: -1, learning_rate: 1e-4, output_dir: "2026", max_samples: null },
      ...{ dataset: ["x", "y"], template: "qwen", gradient_checkpointing: true },
    },
  );
  assert.equal(recipe.logging_steps, 3);
  assert.deepEqual(parse(minimal, "lora_target=q_proj, v_proj").recipe.tuner.lora_target, ["q_proj", "v_proj"]);
  assert.deepEqual(parse(`${minimal}lora_target: q_proj,v_proj`).recipe.tuner.lora_target, ["q_proj", "v_proj"]);
  assert.equal(parse(minimal, "resume_from_checkpoint=true").recipe.resume_from_checkpoint, true);
  assert.equal(parse(minimal, "output_dir=C:\\a #1: b").recipe.output_dir, "C:\\a #1: b");
  assert.equal(parse(minimal, 'dataset_dir="a').recipe.dataset_dir, '"a');
  assert.equal(parse(minimal, "dataset_dir=*a").recipe.dataset_dir, "*a");
  assert.equal(parse(minimal, `dataset_dir=${"[".repeat(100_000)}`).recipe.dataset_dir.length, 100_000);
  assert.equal(parse(`${minimal}use_galore: true\nlora_r: 4\n`, "use_galore=null", "lora_rank=2").recipe.tuner.lora_rank, 2);
  assert.equal(parseRecipe(undefined, ["model=m", "dataset=d", "output_dir=o"], methods).recipe.model_name_or_path, "m");
});

test("how datasets are mixed is checked", () => {
  const mixed = (text: string) => problems(`mix_strategy: interleave_over\ninterleave_probs: ${text}\n`);
  for (const text of ["0.25,0.75", "[0.25, 0.75]"])
    assert.deepEqual(
      parse(`${minimal}mix_strategy: interleave_over\ninterleave_probs: ${text}\n`).recipe.interleave_probs,
      [0.25, 0.75],
    );
  const { recipe } = parse(minimal, "mix_strategy=interleave_once", "interleave_probs=0.5,0.5");
  assert.deepEqual(parse(formatRecipe(recipe)).recipe, recipe);
  assert.match(mixed("0.5"), /interleave_probs/);
  assert.match(mixed("[0.5]"), /yaml:5: interleave_probs has 1 numbers, and dataset names 2/);
  assert.match(mixed("0.5,0.6"), /above 0 and sum to 1; their sum is 1\.1/);
  assert.match(mixed("1,0"), /above 0 and sum to 1/);
  assert.match(mixed("0.5,x"), /yaml:5: interleave_probs: expected/);
  assert.match(problems("interleave_probs: 0.5,0.5\n"), /needs mix_strategy/);
  assert.match(problems("mix_strategy: other\n"), /expected one of concat, interleave_under, interleave_over, interleave_once/);
  const one = parse(
    "model_name_or_path: base\ndataset: a.jsonl\noutput_dir: out\nmix_strategy: interleave_under\nlearning_rate: 1e-4\n",
  );
  assert.deepEqual(one.notices, ["recipe.yaml:4: mix_strategy is not used: there is one dataset"]);
});

test("mistakes in overrides name the override", () => {
  assert.match(problems("", "seed=-1"), /^override "seed=-1": seed: expected a whole number from 0, got -1$/);
  assert.match(
    problems("", "--lora-rank", "x"),
    /^override "--lora-rank x": lora_rank: expected a whole number from 1, got "x"$/,
  );
  assert.match(problems("", "--sed", "1"), /^override "--sed 1": unknown setting "sed"\. Did you mean "seed"\?/);
  assert.match(problems("", "other.yaml"), /^unexpected argument "other\.yaml": settings are written key=value or --key value$/);
  assert.match(problems("", "=1"), /^unexpected argument "=1"/);
  assert.match(problems("", "seed=1", "seed=2"), /^override "seed=2": seed is set twice \(first by override "seed=1"\)$/);
});

test("settings that are 0 or infinite as numbers of the engine are refused", () => {
  const keys = ["learning_rate", "adam_epsilon", "max_grad_norm"];
  for (const key of keys)
    for (const value of ["1e-50", "1e39", "1e308", ".inf", ".nan", "-1"])
      assert.match(
        problems(`${key}: ${value}`),
        new RegExp(`^recipe\\.yaml:4: ${key}: expected .*a number from 1e-37 to 1e\\+38, got`),
      );
  assert.match(problems("weight_decay: 1e39"), /^recipe\.yaml:4: weight_decay: expected a number from 0 to 1e\+38, got 1e\+39$/);
  assert.match(
    problems("weight_decay: 1\nlearning_rate: 1"),
    /^recipe\.yaml:4: weight_decay × learning_rate is 1: a step would take/,
  );
  assert.match(problems("learning_rate: 1e38\nweight_decay: 1e38"), /weight_decay × learning_rate is 1e\+76/);
  const { recipe } = parse(`${minimal}learning_rate: 1e38\nadam_epsilon: 1e-37\nmax_grad_norm: 0`);
  assert.deepEqual([recipe.learning_rate, recipe.adam_epsilon, recipe.max_grad_norm], [1e38, 1e-37, 0]);
});

test("settings that contradict each other are refused, idle ones are told", () => {
  assert.match(problems("adapter_name_or_path: a,b"), /^recipe\.yaml:4: adapter_name_or_path: one adapter, not several/);
  assert.match(problems("dataset_dir: REMOTE:o/n"), /^recipe\.yaml:4: dataset_dir: a dataset_info\.json on the hub is not read/);
  assert.match(problems("val_size: 0.1\neval_dataset: x"), /^recipe\.yaml:4: val_size and eval_dataset both/);
  assert.match(problems("train_on_prompt: true\nmask_history: true"), /^recipe\.yaml:5: mask_history counts only/);
  assert.match(
    problems("seed: 2\neval_strategy: epoch"),
    /^recipe\.yaml:5: eval_strategy: epoch needs held-out data; set val_size or eval_dataset$/,
  );

  const notice = (text: string) => parse(minimal + text).notices.join("\n");
  assert.match(
    notice("overwrite_output_dir: true\nresume_from_checkpoint: true"),
    /^recipe\.yaml:4: overwrite_output_dir is not used: resume/,
  );
  assert.equal(notice("eval_steps: 5"), "recipe.yaml:4: eval_steps is not used: there is no held-out data");
  assert.equal(notice("max_steps: 5\nnum_train_epochs: 1"), "recipe.yaml:5: num_train_epochs is not used: max_steps decides");
  assert.equal(notice("warmup_ratio: 0.1\nwarmup_steps: 5"), "recipe.yaml:4: warmup_ratio is not used: warmup_steps decides");
  assert.match(
    notice("lr_scheduler_type: constant\nwarmup_ratio: 0.1"),
    /^recipe\.yaml:5: warmup_ratio is not used: lr_scheduler_type constant/,
  );
});

test("a recipe that only answers or evaluates needs no data to train on, and trains nothing", () => {
  const idle = (lines: string) => {
    const text = `model_name_or_path: m\noutput_dir: out\neval_dataset: held\n${lines}`;
    const { recipe } = parseRecipe({ text, file: "recipe.yaml" }, [], methods);
    return [recipe.do_train, recipe.dataset, recipe.eval_dataset];
  };
  assert.deepEqual(idle("do_predict: true"), [false, ["held"], ["held"]]);
  assert.deepEqual(idle("do_eval: true"), [false, ["held"], ["held"]]);
  assert.deepEqual(idle("do_predict: true\ndataset: d"), [true, ["d"], ["held"]]);
  assert.throws(() => idle("do_predict: true\ndo_train: true"), /dataset is missing/);
  assert.throws(() => idle("seed: 1"), /dataset is missing/);
});

test("evaluation follows the held-out data", () => {
  const evaluation = (text: string) => {
    const { eval_strategy, eval_steps } = parse(minimal + text).recipe;
    return [eval_strategy, eval_steps];
  };
  assert.deepEqual(evaluation("val_size: 0.1"), ["epoch", 10]);
  assert.deepEqual(evaluation("val_size: 20\neval_steps: 7"), ["steps", 7]);
  assert.deepEqual(evaluation("eval_dataset: x\neval_strategy: steps\nlogging_steps: 4"), ["steps", 4]);
  assert.deepEqual(evaluation("val_size: 0.1\neval_strategy: no"), ["no", 10]);
  for (const heldOut of ["val_size: 0.1", "eval_dataset: x"])
    assert.deepEqual(parse(`${minimal}eval_strategy: no\n${heldOut}`).notices, [
      `recipe.yaml:5: ${heldOut.split(":")[0]}: these rows are held out, and never evaluated: eval_strategy is no`,
    ]);
  assert.equal(parse(`${minimal}neat_packing: true`).recipe.packing, true);
});

test("a formatted recipe parses to itself", () => {
  const { recipe } = parse(`${minimal}val_size: 0.1\nlora_rank: 4\ndataset_dir: "no"\nneat_packing: true\nmax_steps: 3\n`);
  assert.deepEqual(parse(formatRecipe(recipe)), { recipe, notices: [] });
  const idle = parse(
    `${minimal}max_steps: 3\nwarmup_steps: 2\nsave_strategy: epoch\npacking: true\nresume_from_checkpoint: true\n`,
  ).recipe;
  assert.deepEqual(parse(formatRecipe(idle)), { recipe: { ...idle, resume_from_checkpoint: false }, notices: [] });
  const { tuner, objective, backendConfig, ...common } = recipe;
  assert.deepEqual(checkRecipe({ ...common, ...tuner, ...objective, ...backendConfig }, methods).recipe, recipe);
  assert.throws(
    () => checkRecipe({ ...common, sed: 1 }, methods),
    /^ConfigError: recipe: unknown setting "sed"\. Did you mean "seed"\?/,
  );
});

test("the JSON schema has every setting, its description and the methods' names", () => {
  const schema = recipeJsonSchema(methods) as {
    properties: Record<string, { description?: string; enum?: string[] }>;
    required: string[];
  };
  assert.deepEqual(schema.required.sort(), ["dataset", "model_name_or_path", "output_dir"]);
  assert.deepEqual(schema.properties.finetuning_type?.enum, ["lora", "full"]);
  assert.ok(schema.properties.lora_rank);
  for (const [key, property] of Object.entries(keySchemas(RecipeKeys))) {
    assert.ok(property.description, `${key} has no description`);
    assert.doesNotMatch(expectation(property), /undefined|object/);
    assert.equal("default" in property, !schema.required.includes(key), key);
  }
});

test("a backend brings its own settings, and its own list of those that it does not need", () => {
  const settings = "threads: 2\nbf16: true\ndeepspeed: ds.json\n";
  const native = parse(minimal + settings);
  assert.deepEqual(native.recipe.backendConfig, { threads: 2 });
  assert.deepEqual(native.notices, [
    "recipe.yaml:5: bf16 is not needed: the CPU decides",
    "recipe.yaml:6: deepspeed is not needed: one process trains",
  ]);
  const cluster = parse(`${minimal}backend: cluster\nthreads: 2\ndeepspeed: ds.json\ncluster_name: x\nbf16: false\n`);
  assert.deepEqual(cluster.recipe.backendConfig, { hosts: [], deepspeed: "ds.json" });
  assert.deepEqual(cluster.notices, [
    "recipe.yaml:7: cluster_name is not needed: there is one",
    "recipe.yaml:5: threads is not used: only native reads it",
  ]);
  assert.match(
    problems("backend: cluster\nbf16: true\n"),
    /:5: bf16: true is not supported: it is not for backend: cluster; remove it$/,
  );
  assert.match(
    problems("cluster_name: x\n"),
    /:4: cluster_name: "x" is not supported: it is not for backend: native; remove it$/,
  );
  assert.match(
    problems("backend: gpu\nbf16: true\n"),
    /^recipe\.yaml:4: backend: unknown: "gpu"; expected one of native, cluster$/,
  );
  assert.deepEqual(parse(formatRecipe(cluster.recipe)), { recipe: cluster.recipe, notices: [] });
});
