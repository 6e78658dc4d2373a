import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { copyFile, mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { PassThrough, Readable } from "node:stream";
import test, { after, before } from "node:test";
import { fileURLToPath } from "node:url";
import { ConfigError, DivergedError, DoesNotFitError, ModelError, NoSpaceError } from "../errors.js";
import type { ExportOptions } from "../export/export.js";
import type { Receipt } from "../export/receipt.js";
import type { ChatOptions, ReplyOptions } from "../generate/chat.js";
import type { ClassifierOptions } from "../generate/classifier.js";
import type { Recipe } from "../recipe/schema.js";
import type { RunEvent, RunResults } from "../runs/events.js";
import type { RunOptions } from "../runs/run.js";
import { main } from "./main.js";
import { type Parts, parts as realParts } from "./parts.js";
import type { Io } from "./terminal.js";

const results: RunResults = {
  ...{ epoch: 1, train_loss: 1.5, eval_loss: 1.25, train_runtime: 83, train_samples_per_second: 3, train_steps_per_second: 1 },
  ...{
    total_flos: 1e12,
    tokens_per_second: 512.4,
    num_input_tokens_seen: 600,
    num_supervised_tokens: 60,
    peak_memory_bytes: 1.2e9,
  },
  ...{ trainable_params: 10, all_params: 100, machine: { isa: "avx2", threads: 2, dtype: "f32" }, seconds_to_first_step: 1.5 },
};

async function* fakeRun(recipe: Recipe, { signal, notices = [] }: RunOptions): AsyncGenerator<RunEvent> {
  const totalSteps = 25;
  for (const message of notices) yield { type: "notice", level: "info", message };
  yield { type: "progress", what: "downloading model.safetensors", doneBytes: 5e6, totalBytes: 10e6 };
  yield {
    ...{ type: "start", trainRows: 12, evalRows: 4, totalSteps, resumedFromStep: 0, trainableParams: 2.4e6, allParams: 134.5e6 },
    ...{ machine: { isa: "avx2", threads: 2, dtype: "f32" }, predictedPeakBytes: 1e9, availableBytes: 4e9 },
  };
  yield { type: "notice", level: "warning", message: "row 3 was cut\x1b[31m" };
  for (let step = 1; step <= totalSteps && !signal.aborted; step++) {
    yield {
      ...{
        type: "step",
        step,
        totalSteps,
        epoch: step / totalSteps,
        loss: 3 / step,
        gradNorm: 1,
        learningRate: 1e-4,
        tokens: 100,
      },
      ...{
        supervisedTokens: 10,
        tokensPerSecond: 512,
        elapsedMs: step * 200,
        remainingMs: (totalSteps - step) * 200,
        peakMemoryBytes: 1.2e9,
      },
    };
  }
  yield { type: "eval", step: totalSteps, epoch: 1, evalLoss: 1.25, elapsedMs: 5000 };
  yield { type: "checkpoint", step: totalSteps, path: join(recipe.output_dir, `checkpoint-${totalSteps}`) };
  yield { type: "end", interrupted: signal.aborted, results };
}

interface Calls {
  recipe?: Recipe;
  chat?: ChatOptions;
  readonly used: (string | null)[];
  replies: { contents: string[]; options: ReplyOptions }[];
  isClosed?: boolean;
  exported?: ExportOptions;
  classifier?: ClassifierOptions;
}

function fakeParts(calls: Calls, changes: Partial<Parts> = {}): Parts {
  return {
    runWork({ recipe }, options) {
      calls.recipe = recipe!;
      return fakeRun(recipe!, options);
    },
    async openChat(options) {
      calls.chat = options;
      const adapters = typeof options.adapter === "string" ? [options.adapter] : [...(options.adapter?.keys() ?? [])];
      let adapter = adapters[0] ?? null;
      return {
        adapters,
        get adapter() {
          return adapter;
        },
        useAdapter(name) {
          if (name !== null && !adapters.includes(name)) throw new ConfigError(`there is no adapter "${name}"`);
          adapter = name;
          calls.used.push(name);
        },
        async *reply(messages, replyOptions = {}) {
          calls.replies.push({ contents: messages.map(({ role, content }) => `${role}: ${content}`), options: replyOptions });
          yield* ["echo ", messages.at(-1)!.content];
          return { finished: "stop", tokens: 2 };
        },
        facts: { weights: "bf16", compute: "f32", contextTokens: 8192, methods: new Map(adapters.map((name) => [name, "lora"])) },
        thoughts: { areKnown: false, areOpen: false },
        close() {
          calls.isClosed = true;
        },
      };
    },
    async openScorer() {
      return {
        async *score([file = ""]) {
          yield { where: `${file}:1`, scores: { chosen: 1.5, rejected: -0.25 } };
          yield { where: `${file}:2`, scores: { chosen: 0, rejected: 0.5 } };
          yield { where: `${file}:3`, scores: { score: 2 } };
        },
        close: () => {
          calls.isClosed = true;
        },
      };
    },
    async openClassifier(options) {
      calls.classifier = options;
      return {
        close: () => {
          calls.isClosed = true;
        },
        classify: async (texts) =>
          texts.map((text) => ({
            label: text.includes("good") ? "good" : "b\x1b[31mad",
            probabilities: { good: 0.75, "b\x1b[31mad": 0.25 },
          })),
      };
    },
    async exportModel(options) {
      calls.exported = options;
      options.onNotice?.("a notice\x1b[31m");
      const drift = {
        ...{ positions: 512, maxLogitDifference: 0.01234, meanLogitDifference: 0.001, divergence: 0, sameToken: 0.995 },
        ...{ textLossBefore: 3, textLossAfter: 3.01 },
      };
      const answers = { loss: 1.25, right: 20, lost: 3, gained: 1, changed: 0.126 };
      const reading = { program: "llama.cpp", arithmetic: "sums in f32", change: null } as const;
      const receipt = {
        ...{ receipt: 1, model: "m", adapter: "runs/orders", to: options.to, type: options.type ?? "q8_0", sha256: {} },
        rows: { source: "given", from: ["held\x1b[31m.jsonl"], loss: 60, answers: 50 },
        before: { baseLoss: 3, loss: 1.23456, right: 22 },
        readings: [
          { ...reading, answers, verdict: "warn", reasons: ["20 of 50"] },
          { ...reading, program: "attune", answers: { ...answers, right: 22, changed: 0 }, verdict: "pass", reasons: [] },
        ],
        ...{ drift, verdict: "warn", advice: ["try f16"] },
      } as const satisfies Receipt;
      return options.to === "gguf-lora"
        ? { written: ["adapter.gguf"], type: null, drift: null, receipt: null }
        : { written: ["model.gguf", "Modelfile"], type: options.type ?? "q8_0", drift, receipt };
    },
    previewData: realParts.previewData,
    systemPromptOf: realParts.systemPromptOf,
    ...changes,
  };
}

interface Outcome {
  readonly code: number;
  readonly out: string;
  readonly err: string;
  readonly calls: Calls;
}

interface Surroundings {
  readonly env?: Record<string, string>;
  readonly input?: string;
  readonly columns?: number;
  readonly parts?: Partial<Parts>;
}

/** Runs the CLI in this process; `columns` makes its output a terminal. */
async function run(args: readonly string[], { env = {}, input = "", columns, parts }: Surroundings = {}): Promise<Outcome> {
  const output = () =>
    Object.assign(new PassThrough({ encoding: "utf8" }), columns === undefined ? {} : { isTTY: true, columns });
  const [stdout, stderr] = [output(), output()];
  const calls: Calls = { replies: [], used: [] };
  const io: Io = { stdin: Readable.from([input]), stdout, stderr, env: { LANG: "C.UTF-8", ...env } };
  const code = await main(args, fakeParts(calls, parts), io);
  return { code, out: stdout.read() ?? "", err: stderr.read() ?? "", calls };
}

let folder: string;
let recipe: string;

before(async () => {
  folder = await mkdtemp(join(tmpdir(), "attune-cli-"));
  recipe = join(folder, "recipe.yaml");
  await writeFile(
    recipe,
    `model_name_or_path: base\ndataset: a.jsonl\noutput_dir: ${JSON.stringify(join(folder, "my run"))}\nbf16: true\n`,
  );
});
after(() => rm(folder, { recursive: true }));

test("without a command, and with --help, a newcomer learns what there is", async () => {
  const { code, out } = await run(["--help"]);
  assert.equal(code, 0);
  for (const word of ["train", "chat", "data preview", "doctor", "Examples:", "attune train recipe.yaml"])
    assert.ok(out.includes(word), word);
  assert.ok(out.split("\n").length < 30, "short");
  assert.equal((await run([])).out, out);
  for (const command of [["train"], ["chat"], ["data"], ["data", "preview"], ["doctor"]]) {
    const help = await run([...command, "--help"]);
    assert.equal(help.code, 0, help.err);
    assert.match(help.out, new RegExp(`^Usage: attune ${command.join(" ")}`));
  }
  assert.match((await run(["--version"])).out, /^\d+\.\d+\.\d+\n$/);
});

test("version, env and help answer as a LLaMA-Factory user expects, and what is not there says what is", async () => {
  assert.equal((await run(["version"])).out, (await run(["--version"])).out);
  assert.equal((await run(["help"])).out, (await run(["--help"])).out);
  assert.equal((await run(["help", "train"])).out, (await run(["train", "--help"])).out);
  assert.equal((await run(["help", "data", "preview"])).out, (await run(["data", "preview", "--help"])).out);
  assert.match((await run(["help", "tran"])).err, /^attune: unknown command 'tran'; there are train, chat, .*env\n$/);

  const { code, out } = await run(["env"], { env: { HF_TOKEN: "hf_secret", ATTUNE_THREADS: "1", LANG: "zh_CN.UTF-8" } });
  assert.equal(code, 0);
  const names = [...out.matchAll(/^- (\w+): ./gm)].map(([, name]) => name);
  assert.deepEqual(names, ["attune", "os", "node", "cpu", "features", "engine", "memory", "compiler", "environment"]);
  assert.match(out, /environment: ATTUNE_THREADS=1 HF_TOKEN=\(set\) LANG=zh_CN\.UTF-8\n/);
  assert.doesNotMatch(out, /hf_secret|\p{Script=Han}/u);

  for (const name of ["api", "webchat", "webui", "serve", "eval"]) {
    const answer = await run([name, "recipe.yaml", "--port", "8000"]);
    assert.equal(answer.code, 2);
    assert.match(answer.err, new RegExp(`^attune: ${name}: [^\n]*attune (chat|train)[^\n]*\n$`));
    assert.doesNotMatch((await run(["--help"])).out, new RegExp(`^ +${name} `, "m"));
  }
});

test("a slip in a command or an option is answered with what was probably meant, and code 2", async () => {
  const cases: [args: string[], expected: RegExp][] = [
    [["tran"], /^attune: unknown command 'tran'\n\(Did you mean train\?\)/],
    [["data", "previw"], /Did you mean preview\?/],
    [["chat", "--modl", "x"], /^attune: unknown option '--modl'\n\(Did you mean --model\?\)/],
    [["chat"], /^attune: --model is missing/],
    [["chat", "-m", "x", "-t", "hot"], /^attune: --temperature: expected a number from 0, got "hot"\n$/],
    [["chat", "-m", "x", "--top-p", "1.5"], /^attune: --top-p: expected a number above 0 to 1, got "1\.5"\n$/],
    [["data", "preview", "f", "-n", "0"], /^attune: --rows: expected a whole number from 1, got "0"\n$/],
    [["train"], /^attune: expected a recipe/],
    [["train", "no.yaml"], /^attune: no\.yaml: no such file\n$/],
    [["train", tmpdir()], /: a folder; expected a YAML file\n$/],
  ];
  for (const [args, expected] of cases) {
    const { code, err, out } = await run(args);
    assert.match(err, expected);
    assert.equal(code, 2, args.join(" "));
    assert.equal(out, "");
  }
});

test("mistakes in a recipe name file and line; overrides reach the run", async () => {
  const wrong = join(folder, "wrong.yaml");
  await writeFile(wrong, "model_name_or_path: base\nlearning_rte: 1\n");
  const { code, err } = await run(["train", wrong]);
  assert.equal(code, 2);
  assert.ok(err.startsWith(`attune: ${wrong}:2: unknown setting "learning_rte". Did you mean "learning_rate"?\n`), err);
  await writeFile(wrong, Buffer.from([0xff, 0xfe, 0x41]));
  assert.match((await run(["train", wrong])).err, /not UTF-8 text; expected a YAML file\n$/);

  const { calls } = await run(["train", recipe, "seed=7", "--max-steps", "-1", "--packing", "--lora-rank=4"]);
  assert.deepEqual(
    [calls.recipe?.seed, calls.recipe?.max_steps, calls.recipe?.packing, calls.recipe?.tuner.lora_rank],
    [7, -1, true, 4],
  );
  const { calls: flagsOnly } = await run(["train", "model_name_or_path=m", "dataset=d", "--output_dir", "o"]);
  assert.equal(flagsOnly.recipe?.output_dir, "o");
});

test("piped, a run prints plain lines, one every logging_steps", async () => {
  const { code, out, err } = await run(["train", recipe]);
  assert.equal(code, 0);
  assert.equal(err, "");
  // biome-ignore lint/suspicious/noControlCharactersInRegex: there must be none
  assert.doesNotMatch(out, /[\x1b\r]/);
  assert.match(
    out,
    /^.*recipe\.yaml:4: bf16 is not needed: .*\n.*: no learning_rate is set: lora takes [^\n]*\(LLaMA-Factory: 5e-5[^\n]*\nbase lora, sft\n {2}2\.4 M of 134\.5 M weights train \(1\.8 %\)\n {2}isa: avx2, threads: 2, dtype: f32\n/,
  );
  assert.match(out, /; 25 steps, learning rate [1-9]e-\d\n/);
  assert.match(out, /\nwarning: row 3 was cut\\u001b\[31m\n/);
  assert.deepEqual(
    [...out.matchAll(/^step (\d+)\/25 {2}loss .* 512 tokens\/s {2}.* left {2}1\.2 GB$/gm)].map(([, step]) => step),
    ["10", "20", "25"],
  );
  assert.match(out, /\nstep 25: held-out loss 1\.250\n/);
  assert.match(out, /\nDone after 1m 23s: loss 3\.000 → 0\.120, held-out 1\.250; 512 tokens\/s, 1\.2 GB at most\.\n/);
  assert.match(out, /[⠁-⣿]{3}/, "a sketch of the loss");
  assert.match(out, /\nNext\n {2}node \S*attune\.js chat --model '[^\n]*my run'\n$/);
});

test("on a terminal, a bar is drawn in place and colours are used unless NO_COLOR", async () => {
  const { out } = await run(["train", recipe], { columns: 70 });
  assert.ok(out.includes("\r 50% 5.0 MB of 10.0 MB downloading model.safetensors\x1b[K\r\x1b[K"));
  assert.match(out, /\r100% ━+ 25\/25 · loss [\d.]+ · 0s left/);
  assert.doesNotMatch(out, /^step 10\/25/m);
  assert.ok(out.includes("\x1b[32mDone\x1b[39m"));
  const plain = await run(["train", recipe], { columns: 70, env: { NO_COLOR: "1" } });
  assert.match(plain.out, /\nDone after/);
  const dumb = await run(["train", recipe], { columns: 70, env: { TERM: "dumb" } });
  assert.doesNotMatch(dumb.out, /\r/);
});

test("an adapter in the output folder changes the next command", async () => {
  const outputDir = join(folder, "adapter");
  const withAdapter: Partial<Parts> = {
    async *runWork({ recipe: settings }, options) {
      await mkdir(outputDir);
      await writeFile(join(outputDir, "adapter_config.json"), "{}");
      yield* fakeRun(settings!, options);
    },
  };
  const { out } = await run(["train", recipe, `output_dir=${outputDir}`], { parts: withAdapter });
  assert.ok(out.endsWith(`attune.js chat --model base --adapter ${outputDir}\n`), out);
  assert.ok(out.includes(`\n  Adapter  ${outputDir}\n`));
});

test("the next command brings the system message that the conversations share", async () => {
  const file = join(folder, "with-system.jsonl");
  const next = async (systems: readonly string[], ...changes: string[]) => {
    const rows = systems.map((content) => ({
      messages: [
        { role: "system", content },
        { role: "user", content: "Hi" },
        { role: "assistant", content: "Yo" },
      ],
    }));
    await writeFile(file, rows.map((row) => JSON.stringify(row)).join("\n"));
    const { out } = await run(["train", recipe, `dataset=${file}`, "output_dir=o", ...changes]);
    return out.slice(out.indexOf("\nNext\n") + 6);
  };
  assert.match(await next(["You're brief.", "You're brief."]), /attune\.js chat --model o --system 'You'\\''re brief\.'\n$/);
  assert.match(await next(["A", "B"]), /attune\.js chat --model o\n$/);
  assert.match(await next(["long ".repeat(50)]), /attune\.js chat o.recipe\.yaml\n$/);
});

test("an error that ends a run becomes one line and its exit code; the stack needs ATTUNE_DEBUG", async () => {
  const failing = (error: Error): Surroundings => ({
    parts: {
      async *runWork({ recipe: settings }, options) {
        for await (const event of fakeRun(settings!, options)) {
          if (event.type === "step" && event.step === 3) throw error;
          yield event;
        }
      },
    },
  });
  const cases: [error: Error, code: number][] = [
    [new ModelError("model.safetensors: truncated"), 2],
    [new DivergedError("step 3: the loss is NaN"), 3],
    [new NoSpaceError("No space left"), 4],
    [new DoesNotFitError("needs 20 GB"), 5],
  ];
  for (const [error, code] of cases) {
    const outcome = await run(["train", recipe], failing(error));
    assert.equal(outcome.code, code);
    assert.equal(outcome.err, `attune: ${error.message}\n`);
  }
  const bug = await run(["train", recipe], failing(new TypeError("x is not a function\x1b[2J")));
  assert.equal(bug.code, 1);
  assert.match(bug.err, /^attune: this is a bug in attune: x is not a function\\u001b\[2J\nSet ATTUNE_DEBUG=1/);
  const debug = await run(["train", recipe], { ...failing(new ModelError("bad")), env: { ATTUNE_DEBUG: "1" } });
  assert.match(debug.err, /^attune: bad\nModelError: bad\n {4}at /);
});

test("piped into chat, each line is a turn of one conversation", async () => {
  const { code, out, calls } = await run(["chat", "-m", "base", "-a", "ad", "-s", "be brief", "-t", "0.5"], {
    input: "one\n\ntwo\n/reset\nthree \x1b[2J\n/quit\nfour\n",
  });
  assert.equal(code, 0);
  assert.equal(out, "echo one\necho two\necho three \\u001b[2J\n");
  assert.deepEqual([calls.chat?.model, calls.chat?.adapter, calls.chat?.template], ["base", "ad", undefined]);
  assert.deepEqual(
    calls.replies.map(({ contents }) => contents),
    [
      ["system: be brief", "user: one"],
      ["system: be brief", "user: one", "assistant: echo one", "user: two"],
      ["system: be brief", "user: three \x1b[2J"],
    ],
  );
  const { maxNewTokens, temperature, topP } = calls.replies[0]!.options;
  assert.deepEqual({ maxNewTokens, temperature, topP }, { maxNewTokens: 512, temperature: 0.5, topP: 1 });
  assert.equal(calls.isClosed, true);
});

test("chat changes adapters between turns, and keeps the conversation", async () => {
  const flags = ["-a", "a=runs/one", "--adapter", "runs/two/", "-a", "./k=v/three"];
  const { code, out, err, calls } = await run(["chat", "-m", "base", ...flags], {
    input: "hi\n/adapters\n/adapter two\nagain\n/base\n/adapter\n/quit\n",
  });
  assert.equal(code, 0);
  assert.deepEqual(
    [...(calls.chat!.adapter as ReadonlyMap<string, string>)],
    [
      ["a", "runs/one"],
      ["two", "runs/two/"],
      ["three", "./k=v/three"],
    ],
  );
  assert.equal(out, "echo hi\necho again\n");
  assert.equal(
    err,
    "  (base)\n* a\n  two\n  three\nFrom now on two answers.\nFrom now on the model answers without an adapter.\n* (base)\n  a\n  two\n  three\n",
  );
  assert.deepEqual(calls.used, ["two", null]);
  assert.deepEqual(calls.replies.at(-1)?.contents, ["user: hi", "assistant: echo hi", "user: again"]);

  const unknown = await run(["chat", "-m", "base", "-a", "a=x"], { input: "/adapter b\nhi\n" });
  assert.deepEqual([unknown.code, unknown.out, unknown.err], [2, "", 'attune: there is no adapter "b"\n']);
  const twice = await run(["chat", "-m", "base", "-a", "x/out", "-a", "y/out"]);
  assert.equal(twice.code, 2);
  assert.match(twice.err, /^attune: --adapter: two are called "out"; give them names: --adapter NAME=FOLDER\n$/);
});

/** Writes a recipe as people share it. */
async function writeRecipe(name: string, lines: readonly string[]): Promise<string> {
  const path = join(folder, name);
  await writeFile(path, `${lines.join("\n")}\n`);
  return path;
}

/** examples/inference/qwen3_lora_sft.yaml of LLaMA-Factory 0.9.5 */
const inference = [
  "model_name_or_path: Qwen/Qwen3-4B-Instruct-2507",
  "adapter_name_or_path: saves/qwen3-4b/lora/sft",
  "template: qwen3_nothink",
  "infer_backend: huggingface  # choices: [huggingface, vllm, sglang, ktransformers]",
  "trust_remote_code: true",
];

test("LLaMA-Factory's inference recipes open a chat; settings after the recipe win over it, and flags may not contradict it", async () => {
  const file = await writeRecipe("inference.yaml", inference);
  const { code, out, err, calls } = await run(["chat", file], { input: "hi\n" });
  assert.equal(code, 0, err);
  assert.equal(out, "echo hi\n");
  const { model, adapter, template } = calls.chat!;
  assert.deepEqual([model, adapter, template], ["Qwen/Qwen3-4B-Instruct-2507", "saves/qwen3-4b/lora/sft", "qwen3_nothink"]);
  assert.match(err, /inference\.yaml:4: infer_backend is not needed: /);
  assert.match(err, /answers are the likeliest tokens; do_sample=true draws them as LLaMA-Factory does/);
  assert.equal(calls.replies[0]!.options.temperature, 0);

  const changed = [
    "do_sample=true",
    "top_k=20",
    "max_new_tokens=64",
    "default_system=Be brief.",
    "enable_thinking=false",
    "seed=3",
  ];
  const drawn = (await run(["chat", file, ...changed], { input: "hi\n" })).calls;
  assert.equal(drawn.chat!.enableThinking, false);
  const { temperature, topP, topK, maxNewTokens, seed } = drawn.replies[0]!.options;
  assert.deepEqual([temperature, topP, topK, maxNewTokens, seed], [0.95, 0.7, 20, 64, 3]);
  assert.deepEqual(drawn.replies[0]!.contents, ["system: Be brief.", "user: hi"]);
  const named = await writeRecipe("named.yaml", [...inference, "temperature: 0.5", "repetition_penalty: 1.1"]);
  const { options } = (await run(["chat", named, "-n", "9"], { input: "hi\n" })).calls.replies[0]!;
  assert.deepEqual([options.temperature, options.topP, options.repetitionPenalty, options.maxNewTokens], [0.5, 0.7, 1.1, 9]);
  const greedy = (await run(["chat", named, "do_sample=false"], { input: "hi\n" })).calls.replies[0]!.options;
  assert.equal(greedy.temperature, 0);
  const flags = (await run(["chat", "-m", "base", "-s", "# be brief", "top_p=0.5"], { input: "hi\n" })).calls;
  assert.deepEqual([flags.chat!.model, flags.replies[0]!.options.topP, flags.replies[0]!.options.temperature], ["base", 0.5, 0]);
  assert.equal(flags.replies[0]!.contents[0], "system: # be brief");

  const several = await writeRecipe("several.yaml", [inference[0]!, "adapter_name_or_path: a, b"]);
  const classes = await writeRecipe("classes.yaml", [inference[0]!, "stage: classification"]);
  const cases: [args: string[], expected: RegExp][] = [
    [
      [file, "--model", "other"],
      /--model other and .*inference\.yaml: model_name_or_path: Qwen\S+ say different things: leave one out/,
    ],
    [[file, "template=qwen3", "--template", "chatml"], /--template chatml and template= qwen3 say different things/],
    [[file, "top_q=1"], /unknown setting "top_q"\. Did you mean/],
    [[file, "temperature=-1"], /override "temperature=-1": temperature: expected a number/],
    [[several], /several\.yaml:2: adapter_name_or_path: one adapter, not several/],
    [[classes], /classes\.yaml: stage classification is used by attune classify, not by attune chat\n$/],
    [["no.yaml"], /no\.yaml: no such file/],
  ];
  for (const [args, expected] of cases) {
    const answer = await run(["chat", ...args]);
    assert.match(answer.err, expected);
    assert.deepEqual([answer.code, answer.calls.chat], [2, undefined]);
  }
});

test("a recipe of training stands for what its run has made", async () => {
  const out = join(folder, "made");
  const rows = join(folder, "made.jsonl");
  const row = {
    messages: [
      { role: "system", content: "Long\nago" },
      { role: "user", content: "Hi" },
      { role: "assistant", content: "Yo" },
    ],
  };
  await writeFile(rows, JSON.stringify(row));
  const lines = [
    "model_name_or_path: base",
    `dataset: ${rows}`,
    `output_dir: ${out}`,
    "adapter_name_or_path: start",
    "learning_rate: 1e-4",
  ];
  const file = await writeRecipe("training.yaml", lines);
  const early = await run(["chat", file]);
  assert.equal(early.code, 2);
  assert.match(early.err, /its run has left no result in .*made: attune train .*training\.yaml\n$/);
  await mkdir(join(out, "checkpoint-9"), { recursive: true });
  await mkdir(join(out, "checkpoint-10"));
  assert.match((await run(["chat", file])).err, /or use its newest checkpoint: adapter_name_or_path=.*checkpoint-10\n$/);
  assert.equal(
    (await run(["chat", file, `adapter_name_or_path=${out}/checkpoint-10`])).calls.chat!.adapter,
    `${out}/checkpoint-10`,
  );

  await writeFile(join(out, "adapter_config.json"), "{}");
  const { code, err, calls } = await run(["chat", file], { input: "hi\n" });
  assert.deepEqual([code, err], [0, ""]);
  assert.deepEqual([calls.chat!.model, calls.chat!.adapter, calls.chat!.template], ["base", out, undefined]);
  assert.deepEqual(calls.replies[0]!.contents, ["system: Long\nago", "user: hi"]);
  assert.deepEqual((await run(["chat", file, "-s", "Now"], { input: "hi\n" })).calls.replies[0]!.contents, [
    "system: Now",
    "user: hi",
  ]);
  await writeFile(join(out, "recipe.yaml"), lines.join("\n").replace(`output_dir: ${out}`, "output_dir: elsewhere"));
  assert.equal((await run(["chat", join(out, "recipe.yaml")])).calls.chat!.adapter, out, "the run's own recipe, from any folder");

  for (const args of [[out], ["--adapter", out]]) {
    const ofFolder = await run(["chat", ...args], { input: "hi\n" });
    assert.deepEqual([ofFolder.calls.chat!.model, ofFolder.calls.chat!.adapter], ["base", out], "the run's folder");
    assert.equal(ofFolder.calls.replies[0]!.contents[0], "system: Long\nago");
  }
  assert.match((await run(["chat", "-a", `a=${out}`])).err, /--model is missing/);

  const exported = await run(["export", file, "--to", "gguf", "--type", "q8_0", "--out", "x"]);
  assert.equal(exported.code, 0, exported.err);
  const { to, type, adapter, model } = exported.calls.exported!;
  assert.deepEqual([to, type, adapter, model, exported.calls.exported!.out], ["gguf", "q8_0", out, "base", "x"]);

  await rm(join(out, "adapter_config.json"));
  await writeFile(join(out, "config.json"), "{}");
  const whole = (await run(["chat", file, "stage=sft"])).calls.chat!;
  assert.deepEqual([whole.model, whole.adapter], [out, undefined]);
  await rm(join(out, "recipe.yaml"));
  assert.equal((await run(["chat", out])).calls.chat!.model, out, "a model's folder");
  const other = join(folder, "adapter of others");
  await mkdir(other);
  await writeFile(
    join(other, "adapter_config.json"),
    JSON.stringify({ peft_type: "LORA", base_model_name_or_path: "their base" }),
  );
  const theirs = (await run(["chat", other])).calls.chat!;
  assert.deepEqual([theirs.model, theirs.adapter], ["their base", other]);
  assert.equal((await run(["chat", other, "model_name_or_path=mine"])).calls.chat!.model, "mine");
  assert.match(
    (await run(["chat", "owner/name"])).err,
    /owner\/name: no such recipe or folder\. A model of the hub is given as --model owner/,
  );

  const classes = await run(["classify", await writeRecipe("labels.yaml", [...lines, "stage: classification"]), "good soup"]);
  assert.deepEqual([classes.code, classes.calls.classifier?.model, classes.calls.classifier?.adapter], [0, out, undefined]);
  assert.match(classes.out, /^good\t0\.7500\tgood soup\n$/);
  assert.match(
    (await run(["classify", file, "text"])).err,
    /training\.yaml: stage sft is used by attune chat, not by attune classify\n$/,
  );
});

test("LLaMA-Factory's recipes for merging export, and flags may not contradict them", async () => {
  // examples/merge_lora/qwen3_lora_sft.yaml of LLaMA-Factory 0.9.5
  const merge = [...inference.filter((line) => !line.startsWith("infer_backend")), "export_dir: saves/qwen3_sft_merged"];
  const rest = ["export_size: 5", "export_device: cpu  # choices: [cpu, auto]", "export_legacy_format: false"];
  const file = await writeRecipe("merge.yaml", [...merge, ...rest]);
  const { code, out, err, calls } = await run(["export", file]);
  assert.equal(code, 0, err);
  const { to, model, adapter, template, shardBytes } = calls.exported!;
  assert.deepEqual(
    [to, model, adapter, template, calls.exported!.out, shardBytes],
    ["hf", "Qwen/Qwen3-4B-Instruct-2507", "saves/qwen3-4b/lora/sft", "qwen3_nothink", "saves/qwen3_sft_merged", 5e9],
  );
  assert.match(err, /merge\.yaml: export_device is not needed: /);
  assert.match(out, /\nNext: node \S*attune\.js chat --model saves\/qwen3_sft_merged\n$/);

  const gguf = await run(["export", file, "--to", "gguf", "--type", "q4_k_m", "export_dir=elsewhere"]);
  assert.deepEqual([gguf.calls.exported!.shardBytes, gguf.calls.exported!.out], [undefined, "elsewhere"]);
  assert.match(gguf.err, /export_size is not needed: a GGUF file is one file/);
  assert.match(gguf.out, /chat --model elsewhere.model\.gguf\n$/);

  const cases: [args: string[], expected: RegExp][] = [
    [[file, "--out", "x"], /--out x and .*merge\.yaml: export_dir: saves\S+ say different things.*: export_dir=x\n$/],
    [[file, "infer_dtype=float16", "--type", "bf16"], /--type bf16 and .*infer_dtype: float16 both say how weights are stored/],
    [[file, "export_quantization_bit=4"], /export_quantization_bit: GPTQ and AWQ are not written/],
    [[file, "export_sizee=4"], /unknown setting "export_sizee"/],
    [[await writeRecipe("nowhere.yaml", inference)], /export_dir is missing: .*--out/],
  ];
  for (const [args, expected] of cases) {
    const answer = await run(["export", ...args]);
    assert.match(answer.err, expected);
    assert.deepEqual([answer.code, answer.calls.exported], [2, undefined]);
  }
});

test("data preview marks what is learnt, and reports the rows that cannot be used", async () => {
  const file = join(folder, "orders.jsonl");
  const row = (input: string, output: string) => JSON.stringify({ instruction: "as JSON", input, output });
  await writeFile(file, `${row("two teas", "{}\x1b[2J")}\n${row("one pie", "[]")}\n{"instruction": 3}\n`);
  const { code, out } = await run(["data", "preview", file, "-n", "1"]);
  assert.equal(code, 0);
  assert.ok(out.startsWith("orders.jsonl:1\n"), out);
  assert.match(out, /two teas[^⟦]*assistant\n⟦\{\}\\u001b\[2J<\|im_end\|>⟧/);
  assert.doesNotMatch(out, /one pie/);
  assert.match(out, /\nwarning: 1 of 3 rows .*orders\.jsonl:3/);
  assert.match(
    out,
    /\n2 rows, read for sft\.\nTokens of a row: .* 0 rows are longer than cutoff_len = 2048\.\nThe model learns to write/,
  );
  assert.ok((await run(["data", "preview", file], { columns: 80 })).out.includes("\x1b[32m[]<|im_end|>\x1b[39m"));
  const user = { role: "user", content: "Hi" };
  const rows = [
    { id: 1, messages: [user, { role: "assistant", content: "Yo", name: "Ann" }] },
    { id: 2, messages: [user, { role: "assistant", content: "", tool_calls: [{ name: "f", arguments: {} }] }] },
  ];
  await writeFile(file, rows.map((each) => JSON.stringify(each)).join("\n"));
  const chats = (await run(["data", "preview", file])).out;
  assert.match(chats, /warning: .*not used, and how often each is filled: columns "id" \(2\); keys of messages "name" \(1\)/);
  assert.ok(chats.includes("⟦Yo<|im_end|>⟧") && chats.includes("⟦Action: f\nAction Input: {}<|im_end|>⟧"), chats);
  const missing = await run(["data", "preview", "none.jsonl"]);
  assert.equal(missing.code, 2);
  assert.match(missing.err, /^attune: dataset "none\.jsonl": there is no such file/);
});

test("doctor reports without a hub, and names what it looked at", async () => {
  const { code, out } = await run(["doctor"], { env: { HF_HUB_OFFLINE: "1", HF_TOKEN: "hf_secret" } });
  for (const name of ["node", "cpu", "features", "engine", "memory", "compiler", "models", "hub", "python", "disk"]) {
    assert.match(out, new RegExp(`^[✓✗] {2}${name} `, "m"));
  }
  assert.match(out, /not asked, HF_HUB_OFFLINE is set, HF_TOKEN is set/);
  assert.doesNotMatch(out, /hf_secret/);
  const isBuilt = !/engine +cannot be loaded/.test(out);
  assert.equal(code, isBuilt ? 0 : 1);
  assert.match(out, isBuilt ? /This machine can train\.\n$/ : /npm run build[\s\S]*Nothing can train here yet\.\n$/);
});

/** A process of its own that trains in steps of 20 ms, until it is told to stop. `patient` runs finish their step after a signal. */
function spawnTraining(patient: boolean) {
  const cli = new URL("./main.js", import.meta.url).href;
  const script = `
    import { main } from ${JSON.stringify(cli)};
    const results = ${JSON.stringify(results)};
    const parts = { async *runWork({ recipe }, { signal }) {
      for (let step = 1; !signal.aborted || ${!patient}; step++) {
        yield { type: "step", step, totalSteps: 100000, epoch: 0, loss: 1, gradNorm: 1, learningRate: 1, tokens: 1, supervisedTokens: 1,
                tokensPerSecond: 1, elapsedMs: 1, remainingMs: 1, peakMemoryBytes: 1 };
        await new Promise((resolve) => setTimeout(resolve, 20));
      }
      yield { type: "end", interrupted: true, results };
    }, async systemPromptOf() {} };
    process.exitCode = await main(["train", "model_name_or_path=m", "dataset=d", "output_dir=o", "logging_steps=1"], parts, process);`;
  const child = spawn(process.execPath, ["--input-type=module", "-e", script], { stdio: ["ignore", "pipe", "inherit"] });
  let out = "";
  const waiting: { pattern: RegExp; resolve: () => void }[] = [];
  child.stdout.setEncoding("utf8").on("data", (text: string) => {
    out += text;
    for (const { pattern, resolve } of waiting) if (pattern.test(out)) resolve();
  });
  const exit = new Promise<number | null>((resolve) => child.on("close", resolve));
  const shown = (pattern: RegExp) => new Promise<void>((resolve) => waiting.push({ pattern, resolve }));
  const shows = async (pattern: RegExp) => {
    const ended = exit.then((code) => assert.fail(`ended with code ${code} before ${pattern}: ${out}`));
    await Promise.race([shown(pattern), ended]);
    ended.catch(() => {});
  };
  return { child, shows, exit, output: () => out };
}

const hasSignals = process.platform !== "win32";

test("the first Ctrl-C finishes the step, the code is 130 and the way to go on is told", { skip: !hasSignals }, async () => {
  const { child, shows, exit, output } = spawnTraining(true);
  await shows(/step 2\//);
  child.kill("SIGINT");
  assert.equal(await exit, 130);
  assert.match(output(), /Stopping after this step; Ctrl-C again stops at once\.\n/);
  assert.match(output(), /\nStopped after 1m 23s/);
  assert.match(output(), /attune\.js train o.recipe\.yaml resume_from_checkpoint=true\n/);
});

test("the second Ctrl-C stops at once", { skip: !hasSignals }, async () => {
  const { child, shows, exit, output } = spawnTraining(false);
  await shows(/step 2\//);
  child.kill("SIGINT");
  await shows(/Stopping after this step/);
  child.kill("SIGINT");
  assert.equal(await exit, 130);
  assert.doesNotMatch(output(), /Stopped after/);
});

test("bin/attune.js starts the CLI", async () => {
  const bin = fileURLToPath(new URL("../../../bin/attune.js", import.meta.url));
  const child = spawn(process.execPath, [bin, "train", "no.yaml"], { stdio: ["ignore", "ignore", "pipe"] });
  const closed = new Promise((resolve) => child.on("close", resolve));
  const err = await child.stderr.setEncoding("utf8").reduce((all, text) => all + text, "");
  assert.equal(await closed, 2);
  assert.equal(err, "attune: no.yaml: no such file\n");
});

test("bin/attune.js says what to do where nothing is built", async () => {
  const copy = join(folder, "bin", "attune.js");
  await mkdir(dirname(copy));
  await copyFile(new URL("../../../bin/attune.js", import.meta.url), copy);
  await writeFile(join(folder, "package.json"), '{ "type": "module" }');
  const child = spawn(process.execPath, [copy, "doctor"], { stdio: ["ignore", "ignore", "pipe"] });
  const closed = new Promise((resolve) => child.on("close", resolve));
  const err = await child.stderr.setEncoding("utf8").reduce((all, text) => all + text, "");
  assert.equal(await closed, 1);
  assert.match(err, /^attune: not built yet\. .*npm run build\n$/);
});

test("export hands its options on, and says what was written and what it changed", async () => {
  const args = ["--adapter", "runs/orders", "--type", "Q4_K_M", "--data", "held.jsonl", "--max-drift", "5", "--out", "exported"];
  args.push("--check-rows", "20", "--force");
  const { code, out, err, calls } = await run(["export", "--to", "ollama", ...args]);
  assert.equal(code, 0);
  const { to, type, maxDrift, adapter, model, data, checkRows, force } = calls.exported!;
  assert.deepEqual([checkRows, force], [20, true]);
  assert.deepEqual([to, type, maxDrift, adapter, model, data], ["ollama", "q4_k_m", 5, "runs/orders", undefined, "held.jsonl"]);
  assert.match(out, /^Wrote model\.gguf, Modelfile in q4_k_m to exported\n/);
  assert.match(
    out,
    /at 512 positions of text: a logit changes by at most 0\.012, by 0\.0010 in the mean; the likeliest token stays at 99\.5 %;/,
  );
  assert.ok(
    out.includes(
      [
        "Receipt, 60 rows of held\\u001b[31m.jsonl:",
        "  before, in f32: loss 1.2346, 22 / 50 answers exact",
        "  llama.cpp (sums in f32): loss 1.2500, 20 / 50 answers exact, 13 % of the answers changed",
        "    warning: 20 of 50",
        "  attune (sums in f32): loss 1.2500, 22 / 50 answers exact, 0 % of the answers changed",
        "    passes",
        "  try f16",
        `All of it: ${join("exported", "export_receipt.json")}`,
      ].join("\n"),
    ),
    out,
  );
  assert.match(out, /ollama create NAME -f exported[\\/]Modelfile/);
  assert.ok(err.includes("a notice") && !err.includes("\x1b[31m"));

  const lora = await run(["export", "--to", "gguf-lora", "--adapter", "runs/orders", "-o", "exported"]);
  assert.equal(lora.out, "Wrote adapter.gguf to exported\n");
});

test("export refuses what it does not know, with what there is", async () => {
  const cases: [string[], RegExp][] = [
    [["--out", "x"], /--to is missing/],
    [["--to", "gguf"], /--out is missing/],
    [["--to", "onnx", "--out", "x"], /--to: expected one of hf, gguf, gguf-lora, ollama, got "onnx"/],
    [["--to", "gguf", "--out", "x", "--type", "q3_k"], /--type: expected one of f32, f16, bf16, q8_0, q4_0, q4_k_m, got "q3_k"/],
    [["--to", "gguf", "--out", "x", "--max-drift", "much"], /--max-drift: expected a number from 0, got "much"/],
  ];
  for (const [args, message] of cases) {
    const { code, err, calls } = await run(["export", ...args]);
    assert.equal(code, 2);
    assert.match(err, message);
    assert.equal(calls.exported, undefined);
  }
  assert.match((await run(["export", "--help"])).out, /gguf-lora\s+adapter\.gguf/);
});

test("score prints what a reward model says of each answer, and how often it agrees with pairs", async () => {
  const { code, out, err, calls } = await run(["score", "-m", "base", "-a", "runs/rm", "pairs.jsonl"]);
  assert.deepEqual([code, calls.isClosed], [0, true]);
  assert.equal(out, "1.5000\t-0.2500\tpairs.jsonl:1\n0.0000\t0.5000\tpairs.jsonl:2\n2.0000\tpairs.jsonl:3\n");
  assert.match(err, /The chosen answer scores higher in 1 of 2 pairs\.\n$/);
  const lines = await run(["score", "-m", "base", "--json", "pairs.jsonl"]);
  assert.deepEqual(JSON.parse(lines.out.split("\n")[0]!), { chosen: 1.5, rejected: -0.25, where: "pairs.jsonl:1" });
  assert.match((await run(["score", "pairs.jsonl"])).err, /--model is missing/);
  const other = await writeRecipe("sft.yaml", ["model_name_or_path: base", "stage: sft"]);
  assert.match((await run(["score", other, "pairs.jsonl"])).err, /stage sft is used by attune chat, not by attune score/);
});

test("classify prints the class of each text, or of each line of the input", async () => {
  const { code, out, calls } = await run(["classify", "-m", "base", "-a", "runs/reviews", "good soup", "bad soup"]);
  assert.equal(code, 0);
  assert.deepEqual([calls.classifier?.model, calls.classifier?.adapter, calls.isClosed], ["base", "runs/reviews", true]);
  assert.match(out, /^good\t0\.7500\tgood soup\nb.*ad\t0\.2500\tbad soup\n$/);
  assert.ok(!out.includes("\x1b"), "escapes from data never reach the terminal");

  const lines = await run(["classify", "-m", "base", "--json"], { input: "good one\n\nanother good one\n" });
  const rows = lines.out
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line));
  assert.deepEqual(
    rows.map(({ text, label }) => [text, label]),
    [
      ["good one", "good"],
      ["another good one", "good"],
    ],
  );
  const without = await run(["classify", "text"]);
  assert.equal(without.code, 2);
  assert.match(without.err, /--model is missing/);
});
