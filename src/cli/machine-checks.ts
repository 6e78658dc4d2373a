import { execFile } from "node:child_process";
import { existsSync } from "node:fs";
import { readdir, readFile, statfs } from "node:fs/promises";
import { availableParallelism, cpus, totalmem } from "node:os";
import { dirname, resolve } from "node:path";
import { promisify } from "node:util";
import { availableMemoryBytes } from "../advise/memory.js";
import type { EngineInfo } from "../engine/kernels.js";
import { compilerToInstall, loadEngine } from "../engine/load.js";
import { formatBytes, type Io } from "./terminal.js";
import type { Words } from "./words/index.js";

type Env = Io["env"];
type DoctorWords = Words["doctor"];

/** One line of the report: `advice` says what to do if something is missing; with `isNeeded`, nothing can train until that is done. */
export interface Finding {
  readonly name: keyof DoctorWords["names"];
  readonly value: string;
  readonly advice?: string;
  readonly isNeeded?: boolean;
}

type Check = (env: Env, words: DoctorWords) => Finding[] | Promise<Finding[]>;

/** What computes: what a report of a bug is about. */
export const machine: readonly Check[] = [node, processor, engine, memory, compiler];

/** What `attune doctor` looks at, in the order of its report. */
export const checks: readonly Check[] = [...machine, modelCache, hub, python, disk];

const oldestNode = [20, 19] as const;
const hubTimeoutMs = 2000;

function node(_: Env, words: DoctorWords): Finding[] {
  const [major = 0, minor = 0] = process.versions.node.split(".").map(Number);
  const isOld = major < oldestNode[0] || (major === oldestNode[0] && minor < oldestNode[1]);
  const finding = { name: "node", value: `${process.version}, ${process.platform} ${process.arch}`, isNeeded: true } as const;
  return isOld ? [{ ...finding, advice: words.oldNode(oldestNode.join(".")) }] : [finding];
}

async function processor(env: Env, words: DoctorWords): Promise<Finding[]> {
  const info = tryEngine();
  const model = info instanceof Error ? cpus()[0]?.model.trim() : info.cpu;
  const features = info instanceof Error ? await featuresOfSystem() : info.features;
  const threads = env.ATTUNE_THREADS ? ` (ATTUNE_THREADS=${env.ATTUNE_THREADS})` : "";
  return [
    { name: "cpu", value: `${model || words.unknown}, ${words.cores(availableParallelism())}${threads}` },
    { name: "features", value: features.length > 0 ? features.join(" ") : words.featuresUnknown },
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

function engine(env: Env, words: DoctorWords): Finding[] {
  const info = tryEngine();
  if (info instanceof Error) return [{ name: "engine", value: words.cannotLoad, advice: info.message, isNeeded: true }];
  const chosen = env.ATTUNE_ISA ? `ATTUNE_ISA ${env.ATTUNE_ISA}` : words.bestOf(info.tiers.join(", "));
  return [{ name: "engine", value: `${info.isa} (${chosen}), ${words.threads(info.threads)}` }];
}

/** In a container, its limit counts and not the machine's memory. */
function memory(env: Env, words: DoctorWords): Finding[] {
  const limit = process.constrainedMemory();
  const total = limit > 0 && limit < totalmem() ? limit : totalmem();
  const available = availableMemoryBytes(env);
  const limited = total < totalmem() ? words.limited(formatBytes(totalmem())) : "";
  const value = `${words.memory(formatBytes(available), formatBytes(total))}${limited}`;
  const finding = { name: "memory", value } as const;
  const isTight = available < 2e9;
  return [isTight ? { ...finding, advice: words.closePrograms } : finding];
}

async function compiler(env: Env, words: DoctorWords): Promise<Finding[]> {
  const candidates = env.CXX ? [env.CXX] : ["c++", "g++", "clang++"];
  for (const command of candidates) {
    const said = await firstLineOf(command, "--version");
    if (said !== undefined) return [{ name: "compiler", value: `${command}: ${said}` }];
  }
  const value = words.noCompiler(candidates.join(", "));
  if (!(tryEngine() instanceof Error)) return [{ name: "compiler", value: `${value}; ${words.noneNeeded}` }];
  return [{ name: "compiler", value, advice: compilerToInstall() }];
}

async function modelCache(env: Env, words: DoctorWords): Promise<Finding[]> {
  const { getHFHubCachePath } = await import("@huggingface/hub");
  const path = getHFHubCachePath();
  const names = await readdir(path).catch(() => []);
  const models = names.filter((name) => name.startsWith("models--")).length;
  const setBy = ["HF_HUB_CACHE", "HF_HOME"].find((name) => env[name]);
  return [{ name: "models", value: `${path}${setBy ? ` (${setBy})` : ""}, ${words.modelsIn(models)}` }];
}

async function hub(env: Env, words: DoctorWords): Promise<Finding[]> {
  const { HUB_URL } = await import("@huggingface/hub");
  const url = env.HF_ENDPOINT || HUB_URL;
  const token = env.HF_TOKEN ? `, ${words.tokenSet}` : "";
  if (isOn(env.HF_HUB_OFFLINE)) return [{ name: "hub", value: `${url}: ${words.offline}${token}` }];
  try {
    await fetch(url, { method: "HEAD", redirect: "manual", signal: AbortSignal.timeout(hubTimeoutMs) });
    return [{ name: "hub", value: `${words.answers(url)}${token}` }];
  } catch {
    return [{ name: "hub", value: `${words.silent(url, hubTimeoutMs / 1000)}${token}`, advice: words.withoutHub }];
  }
}

async function python(_: Env, words: DoctorWords): Promise<Finding[]> {
  const version = await firstLineOf("python3", "--version");
  const pip = version === undefined ? undefined : await firstLineOf("python3", "-m", "pip", "--version");
  if (version !== undefined && pip !== undefined)
    return [{ name: "python", value: `${version}, ${pip.replace(/ from .*/, "")}; ${words.pythonPurpose}` }];
  return [{ name: "python", value: `${version ?? words.noPython}, ${words.noPip(words.pythonPurpose)}` }];
}

async function disk(_: Env, words: DoctorWords): Promise<Finding[]> {
  const { getHFHubCachePath } = await import("@huggingface/hub");
  const findings: Finding[] = [];
  for (const [said, path] of [
    [words.freeHere, process.cwd()],
    [words.freeForModels, getHFHubCachePath()],
  ] as const) {
    const free = await freeBytes(path);
    if (free === undefined) continue;
    const finding = { name: "disk", value: said(formatBytes(free)) } as const;
    findings.push(free < 1e9 ? { ...finding, advice: words.freeSpace } : finding);
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
