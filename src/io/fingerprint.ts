import { createHash } from "node:crypto";
import type { TensorEntry } from "./model-files.js";

/**
 * sha256 over config and the name, type and shape of every tensor, as hex. The order of keys and tensors does not matter,
 * nor does what a mere re-save changes: the library version and private keys such as `_name_or_path`.
 */
export function fingerprintOf(config: Readonly<Record<string, unknown>>, tensors: Iterable<TensorEntry>): string {
  const meaning = Object.entries(config).filter(([key]) => !key.startsWith("_") && key !== "transformers_version");
  const shapes = [...tensors].map(({ name, dtype, shape }) => [name, dtype, ...shape]);
  shapes.sort(([a], [b]) => (String(a) < String(b) ? -1 : 1));
  const text = JSON.stringify([sortKeys(Object.fromEntries(meaning)), shapes]);
  return createHash("sha256").update(text).digest("hex");
}

function sortKeys(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(sortKeys);
  if (typeof value !== "object" || value === null) return value;
  const entries = Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1));
  return entries.map(([key, member]) => [key, sortKeys(member)]);
}
