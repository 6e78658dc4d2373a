import { z } from "zod";

/** Setting that names modules: one name, several with commas, or a list. */
export const nameOrNames = z.union([z.string().min(1), z.array(z.string().min(1)).min(1)]);

/** A list, or a text with commas. */
export function namesIn(setting: string | readonly string[]): readonly string[] {
  return typeof setting === "string" ? setting.split(",").map((name) => name.trim()) : setting;
}

/** The whole path, or its end after a dot. */
export function isNamed(path: string, name: string): boolean {
  return path === name || path.endsWith(`.${name}`);
}

/** Whether a path is that of the module of this name, or of anything in it. */
export function isBelow(path: string, name: string): boolean {
  return `.${path}.`.includes(`.${name}.`);
}

/** The last parts of paths, each once. */
export function leafNames(paths: readonly string[]): string[] {
  return [...new Set(paths.map((path) => path.split(".").at(-1)!))].sort();
}
