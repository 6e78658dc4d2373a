import { execFile } from "node:child_process";
import { existsSync } from "node:fs";
import { readdir, readFile, statfs } from "node:fs/promises";
import { availableParallelism, cpus, totalmem } from "node:os";
import { dirname, resolve } from "node:path";
import { promisify } from "node:util";
import { availableMemoryBytes } from "../advise/memory.js";
import type { EngineInfo } from "../engine/kernels.js";
import { loadEngine } from "../engine/load.js";
import { formatBytes, type Io } from "./terminal.js";

type Env = Io["env"];

/** One line of the report: `advice` says what to do if something is missing; with `isNeeded`, nothing can train until that is done. */
export interface Finding {
  readonly name: string;
  readonly value: string;
  readonly advice?: string;
  readonly isNeeded?: boolean;
}

/** What `attune doctor` looks at, in the order of its report. */
export const checks: readonly ((env: Env) => Finding[] | Promise<Finding[]>)[] = [
  node,
  processor,
  engine,
  memory,
  compiler,
  modelCache,
  hub,
  python,
  disk,
];

const oldestNode = [20, 19] as const;
const hubTimeoutMs = 2000;

function node(): Finding[] {
  const [major = 0, minor = 0] = process.versions.node.split(".").map(Number);
  const isOld = major < oldestNode[0] || (major === oldestNode[0] && minor < oldestNode[1]);
  const finding = { name: "node", value: `${process.version}, ${process.platform} ${process.arch}`, isNeeded: true };
  return isOld ? [{ ...finding, advice: `attune needs Node ${oldestNode.join(".")} or newer: nodejs.org` }] : [finding];
}

async function processor(env: Env): Promise<Finding[]> {
  const info = tryEngine();
  const model = info instanceof Error ? cpus()[0]?.model.trim() : info.cpu;
  const features = info instanceof Error ? await featuresOfSystem() : info.features;
  const threads = env.ATTUNE_THREADS ? ` (ATTUNE_THREADS=${env.ATTUNE_THREADS})` : "";
  return [
    { name: "cpu", value: `${model || "unknown"}, cores this process may use: ${availableParallelism()}${threads}` },
    { name: "features", value: features.length > 0 ? features.join(" ") : "not known before the engine is built" },
  ];
}

/** Instruction sets that matter to the engine, as Linux tells them. */
async function featuresOfSystem(): Promise<string[]> {
  const wanted = [
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512_bf16",
    "amx_tile",
    "amx_bf16",
    "asimd",
    "bf16",
  ];
  const text = await readFile("/proc/cpuinfo", "utf8").catch(() => "");
  const flags = new Set(/^(?:flags|Features)\s*:(.*)$/m.exec(text)?.[1]?.trim().split(/\s+/));
  return wanted.filter((name) => flags.has(name));
}

function tryEngine(): EngineInfo | Error {
  try {
    return loadEngine().info();
  } catch (error) {
    return error instanceof Error ? error : new Error(String(error));
  }
}

function engine(env: Env): Finding[] {
  const info = tryEngine();
  if (info instanceof Error) return [{ name: "engine", value: "cannot be loaded", advice: info.message, isNeeded: true }];
  const forced = env.ATTUNE_ISA ? "ATTUNE_ISA" : "the best of";
  return [
    { name: "engine", value: `${info.isa} (${forced} ${env.ATTUNE_ISA ?? info.tiers.join(", ")}), ${info.threads} threads` },
  ];
}

/** In a container, its limit counts and not the machine's memory. */
function memory(env: Env): Finding[] {
  const limit = process.constrainedMemory();
  const total = limit > 0 && limit < totalmem() ? limit : totalmem();
  const available = availableMemoryBytes(env);
  const limited = total < totalmem() ? `, limited from ${formatBytes(totalmem())}` : "";
  const finding = { name: "memory", value: `${formatBytes(available)} available of ${formatBytes(total)}${limited}` };
  const isTight = available < 2e9;
  return [isTight ? { ...finding, advice: "LoRA on a model of 135 M weights takes about 2 GB; close other programs" } : finding];
}

async function compiler(env: Env): Promise<Finding[]> {
  const candidates = env.CXX ? [env.CXX] : ["c++", "g++", "clang++"];
  for (const command of candidates) {
    const said = await firstLineOf(command, "--version");
    if (said !== undefined) return [{ name: "compiler", value: `${command}: ${said}` }];
  }
  const value = `none of ${candidates.join(", ")} runs`;
  if (!(tryEngine() instanceof Error)) return [{ name: "compiler", value: `${value}; the engine is built, so none is needed` }];
  const install: Partial<Record<NodeJS.Platform, string>> = {
    darwin: "xcode-select --install",
    win32: "winget install MartinStorsjo.LLVM-MinGW.UCRT",
  };
  const advice = install[process.platform] ?? "sudo apt install g++ (Debian, Ubuntu) or sudo dnf install gcc-c++ (Fedora)";
  return [{ name: "compiler", value, advice }];
}

async function modelCache(env: Env): Promise<Finding[]> {
  const { getHFHubCachePath } = await import("@huggingface/hub");
  const path = getHFHubCachePath();
  const names = await readdir(path).catch(() => []);
  const models = names.filter((name) => name.startsWith("models--")).length;
  const setBy = ["HF_HUB_CACHE", "HF_HOME"].find((name) => env[name]);
  return [{ name: "models", value: `${path}${setBy ? ` (${setBy})` : ""}, ${models} in it` }];
}

async function hub(env: Env): Promise<Finding[]> {
  const { HUB_URL } = await import("@huggingface/hub");
  const url = env.HF_ENDPOINT || HUB_URL;
  const token = env.HF_TOKEN ? ", HF_TOKEN is set" : "";
  if (isOn(env.HF_HUB_OFFLINE)) return [{ name: "hub", value: `${url}: not asked, HF_HUB_OFFLINE is set${token}` }];
  try {
    await fetch(url, { method: "HEAD", redirect: "manual", signal: AbortSignal.timeout(hubTimeoutMs) });
    return [{ name: "hub", value: `${url} answers${token}` }];
  } catch {
    const advice = "Models on disk work without it: give their folder or GGUF file. Behind a mirror, set HF_ENDPOINT.";
    return [{ name: "hub", value: `${url} does not answer within ${hubTimeoutMs / 1000} s${token}`, advice }];
  }
}

async function python(): Promise<Finding[]> {
  const version = await firstLineOf("python3", "--version");
  const pip = version === undefined ? undefined : await firstLineOf("python3", "-m", "pip", "--version");
  const purpose = "only the quickstart wants it, to get its model where no hub answers";
  if (version !== undefined && pip !== undefined)
    return [{ name: "python", value: `${version}, ${pip.replace(/ from .*/, "")}; ${purpose}` }];
  return [{ name: "python", value: `${version ?? "no python3"}, no pip; not needed: ${purpose}` }];
}

async function disk(): Promise<Finding[]> {
  const { getHFHubCachePath } = await import("@huggingface/hub");
  const findings: Finding[] = [];
  for (const [purpose, path] of [
    ["here", process.cwd()],
    ["models", getHFHubCachePath()],
  ] as const) {
    const free = await freeBytes(path);
    if (free === undefined) continue;
    const finding = {
      name: "disk",
      value: `${formatBytes(free)} free ${purpose === "here" ? "in this folder" : "where models are stored"}`,
    };
    findings.push(free < 1e9 ? { ...finding, advice: "A small model and its run take about 1 GB; free some space." } : finding);
  }
  return findings;
}

async function freeBytes(path: string): Promise<number | undefined> {
  let folder = resolve(path);
  while (!existsSync(folder) && dirname(folder) !== folder) folder = dirname(folder);
  try {
    const { bavail, bsize } = await statfs(folder);
    return bavail * bsize;
  } catch {
    return undefined;
  }
}

async function firstLineOf(command: string, ...args: string[]): Promise<string | undefined> {
  try {
    const { stdout } = await promisify(execFile)(command, args, { timeout: 5000, windowsHide: true });
    return stdout.split("\n")[0]?.trim();
  } catch {
    return undefined;
  }
}

/** As huggingface_hub reads its switches. */
function isOn(value: string | undefined): boolean {
  return /^(1|on|yes|true)$/i.test(value ?? "");
}
