import { openSafetensors, readEntry, type TensorSource, toTensorEntry, writeSafetensors } from "../../src/io/safetensors.js";

/** In a file of f32, the first number of the first tensor whose name ends so becomes `value`. */
export async function poisonFile(path: string, suffix: string, value: number): Promise<void> {
  const { tensors, metadata } = await openSafetensors(path);
  const entries = [...tensors.values()].map((stored) => toTensorEntry(stored));
  const chosen = entries.find(({ name }) => name.endsWith(suffix))!;
  const sources: TensorSource[] = [];
  for (const entry of entries) {
    const bytes = await readEntry(entry);
    if (entry === chosen) new Float32Array(bytes.buffer)[0] = value;
    sources.push({ name: entry.name, dtype: "f32", shape: entry.shape, data: () => bytes, isOpaque: true });
  }
  await writeSafetensors(path, sources, { metadata: Object.fromEntries(metadata) });
}
