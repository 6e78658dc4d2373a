import assert from "node:assert/strict";
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import test, { describe } from "node:test";
import {
  AttuneError,
  Chat,
  ConfigError,
  DataError,
  type EndEvent,
  InterruptedError,
  type StartEvent,
  train,
  trainEvents,
} from "../src/index.js";
import { openSafetensors } from "../src/io/safetensors.js";
import { engine } from "./support/gradient-check.js";
import { collect, hashOf, makeFolder, tinyRecipe, trace } from "./support/run.js";
import { tinyLlama } from "./support/tiny-llama.js";

const adapterOf = (folder: string) => hashOf(join(folder, "out/adapter_model.safetensors"));

test("a run leaves what users look for, and its numbers agree with each other", async () => {
  const folder = makeFolder();
  const events = await collect(
    tinyRecipe(folder, { val_size: 4, eval_steps: 3, plot_loss: true, save_strategy: "steps", save_steps: 5 }),
  );
  const out = join(folder, "out");
  const names = readdirSync(out);
  for (const name of [
    ...["adapter_config.json", "adapter_model.safetensors", "trainer_log.jsonl", "trainer_state.json", "all_results.json"],
    ...[
      "training_loss.png",
      "tokenizer.json",
      "tokenizer_config.json",
      "chat_template.jinja",
      "recipe.yaml",
      "events.jsonl",
      "checkpoint-5",
    ],
  ])
    assert.ok(names.includes(name), `${name} is missing among ${names.join(", ")}`);
  const results = JSON.parse(readFileSync(join(out, "all_results.json"), "utf8"));
  for (const key of [
    ...["train_loss", "eval_loss", "train_runtime", "tokens_per_second", "num_input_tokens_seen", "num_supervised_tokens"],
    ...["peak_memory_bytes", "trainable_params", "all_params", "threads", "seconds_to_first_step"],
  ])
    assert.ok(Number.isFinite(results[key]) && results[key] > 0, `${key} is ${results[key]}`);
  assert.equal(results.isa, engine.info().isa);
  assert.equal(results.dtype, "f32");
  const steps = events.filter((event) => event.type === "step");
  assert.equal(
    results.num_input_tokens_seen,
    steps.reduce((sum, { tokens }) => sum + tokens, 0),
  );
  assert.ok(steps.at(-1)!.loss < steps[0]!.loss);
  assert.deepEqual([results.first_loss, results.last_loss], [steps[0]!.loss, steps.at(-1)!.loss]);
  assert.ok(!names.some((name) => name.startsWith(".")), `left over: ${names.filter((name) => name.startsWith(".")).join()}`);
  rmSync(folder, { recursive: true });
});

test("held-out rows are evaluated when eval_strategy says, and at the end; never, if it says no", async () => {
  const evaluatedAt = async (changes: Record<string, unknown>) => {
    const folder = makeFolder();
    const events = await collect(tinyRecipe(folder, { val_size: 4, packing: false, num_train_epochs: 2, ...changes }));
    const { results } = events.at(-1) as EndEvent;
    const evaluations = events.filter((event) => event.type === "eval");
    assert.equal(results.eval_loss, evaluations.at(-1)?.evalLoss);
    assert.equal(existsSync(join(folder, "out/eval_results.json")), evaluations.length > 0);
    return evaluations.map(({ step }) => step);
  };
  assert.deepEqual(await evaluatedAt({}), [10, 20]);
  assert.deepEqual(await evaluatedAt({ eval_strategy: "epoch" }), [10, 20]);
  assert.deepEqual(await evaluatedAt({ eval_strategy: "steps", eval_steps: 8 }), [8, 16, 20]);
  assert.deepEqual(await evaluatedAt({ eval_strategy: "steps", eval_steps: 100 }), [20]);
  assert.deepEqual(await evaluatedAt({ eval_strategy: "no" }), []);
  assert.deepEqual(await evaluatedAt({ val_size: 0 }), []);
});

test("statistics count what their names say, packed or not, with virtual tokens or without", async () => {
  const statistics = async (changes: Record<string, unknown>) => {
    const { results } = (await collect(tinyRecipe(makeFolder(), { num_train_epochs: 2, ...changes }))).at(-1) as EndEvent;
    const { num_input_tokens_seen, num_supervised_tokens, train_runtime: seconds } = results;
    const samples = Math.round(results.train_samples_per_second * seconds);
    const steps = Math.round(results.train_steps_per_second * seconds);
    assert.ok(results.tokens_per_second >= num_input_tokens_seen / seconds, "the time of the steps is part of the whole");
    return { num_input_tokens_seen, num_supervised_tokens, samples, steps };
  };
  const packed = await statistics({});
  assert.equal(packed.samples, 48);
  const plain = await statistics({ packing: false });
  assert.deepEqual({ ...packed, steps: 24 }, plain);
  const virtual = { finetuning_type: "p-tuning", num_virtual_tokens: 3, lora_dropout: undefined };
  assert.deepEqual(await statistics({ packing: false, ...virtual }), plain);
  const everything = await statistics({ packing: false, train_on_prompt: true });
  assert.equal(everything.num_input_tokens_seen, plain.num_input_tokens_seen);
  assert.ok(everything.num_supervised_tokens! > plain.num_supervised_tokens!);
  assert.equal(everything.num_supervised_tokens! + 48, plain.num_input_tokens_seen, "each row's first token is not predicted");
});

test("more accumulation than an epoch has, and a warm-up longer than the run, are told", async () => {
  const events = await collect(tinyRecipe(makeFolder(), { gradient_accumulation_steps: 1e9, warmup_steps: 100 }));
  const told = events.flatMap((event) => (event.type === "notice" ? event.message : [])).join("\n");
  assert.match(told, /gradient_accumulation_steps is 1000000000, and an epoch has \d+ batches: each step takes them all/);
  assert.match(told, /warmup_steps is 100, and the run has 2 steps: the learning rate never reaches its peak/);
});

test("checkpoints are saved when save_strategy says", async () => {
  const savedAt = async (changes: Record<string, unknown>) => {
    const folder = makeFolder();
    await collect(tinyRecipe(folder, { packing: false, num_train_epochs: 2, ...changes }));
    const names = readdirSync(join(folder, "out")).filter((name) => name.startsWith("checkpoint-"));
    return names.map((name) => Number(name.slice("checkpoint-".length))).sort((a, b) => a - b);
  };
  assert.deepEqual(await savedAt({ save_strategy: "no", save_steps: 5 }), []);
  assert.deepEqual(await savedAt({ save_strategy: "steps", save_steps: 5 }), [5, 10, 15, 20]);
  assert.deepEqual(await savedAt({ save_strategy: "steps", save_steps: 100 }), []);
  assert.deepEqual(await savedAt({ save_strategy: "epoch" }), [12]);
});

test("resumed from any step, a run equals the uninterrupted one, bit by bit", async () => {
  const whole = makeFolder();
  const recipe = { save_strategy: "steps", save_steps: 1 };
  const expected = trace(await collect(tinyRecipe(whole, recipe)));
  assert.ok(expected.length >= 8);
  for (let step = 1; step < expected.length; step++) {
    const folder = makeFolder();
    mkdirSync(join(folder, "out"));
    cpSync(join(whole, `out/checkpoint-${step}`), join(folder, `out/checkpoint-${step}`), { recursive: true });
    const resumed = await collect(tinyRecipe(folder, { ...recipe, resume_from_checkpoint: true }));
    assert.equal(resumed.find((event): event is StartEvent => event.type === "start")!.resumedFromStep, step);
    assert.deepEqual(trace(resumed), expected.slice(step), `resumed from step ${step}`);
    assert.equal(adapterOf(folder), adapterOf(whole), `the adapter after resuming from step ${step}`);
    rmSync(folder, { recursive: true });
  }
  rmSync(whole, { recursive: true });
});

for (const [optim, optim_args] of [
  ...["adamw_torch", "adamw_8bit", "adafactor", "lion_32bit", "muon", "sgd"].map((name) => [name, null] as const),
  ["sgd", "momentum=0.9,nesterov=true"] as const,
])
  test(`full fine-tuning with ${optim} ${optim_args ?? ""} resumes bit by bit too, on two threads what began on one`, async (t) => {
    const { threads } = engine.info();
    t.after(() => engine.setThreads(threads));
    const whole = makeFolder();
    const ofOptimizer = { optim, optim_args, weight_decay: 0.1 };
    const method = { finetuning_type: "full", lora_dropout: undefined };
    const recipe = { ...method, ...ofOptimizer, save_strategy: "steps", save_steps: 4, threads: 1 };
    const weights = (folder: string) => hashOf(join(folder, "out/model.safetensors"));
    const expected = trace(await collect(tinyRecipe(whole, recipe)));
    const folder = makeFolder();
    mkdirSync(join(folder, "out"));
    cpSync(join(whole, "out/checkpoint-4"), join(folder, "out/checkpoint-4"), { recursive: true });
    const resumed = { ...recipe, resume_from_checkpoint: true, threads: 2 };
    assert.deepEqual(trace(await collect(tinyRecipe(folder, resumed))), expected.slice(4));
    assert.equal(weights(folder), weights(whole));
    const chat = await Chat.open({ model: join(folder, "out") });
    assert.equal(
      typeof (await chat.answerAll([[{ role: "user", content: "Where is the cat?" }]], { maxNewTokens: 4 }))[0],
      "string",
    );
    chat.close();
  });

test("a whole model is saved in the type that is asked for; its checkpoints keep f32 and resume bit by bit", async () => {
  const recipe = { finetuning_type: "full", lora_dropout: undefined, save_strategy: "steps", save_steps: 4 } as const;
  const typesIn = async (folder: string) => [
    ...new Set([...(await openSafetensors(join(folder, "model.safetensors"))).tensors.values()].map(({ dtype }) => dtype)),
  ];
  const wide = makeFolder();
  await collect(tinyRecipe(wide, recipe));
  assert.deepEqual(await typesIn(join(wide, "out")), ["F32"]);
  const narrow = makeFolder();
  await collect(tinyRecipe(narrow, { ...recipe, save_dtype: "bf16" }));
  const out = join(narrow, "out");
  assert.deepEqual([await typesIn(out), await typesIn(join(out, "checkpoint-4"))], [["BF16"], ["F32"]]);
  assert.equal((JSON.parse(readFileSync(join(out, "config.json"), "utf8")) as { dtype: string }).dtype, "bfloat16");
  assert.ok(existsSync(join(out, "generation_config.json")));

  const resumed = makeFolder();
  mkdirSync(join(resumed, "out"));
  cpSync(join(out, "checkpoint-4"), join(resumed, "out/checkpoint-4"), { recursive: true });
  await collect(tinyRecipe(resumed, { ...recipe, save_dtype: "base", resume_from_checkpoint: true }));
  assert.equal(hashOf(join(resumed, "out/model.safetensors")), hashOf(join(wide, "out/model.safetensors"))); // the base is f32

  const adapter = makeFolder();
  const events = await collect(tinyRecipe(adapter, { save_dtype: "bf16", max_steps: 1 }));
  assert.ok(
    events.some((event) => event.type === "notice" && event.message.startsWith("save_dtype changes nothing: lora saves")),
  );
});

test("stopped in the middle, a run saves, and goes on as if nothing had happened", async () => {
  const whole = makeFolder();
  const expected = trace(await collect(tinyRecipe(whole)));
  const folder = makeFolder();
  const stop = new AbortController();
  const first = await collect(
    tinyRecipe(folder),
    (event) => event.type === "step" && event.step === 3 && stop.abort(),
    stop.signal,
  );
  assert.equal((first.at(-1) as EndEvent).interrupted, true);
  assert.ok(existsSync(join(folder, "out/checkpoint-3/.complete")));
  assert.ok(existsSync(join(folder, "out/adapter_model.safetensors")));
  const rest = await collect(tinyRecipe(folder, { resume_from_checkpoint: true }));
  assert.deepEqual([...trace(first), ...trace(rest)], expected);
  assert.equal(adapterOf(folder), adapterOf(whole));
  const logged = readFileSync(join(folder, "out/trainer_log.jsonl"), "utf8")
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line).current_steps);
  assert.deepEqual(
    logged,
    expected.map((_, i) => i + 1),
  );
});

test("train() rejects with a typed error where it was stopped, and where the data are not there", async () => {
  const folder = makeFolder();
  const stop = new AbortController();
  const onEvent = ({ type }: { type: string }) => type === "step" && stop.abort();
  await assert.rejects(train(tinyRecipe(folder), { onEvent, signal: stop.signal }), InterruptedError);
  assert.ok(existsSync(join(folder, "out/checkpoint-1/.complete")), "what it learnt is saved");
  const rest = await train(tinyRecipe(folder, { resume_from_checkpoint: true }));
  assert.ok(rest.train_loss > 0 && rest.first_loss! > rest.last_loss!, "the first step was taken before the stop");
  await assert.rejects(train(tinyRecipe(folder, { dataset: "nowhere.jsonl", output_dir: join(folder, "b") })), DataError);
  await assert.rejects(train(join(folder, "nowhere.yaml")), ConfigError);
});

test("a template that writes the date writes that of the run's start when the run goes on another day", async () => {
  const folder = makeFolder();
  const model = join(folder, "model");
  cpSync(join(tinyLlama, "tied"), model, { recursive: true });
  const path = join(model, "tokenizer_config.json");
  const config = JSON.parse(readFileSync(path, "utf8")) as { chat_template: string };
  config.chat_template = `{{ strftime_now("%H:%M:%S") }}${config.chat_template}`;
  writeFileSync(path, JSON.stringify(config));
  const recipe = { model_name_or_path: model, save_strategy: "steps", save_steps: 2 };
  const expected = trace(await collect(tinyRecipe(folder, { ...recipe, resume_from_checkpoint: true })));
  const newest = readdirSync(join(folder, "out")).filter((name) => name.startsWith("checkpoint-"));
  for (const name of newest) if (name !== "checkpoint-2") rmSync(join(folder, "out", name), { recursive: true });
  await new Promise((resolve) => setTimeout(resolve, 1100));
  assert.deepEqual(trace(await collect(tinyRecipe(folder, { ...recipe, resume_from_checkpoint: true }))), expected.slice(2));
});

test("one thread and two train the same adapter, bit by bit", async () => {
  const [one, two] = [makeFolder(), makeFolder()];
  const { threads } = engine.info();
  try {
    assert.deepEqual(
      trace(await collect(tinyRecipe(one, { threads: 1 }))),
      trace(await collect(tinyRecipe(two, { threads: 2 }))),
    );
    assert.equal(adapterOf(one), adapterOf(two));
  } finally {
    engine.setThreads(threads);
  }
});

test("an adapter is trained further from where it was, and answers in a chat", async () => {
  const folder = makeFolder();
  const first = await train(tinyRecipe(folder, { num_train_epochs: 12 }));
  const second = await train(
    tinyRecipe(folder, {
      num_train_epochs: 1,
      adapter_name_or_path: join(folder, "out"),
      output_dir: join(folder, "more"),
      warmup_steps: 0,
    }),
  );
  assert.ok(second.train_loss < 0.5 * first.train_loss);
  const chat = await Chat.open({ model: join(tinyLlama, "tied"), adapter: join(folder, "out") });
  const question = [{ role: "user", content: "Where is the owl??" }];
  const [answer] = await chat.answerAll([question], { maxNewTokens: 24 });
  let streamed = "";
  for await (const piece of chat.reply(question, { maxNewTokens: 24 })) streamed += piece;
  assert.equal(streamed, answer);
  assert.match(answer!, /^on the /);
  chat.close();
});

describe("bad input is refused with a clear word", () => {
  const cases: readonly [name: string, changes: Record<string, unknown>, code: string, message: RegExp][] = [
    ["a model that is not there", { model_name_or_path: "/no/such/model" }, "MODEL", /\/no\/such\/model: no such file or folder/],
    ["a dataset that is not there", { dataset: "nowhere.json" }, "DATA", /nowhere\.json/],
    [
      "a target that no layer has",
      { lora_target: "q_proj,qq_proj" },
      "CONFIG",
      /no Linear layer is named "qq_proj". There are: down_proj/,
    ],
    ["an unknown template", { template: "lama3" }, "CONFIG", /template: expected one of .*got "lama3"\. Did you mean "llama3"/],
    ["an unknown key", { lora_rnak: 4 }, "CONFIG", /lora_rnak.*Did you mean "?lora_rank/s],
    ["a row that is longer than a bin", { cutoff_len: 8 }, "DATA", /rows\.jsonl/],
    [
      "passes without end",
      { num_train_epochs: 1e12 },
      "CONFIG",
      /num_train_epochs: 1000000000000 make \d+ steps of \d+ an epoch/,
    ],
    ["more rows held out than there are", { val_size: 24 }, "CONFIG", /val_size/],
  ];
  for (const [name, changes, code, message] of cases)
    test(name, async () => {
      const folder = makeFolder();
      await assert.rejects(
        collect(tinyRecipe(folder, changes)),
        (error) => error instanceof AttuneError && error.code === code && message.test(error.message) && error.exitCode === 2,
      );
    });

  test("an output folder that holds another run", async () => {
    const folder = makeFolder();
    await collect(tinyRecipe(folder));
    const before = adapterOf(folder);
    await assert.rejects(
      collect(tinyRecipe(folder)),
      /holds another run.*resume_from_checkpoint=true.*overwrite_output_dir=true/s,
    );
    assert.equal(adapterOf(folder), before);
    const broken = tinyRecipe(folder, { overwrite_output_dir: true, lora_target: "nothing" });
    await assert.rejects(collect(broken), /no Linear layer/);
    assert.equal(adapterOf(folder), before, "a run that cannot start replaces nothing");
    await collect(tinyRecipe(folder, { overwrite_output_dir: true }));
  });

  test("an output folder where a run is at work", async () => {
    const folder = makeFolder();
    const first = trainEvents(tinyRecipe(folder));
    await first.next();
    await assert.rejects(collect(tinyRecipe(folder)), new RegExp(`${process.pid}`));
    await first.return(undefined);
    await collect(tinyRecipe(folder, { overwrite_output_dir: true }));
  });

  test("a checkpoint of other data", async () => {
    const folder = makeFolder();
    await collect(tinyRecipe(folder, { save_strategy: "steps", save_steps: 2 }));
    await assert.rejects(collect(tinyRecipe(folder, { resume_from_checkpoint: true, seed: 43 })), /other data, batch size/);
  });

  test("a damaged checkpoint: the one before it is used, with a warning", async () => {
    const folder = makeFolder();
    const expected = trace(await collect(tinyRecipe(folder, { save_strategy: "steps", save_steps: 2 })));
    const newest = Math.max(
      ...readdirSync(join(folder, "out"))
        .flatMap((name) => /^checkpoint-(\d+)$/.exec(name)?.[1] ?? [])
        .map(Number),
    );
    const victim = join(folder, `out/checkpoint-${newest}/optimizer.safetensors`);
    const bytes = readFileSync(victim);
    bytes[bytes.length - 5]! ^= 1;
    writeFileSync(victim, bytes);
    const events = await collect(tinyRecipe(folder, { resume_from_checkpoint: true }));
    assert.ok(
      events.some(
        (event) => event.type === "notice" && event.level === "warning" && event.message.includes("optimizer.safetensors"),
      ),
    );
    assert.deepEqual(trace(events), expected.slice(newest - 2));
  });

  test("a run that diverges stops at that step and keeps the last good checkpoint", async () => {
    const folder = makeFolder();
    const recipe = tinyRecipe(folder, {
      learning_rate: 1e30,
      max_grad_norm: 0,
      save_strategy: "steps",
      save_steps: 1,
      warmup_steps: 0,
    });
    const before = engine.stats().liveBytes;
    await assert.rejects(
      collect(recipe),
      (error) =>
        error instanceof AttuneError &&
        error.exitCode === 3 &&
        /^step \d+: the (loss|gradient|update|weights)/.test(error.message),
    );
    assert.ok(!existsSync(join(folder, "out/adapter_model.safetensors")), "nothing that diverged is saved as a result");
    assert.equal(engine.stats().liveBytes, before, "nothing of the run stays in memory");
  });
});

test("datasets are mixed by their shares, in the order of the data where it is not shuffled, and a resumed run goes on there", async () => {
  const folder = makeFolder();
  const names = ["many", "few"].map((name, i) => {
    const path = join(folder, `${name}.csv`);
    const rows = Array.from({ length: 6 - 4 * i }, (_, row) => `${name} ${row},${"x".repeat(5 * row + i + 1)}`);
    writeFileSync(path, `question,answer\n${rows.join("\n")}\n`);
    return path;
  });
  const changes = {
    dataset: names,
    packing: false,
    gradient_accumulation_steps: 1,
    num_train_epochs: 2,
    disable_shuffling: true,
  };
  const tokensOf = async (more: object) => {
    const events = await collect(tinyRecipe(folder, { ...changes, overwrite_output_dir: true, ...more }));
    return events.filter((event) => event.type === "step").map(({ tokens }) => tokens);
  };
  const plain = await tokensOf({});
  const [many, few] = [plain.slice(0, 6), plain.slice(6, 8)];
  assert.deepEqual(plain, [...many, ...few, ...many, ...few]);
  const twice = (rows: unknown[]) => [...rows, ...rows];
  const over = many.flatMap((row, i) => [row, few[i % 2]]);
  assert.deepEqual(await tokensOf({ mix_strategy: "interleave_over" }), twice(over));
  assert.deepEqual(await tokensOf({ mix_strategy: "interleave_under" }), twice(over.slice(0, 4)));
  assert.equal((await tokensOf({ mix_strategy: "interleave_once", interleave_probs: [0.5, 0.5] })).length, 16);

  const mixed = {
    mix_strategy: "interleave_over",
    interleave_probs: "0.75,0.25",
    val_size: 2,
    save_strategy: "steps",
    save_steps: 3,
  };
  await tokensOf(mixed);
  const whole = adapterOf(folder);
  cpSync(join(folder, "out/checkpoint-3"), join(folder, "kept/checkpoint-3"), { recursive: true });
  rmSync(join(folder, "out"), { recursive: true });
  cpSync(join(folder, "kept"), join(folder, "out"), { recursive: true });
  await tokensOf({ ...mixed, overwrite_output_dir: false, resume_from_checkpoint: true });
  assert.equal(adapterOf(folder), whole);
  await assert.rejects(
    tokensOf({ ...mixed, model_revision: "v1", model_name_or_path: "owner/name@v2" }),
    /model_revision: v1 differs/,
  );
  rmSync(folder, { recursive: true });
});
