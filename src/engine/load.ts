import { existsSync } from "node:fs";
import { createRequire } from "node:module";
import { EngineError } from "../errors.js";
import { compiledEngine, engineOfClone, isClone, packageRoot, prebuiltEngine } from "./find.js";
import type { ComputeType, EngineInfo, NativeEngine } from "./kernels.js";

let engine: NativeEngine | undefined;

/**
 * The engine of this process (of this worker, too: they share one). A clone has it in build/; an installed package takes the platform's package, and
 * where that is missing or does not suit this system, compiles one at first use. Throws EngineError, with what to do, if it cannot be loaded.
 */
export function loadEngine(): NativeEngine {
  engine ??= load(packageRoot());
  return engine;
}

function load(root: string): NativeEngine {
  if (isClone(root)) {
    const path = engineOfClone(root);
    const advice = `Build it here with: npm run build\nThat takes a minute and a C++17 compiler. If there is none: ${compilerToInstall()}`;
    if (!existsSync(path)) throw new EngineError(`${path} does not exist: the engine has not been built.\n${advice}`);
    return open(path, advice);
  }
  const prebuilt = prebuiltEngine(root);
  if (prebuilt !== undefined && isLoadable(prebuilt)) return open(prebuilt, "");
  const path = compiledEngine(root);
  return open(path, `Remove ${path}, so that it is compiled anew.`);
}

function open(path: string, advice: string): NativeEngine {
  try {
    return withEngineErrors(createRequire(import.meta.url)(path));
  } catch (error) {
    if (hasCode(error, "ENGINE")) throw new EngineError(error.message, { cause: error }); // loaded, but ATTUNE_ISA or ATTUNE_THREADS is wrong
    const reason = error instanceof Error ? error.message : String(error);
    throw new EngineError(`${path} cannot be loaded: ${reason}\n${explain(reason)}\n${advice}`, { cause: error });
  }
}

/** Whether a file is a library for this system; not so where its C library is older than the file wants. */
function isLoadable(path: string): boolean {
  try {
    createRequire(import.meta.url)(path);
    return true;
  } catch (error) {
    return hasCode(error, "ENGINE");
  }
}

/** bf16 where the processor multiplies it in hardware, else f32: there bf16 would only be slower. */
export function fastestCompute({ isa }: EngineInfo): ComputeType {
  return isa === "avx512bf16" || isa === "amx" ? "bf16" : "f32";
}

/** The addon throws plain errors with a code where it cannot do what it should; callers know EngineError. */
function withEngineErrors(native: NativeEngine): NativeEngine {
  const fail = (error: unknown): never => {
    throw hasCode(error, "ENGINE") ? new EngineError(error.message, { cause: error }) : error;
  };
  const wrap =
    (call: (...args: unknown[]) => unknown) =>
    (...args: unknown[]): unknown => {
      try {
        const result = call(...args);
        return result instanceof Promise ? result.catch(fail) : result;
      } catch (error) {
        return fail(error);
      }
    };
  return Object.fromEntries(Object.entries(native).map(([name, call]) => [name, wrap(call)])) as unknown as NativeEngine;
}

function hasCode(error: unknown, code: string): error is Error {
  return error instanceof Error && "code" in error && error.code === code;
}

function explain(reason: string): string {
  if (/GLIBC|GLIBCXX|CXXABI/.test(reason)) return "It was built on a system with a newer C or C++ library than this one.";
  if (/invalid ELF header|wrong ELF class|incompatible architecture|not a valid Win32|mach-o|Exec format/i.test(reason)) {
    return `It was built for another system or processor than this one (${process.platform} ${process.arch}).`;
  }
  if (/file too short|truncated/i.test(reason)) return "The file is damaged.";
  if (/did not self-register|NODE_MODULE_VERSION|napi/i.test(reason))
    return `It does not suit this Node (${process.version}); attune needs 20.19 or newer.`;
  return `This is ${process.platform} ${process.arch}, Node ${process.version}.`;
}

/** What to type for a C++ compiler. */
export function compilerToInstall(): string {
  const commands: Partial<Record<NodeJS.Platform, string>> = {
    darwin: "xcode-select --install",
    win32: "winget install MartinStorsjo.LLVM-MinGW.UCRT",
  };
  return commands[process.platform] ?? "sudo apt install g++ (Debian, Ubuntu) or sudo dnf install gcc-c++ (Fedora)";
}
