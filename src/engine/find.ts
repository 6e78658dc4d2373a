import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readdirSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { EngineError } from "../errors.js";
import { attuneHome } from "./home.js";

/** The folder of package.json, above both dist/src/engine and src/engine. Throws EngineError. */
export function packageRoot(): string {
  let folder = dirname(fileURLToPath(import.meta.url));
  while (!existsSync(join(folder, "package.json"))) {
    const parent = dirname(folder);
    if (parent === folder)
      throw new EngineError(`no package.json above ${fileURLToPath(import.meta.url)}: attune is not installed whole`);
    folder = parent;
  }
  return folder;
}

/** Whether `root` is a clone of the repository, which compiles its engine into build/, and not an installed package: only a clone has a lock file. */
export function isClone(root: string): boolean {
  return existsSync(join(root, "package-lock.json"));
}

/** The engine that a clone has, or will have, built. */
export function engineOfClone(root: string): string {
  return join(root, "build", "attune.node");
}

/** The package that brings the engine compiled for a system, as `scripts/make-platform-package.mjs` makes it. */
export function platformPackage(platform: string = process.platform, arch: string = process.arch): string {
  return `@attune/engine-${platform}-${arch}`;
}

/** The engine of the platform's package, if npm has installed that of the same version beside attune. */
export function prebuiltEngine(root: string): string | undefined {
  const here = createRequire(join(root, "package.json"));
  const name = platformPackage();
  try {
    const { version } = here(`${name}/package.json`);
    return version === here("./package.json").version ? here.resolve(`${name}/attune.node`) : undefined;
  } catch {
    return undefined; // an optional package: not there
  }
}

/**
 * The engine that this machine's compiler makes of the package's sources, in `attuneHome()`. The first call compiles it (about a minute, with progress on
 * stderr); later ones, and other processes, find it there: the folder's name is a digest of all that goes into it. Throws EngineError, with what
 * to install, if it cannot be compiled.
 */
export function compiledEngine(root: string): string {
  const folder = join(attuneHome(), "engines", digestOf(root));
  const path = join(folder, "attune.node");
  if (existsSync(path)) return path;
  try {
    mkdirSync(folder, { recursive: true });
  } catch (error) {
    const { message } = error as Error;
    throw new EngineError(`the engine cannot be compiled into ${folder}: ${message}. Set ATTUNE_HOME to a folder of yours`, {
      cause: error,
    });
  }
  const script = join(root, "scripts", "build-engine.mjs");
  const { status, signal, stderr, error } = spawnSync(process.execPath, [script, "--into", folder], {
    stdio: ["ignore", 2, "pipe"], // what this process prints stays its own
    encoding: "utf8",
  });
  if (status !== 0)
    throw new EngineError(
      `the engine could not be compiled${signal ? ` (${signal})` : ""}:\n${(stderr || error?.message || "").trimEnd()}`,
    );
  return path;
}

function digestOf(root: string): string {
  const engine = join(root, "engine");
  const sources = readdirSync(engine, { recursive: true, encoding: "utf8" }).filter((name) => /\.(cpp|h|inl)$/.test(name));
  const hash = createHash("sha256");
  for (const part of [process.platform, process.arch, process.env.CXX ?? "", process.env.CXXFLAGS ?? ""])
    hash.update(`${part}\0`);
  for (const name of sources.sort()) hash.update(`${name}\0`).update(readFileSync(join(engine, name)));
  hash.update(readFileSync(join(root, "scripts", "build-engine.mjs")));
  return hash.digest("hex").slice(0, 16);
}
