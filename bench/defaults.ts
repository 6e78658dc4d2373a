/**
 * What the methods learn with on small tasks:
 *
 *     node dist/bench/defaults.js --model NAME=FOLDER [--model …] --out results.jsonl [--rates 1e-3,3e-3] [--only REGEX]
 *     node dist/bench/defaults.js --model NAME=FOLDER [--model …] --out results.jsonl --seeds 1,2,3 --defaults [--only REGEX]
 *     node dist/bench/defaults.js --table results.jsonl
 *
 * The first tries the learning rates of `candidates`, or others; the second what a recipe gets that names none. Every run is counted on two halves of held-out
 * rows: one to choose by, one to report. A model that is a folder of BERT learns `desk` as a classifier. A run is a line of the file as soon as it is done; runs
 * that the file has are not done again.
 */
import { appendFileSync, existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { everyMethod } from "../src/backends/index.js";
import { Chat, Classifier, type RecipeSettings, trainEvents } from "../src/index.js";
import { checkRecipe } from "../src/recipe/parse.js";
import { type Asked, type Task, tasks } from "./defaults-tasks.js";
import { formatMarkdown } from "./table.js";

type Settings = Readonly<Record<string, unknown>>;

/** A method, and the learning rates that are tried. */
interface Candidate {
  readonly name: string;
  readonly settings: Settings;
  readonly rates: readonly number[];
}

const prefix = { finetuning_type: "prefix-tuning" };
const virtual = { finetuning_type: "p-tuning" };
const candidates: readonly Candidate[] = [
  { name: "lora", settings: { finetuning_type: "lora" }, rates: [3e-4, 1e-3, 3e-3] },
  { name: "full", settings: { finetuning_type: "full" }, rates: [3e-5, 1e-4, 3e-4] },
  { name: "freeze", settings: { finetuning_type: "freeze" }, rates: [3e-4, 1e-3, 3e-3] },
  { name: "adapter houlsby", settings: { finetuning_type: "adapter" }, rates: [3e-4, 1e-3, 3e-3] },
  { name: "qlora", settings: { finetuning_type: "qlora" }, rates: [3e-4, 1e-3, 3e-3] },
  { name: "prefix", settings: prefix, rates: [1e-3, 3e-3, 1e-2, 3e-2] },
  { name: "prefix projection", settings: { ...prefix, prefix_projection: true }, rates: [3e-4, 1e-3, 3e-3] },
  { name: "p-tuning mlp", settings: virtual, rates: [1e-3, 3e-3, 1e-2] },
  { name: "p-tuning plain", settings: { ...virtual, encoder_reparameterization_type: "NONE" }, rates: [3e-3, 1e-2, 3e-2] },
  { name: "adapter pfeiffer", settings: { finetuning_type: "adapter", adapter_config: "pfeiffer" }, rates: [3e-4, 1e-3, 3e-3] },
  { name: "adapter parallel", settings: { finetuning_type: "adapter", adapter_config: "parallel" }, rates: [3e-4, 1e-3, 3e-3] },
  { name: "lora plus", settings: { finetuning_type: "lora", loraplus_lr_ratio: 16 }, rates: [1e-4, 2e-4] },
  { name: "lora pissa", settings: { finetuning_type: "lora", pissa_init: true }, rates: [1e-4, 2e-4] },
];

interface Run {
  readonly model: string;
  readonly task: string;
  readonly method: string;
  readonly rate: number;
  /** Rows a step. */
  readonly rows: number;
  readonly warmup: number;
  readonly seed: number;
}

interface Result extends Run {
  readonly steps: number;
  readonly firstLoss: number;
  /** Of both halves. */
  readonly heldOutLoss: number;
  /** Shares of answers to the letter, or of right classes. */
  readonly choose: number;
  readonly report: number;
  readonly seconds: number;
  /** The error of a run that came to nothing. */
  readonly failed?: string;
}

const keyOf = ({ model, task, method, rate, rows, warmup, seed }: Run) =>
  JSON.stringify([model, task, method, rate, rows, warmup, seed]);

const { values: options } = parseArgs({
  options: {
    model: { type: "string", multiple: true, default: [] },
    out: { type: "string", default: "defaults.jsonl" },
    only: { type: "string", default: "" },
    rates: { type: "string" },
    rows: { type: "string", default: "4" },
    warmup: { type: "string", default: "0.1" },
    seeds: { type: "string", default: "1" },
    defaults: { type: "boolean", default: false },
    table: { type: "string" },
  },
});

function resultsIn(path: string): Result[] {
  if (!existsSync(path)) return [];
  const lines = readFileSync(path, "utf8").trim().split("\n").filter(Boolean);
  return lines.map((line) => JSON.parse(line) as Result);
}

type Steps = Pick<Run, "rate" | "rows" | "warmup">;

/** The steps of a recipe that names none. */
function defaultsOf(settings: Settings): Steps {
  const { recipe } = checkRecipe({ model_name_or_path: "m", dataset: "d", output_dir: "o", ...settings }, everyMethod);
  return { rate: recipe.learning_rate, rows: recipe.gradient_accumulation_steps, warmup: recipe.warmup_ratio };
}

function stepsToTry({ settings, rates }: Candidate): Steps[] {
  if (options.defaults) return [defaultsOf(settings)];
  const asked = options.rates === undefined ? rates : options.rates.split(",").map(Number);
  return asked.map((rate) => ({ rate, rows: Number(options.rows), warmup: Number(options.warmup) }));
}

async function runAll(path: string): Promise<void> {
  const done = new Set(resultsIn(path).map(keyOf));
  const only = new RegExp(options.only, "i");
  for (const seed of options.seeds.split(",").map(Number))
    for (const candidate of candidates)
      for (const model of options.model)
        for (const task of tasks)
          for (const steps of stepsToTry(candidate)) {
            const [name, folder] = model.split("=") as [string, string];
            if (!only.test(`${name} ${task.name} ${candidate.name}.`)) continue;
            if (isClassifier(folder) && task.name !== "desk") continue;
            const run: Run = { model: name, task: task.name, method: candidate.name, ...steps, seed };
            if (done.has(keyOf(run))) continue;
            const result = await perform(run, folder, task, candidate.settings);
            appendFileSync(path, `${JSON.stringify(result)}\n`);
            const { choose, report, heldOutLoss, firstLoss, seconds, failed = "" } = result;
            const losses = `${firstLoss.toFixed(2)} → ${heldOutLoss.toFixed(3)}`;
            const exact = `exact ${choose.toFixed(2)} ${report.toFixed(2)}`;
            console.error([keyOf(run), losses, exact, `${seconds.toFixed(0)} s`, failed].join("  "));
          }
}

function isClassifier(folder: string): boolean {
  const config = JSON.parse(readFileSync(join(folder, "config.json"), "utf8")) as { model_type?: string };
  return config.model_type === "bert";
}

/** The template of a base that brings none. */
function templateOf(folder: string): Settings {
  const config = JSON.parse(readFileSync(join(folder, "config.json"), "utf8")) as { model_type?: string };
  return config.model_type?.startsWith("gemma") ? { template: "gemma" } : {};
}

async function perform(run: Run, folder: string, task: Task, settings: Settings): Promise<Result> {
  const place = mkdtempSync(join(tmpdir(), "attune-defaults-"));
  const started = performance.now();
  const classifies = isClassifier(folder);
  const write = (name: string, rows: readonly Asked[]) => {
    const path = join(place, name);
    const row = ({ question, answer }: Asked): object =>
      classifies
        ? { text: question, label: answer }
        : { messages: [...asked(task, question), { role: "assistant", content: answer }] };
    writeFileSync(path, rows.map((asked) => JSON.stringify(row(asked))).join("\n"));
    return path;
  };
  const out = join(place, "out");
  const recipe = {
    ...{ model_name_or_path: folder, dataset: [write("train.jsonl", task.train)], output_dir: out },
    ...(classifies ? { stage: "classification" } : templateOf(folder)),
    ...settings,
    ...{ learning_rate: run.rate, warmup_ratio: run.warmup, seed: run.seed },
    per_device_train_batch_size: run.rows, // the gradient that accumulation gives, faster
    ...{ eval_dataset: [write("held.jsonl", [...task.choose, ...task.report])], eval_strategy: "steps", eval_steps: 1_000_000 },
    ...{ save_strategy: "no", plot_loss: false },
  };
  const seen = { steps: 0, firstLoss: Number.NaN, heldOutLoss: Number.NaN, choose: 0, report: 0 };
  try {
    for await (const event of trainEvents(recipe as RecipeSettings)) {
      if (event.type === "step") seen.steps = event.step;
      if (event.type === "step" && event.step === 1) seen.firstLoss = event.loss;
      if (event.type === "eval") seen.heldOutLoss = event.evalLoss;
    }
    const isRight = await (classifies ? classified : answered)(trainedIn(folder, out), task);
    const share = (right: readonly boolean[]) => right.filter(Boolean).length / right.length;
    seen.choose = share(isRight.slice(0, task.choose.length));
    seen.report = share(isRight.slice(task.choose.length));
  } catch (error) {
    return { ...run, ...seen, seconds: (performance.now() - started) / 1000, failed: String(error).split("\n")[0]! };
  } finally {
    rmSync(place, { recursive: true, force: true });
  }
  return { ...run, ...seen, seconds: (performance.now() - started) / 1000 };
}

const asked = ({ system }: Task, question: string) => [
  { role: "system" as const, content: system },
  { role: "user" as const, content: question },
];

interface Trained {
  readonly model: string;
  readonly adapter?: string;
}

/** What was trained, as `open` of a chat or of a classifier takes it. */
const trainedIn = (base: string, out: string): Trained =>
  existsSync(join(out, "adapter_config.json")) ? { model: base, adapter: out } : { model: out };

/** Which questions of both halves are answered to the letter. */
async function answered(trained: Trained, task: Task): Promise<boolean[]> {
  const held = [...task.choose, ...task.report];
  const chat = await Chat.open(trained);
  const answers = await chat.answerAll(
    held.map(({ question }) => asked(task, question)),
    { maxNewTokens: 40, slots: 20 },
  );
  chat.close();
  return held.map(({ answer }, i) => answers[i]!.trim() === answer);
}

async function classified(trained: Trained, { choose, report }: Task): Promise<boolean[]> {
  const held = [...choose, ...report];
  const classifier = await Classifier.open(trained);
  const found = await classifier.classify(held.map(({ question }) => question));
  classifier.close();
  return held.map(({ answer }, i) => found[i]!.label === answer);
}

function printTables(results: readonly Result[]): void {
  const percent = (value: number) => (100 * value).toFixed(0);
  const columns = [...new Set(results.map(({ model, task }) => `${model}: ${task}`))];
  const rowsOf = (all: readonly Result[], cell: (of: readonly Result[]) => string) => {
    const stepsOf = ({ method, rate, rows, warmup }: Result) => [method, rate.toExponential(), rows, warmup].join("\t");
    const groups = [...new Set(candidates.flatMap(({ name }) => all.filter(({ method }) => method === name).map(stepsOf)))];
    return groups.sort().map((group) => {
      const of = all.filter((one) => stepsOf(one) === group);
      const cells = columns.map((column) => of.filter(({ model, task }) => `${model}: ${task}` === column));
      return [...group.split("\t"), ...cells.map((some) => (some.length === 0 ? "" : cell(some)))];
    });
  };
  const headings = ["method", "rate", "rows a step", "warm-up", ...columns];
  console.log("To choose by: exact answers of the first half in %, held-out loss; seed 1.\n");
  const tried = rowsOf(
    results.filter(({ seed }) => seed === 1),
    ([one]) => (one!.failed ? "failed" : `${percent(one!.choose)} (${one!.heldOutLoss.toFixed(2)})`),
  );
  console.log(formatMarkdown(headings, tried));
  const taken = new Map(candidates.map(({ name, settings }) => [name, defaultsOf(settings)]));
  const isDefault = ({ method, rate, rows, warmup }: Result) => {
    const own = taken.get(method)!;
    return own.rate === rate && own.rows === rows && own.warmup === warmup;
  };
  console.log("\nWhat the defaults reach: exact answers of the second half in %, a number a seed; mean held-out loss.\n");
  const reached = rowsOf(results.filter(isDefault), (of) => {
    const loss = of.reduce((sum, { heldOutLoss }) => sum + heldOutLoss, 0) / of.length;
    return `${of.map(({ report }) => percent(report)).join(", ")} (${loss.toFixed(2)})`;
  });
  console.log(formatMarkdown(headings, reached));
}

if (options.table !== undefined) printTables(resultsIn(options.table));
else await runAll(options.out);
