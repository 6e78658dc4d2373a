import { openSafetensors, readEntry, toTensorEntry } from "../../src/io/safetensors.js";

/** The f32 tensors of a file. */
export async function readTensorFile(path: string): Promise<Map<string, Float32Array>> {
  const { tensors } = await openSafetensors(path);
  const values = new Map<string, Float32Array>();
  for (const [name, stored] of tensors) values.set(name, new Float32Array((await readEntry(toTensorEntry(stored))).buffer));
  return values;
}
