import { cp, mkdir, rm } from "node:fs/promises";
import { join, resolve } from "node:path";
import { ConfigError, ModelError } from "../../errors.js";
import { type AdapterConfig, adapterConfigName, readAdapterConfig } from "./adapter-folder.js";

/**
 * The key of adapter_config.json, and the folder beside it, of the adapters that were merged into the base before an adapter was trained. attune's own:
 * PEFT warns of a key that it does not know.
 */
export const baseAdaptersName = "base_adapters";

/** The folders of the adapters below an adapter: copies, in its own folder, in the order in which they are merged. Throws ModelError for anything else. */
export function baseAdaptersIn(folder: string, { [baseAdaptersName]: names = [] }: AdapterConfig): string[] {
  const isInside = (name: unknown) => typeof name === "string" && /^base_adapters\/[1-9][0-9]?$/.test(name);
  if (Array.isArray(names) && names.every(isInside)) return names.map((name: string) => join(folder, name));
  throw new ModelError(
    `${join(folder, adapterConfigName)}: ${baseAdaptersName}: expected a list like ["${baseAdaptersName}/1"].`,
  );
}

/** Throws ConfigError for an adapter with others below it, where only itself would be taken. */
export function requireNoBaseAdapters(folder: string, config: AdapterConfig): void {
  if (baseAdaptersIn(folder, config).length > 0)
    throw new ConfigError(
      `${folder}: was trained over other adapters (its folder ${baseAdaptersName}), and is right only with them merged into the base: ` +
        "export a merged model instead, which has all of them (--to hf, gguf or ollama)",
    );
}

/** What the copies of so many adapters are called in the folder of the adapter above them. */
export function baseAdapterNames(count: number): string[] {
  return Array.from({ length: count }, (_, i) => `${baseAdaptersName}/${i + 1}`);
}

/** An adapter whose files are copied. */
interface Copied {
  readonly path: string;
  readonly tensors: ReadonlyMap<string, { readonly file: string }>;
}

/**
 * Copies the files of adapters into the folder of the adapter above them, byte by byte, each with those below it; `filesOf` opens one. A folder that is
 * its own copy stays.
 */
export async function copyBaseAdapters(
  folders: readonly string[],
  into: string,
  filesOf: (folder: string) => Promise<Copied>,
): Promise<void> {
  for (const [i, name] of baseAdapterNames(folders.length).entries()) {
    const [from, to] = [folders[i]!, join(into, name)];
    if (resolve(from) === resolve(to)) continue;
    const below = baseAdaptersIn(from, await readAdapterConfig(from));
    const { tensors } = await filesOf(from);
    await rm(to, { recursive: true, force: true });
    await mkdir(to, { recursive: true });
    for (const file of new Set([...tensors.values()].map((tensor) => resolve(tensor.file))))
      await cp(file, join(to, file.slice(resolve(from).length + 1)));
    await copyBaseAdapters(below, to, filesOf);
    await cp(join(from, adapterConfigName), join(to, adapterConfigName));
  }
}
