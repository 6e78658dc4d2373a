import { execFileSync } from "node:child_process";
import { mkdtempSync, rmdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { TestContext } from "node:test";

/** A folder that is gone when the test ends. */
export function temporaryFolder(t: TestContext): string {
  const folder = mkdtempSync(join(tmpdir(), "attune-io-"));
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

/** A reproducible source of numbers in [0, below), for damaged inputs (mulberry32). */
export function seededIntegers(seed: number): (below: number) => number {
  let state = seed >>> 0;
  return (below) => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) % below;
  };
}

/** How often to repeat a randomised check: `ATTUNE_SOAK=1` asks for many more. */
export function repetitions(normal: number, soak: number): number {
  return process.env.ATTUNE_SOAK === "1" ? soak : normal;
}

/**
 * A copy of `bytes` with a few random edits: bits, bytes, cuts, insertions, copies of parts and integers at their limits.
 */
export function mutate(bytes: Uint8Array, random: (below: number) => number): Uint8Array {
  let result: Buffer = Buffer.from(bytes);
  for (let edits = 1 + random(3); edits > 0 && result.length > 0; edits--) {
    const at = random(result.length);
    switch (random(7)) {
      case 0:
        result[at]! ^= 1 << random(8);
        break;
      case 1:
        result[at] = random(256);
        break;
      case 2:
        result = result.subarray(0, at);
        break;
      case 3:
        result = Buffer.concat([result.subarray(0, at), Buffer.from([random(256)]), result.subarray(at)]);
        break;
      case 4: {
        const length = Math.min(random(40), result.length - at);
        result = Buffer.concat([result.subarray(0, at), result.subarray(at, at + length), result.subarray(at)]);
        break;
      }
      case 5: {
        const limits = [0n, 1n, 2n ** 31n, 2n ** 32n - 1n, 2n ** 53n + 1n, 2n ** 63n, 2n ** 64n - 1n];
        if (at + 8 <= result.length) result.writeBigUInt64LE(limits[random(limits.length)]!, at);
        break;
      }
      default: {
        const length = Math.min(random(16), result.length - at);
        result = Buffer.concat([result.subarray(0, at), result.subarray(at + length)]);
      }
    }
  }
  return result;
}

/** A metadata value with its gguf_type. */
export type GgufValue =
  | { readonly u32: number }
  | { readonly f32: number }
  | { readonly bool: boolean }
  | { readonly string: string }
  | { readonly strings: readonly string[] }
  | { readonly i32s: readonly number[] };

export interface GgufTestTensor {
  readonly name: string;
  /** ggml_type number. */
  readonly type: number;
  /** In the order of the file: innermost first. */
  readonly dims: readonly number[];
  readonly data: Uint8Array;
}

/** The bytes of a GGUF file, version 3. */
export function buildGguf(
  metadata: Readonly<Record<string, GgufValue>>,
  tensors: readonly GgufTestTensor[],
  alignment = 32,
): Buffer {
  const u32 = (value: number) => {
    const bytes = Buffer.alloc(4);
    bytes.writeUInt32LE(value);
    return bytes;
  };
  const u64 = (value: number) => {
    const bytes = Buffer.alloc(8);
    bytes.writeBigUInt64LE(BigInt(value));
    return bytes;
  };
  const text = (value: string): Buffer<ArrayBuffer> => Buffer.concat([u64(Buffer.byteLength(value)), Buffer.from(value)]);
  const value = (entry: GgufValue): Buffer<ArrayBuffer> => {
    if ("u32" in entry) return Buffer.concat([u32(4), u32(entry.u32)]);
    if ("f32" in entry) return Buffer.concat([u32(6), Buffer.from(new Float32Array([entry.f32]).buffer)]);
    if ("bool" in entry) return Buffer.concat([u32(7), Buffer.from([entry.bool ? 1 : 0])]);
    if ("string" in entry) return Buffer.concat([u32(8), text(entry.string)]);
    if ("strings" in entry) return Buffer.concat([u32(9), u32(8), u64(entry.strings.length), ...entry.strings.map(text)]);
    return Buffer.concat([u32(9), u32(5), u64(entry.i32s.length), Buffer.from(new Int32Array(entry.i32s).buffer)]);
  };
  const padding = (length: number) => Buffer.alloc((alignment - (length % alignment)) % alignment);

  const head = [Buffer.from("GGUF"), u32(3), u64(tensors.length), u64(Object.keys(metadata).length)];
  for (const [key, entry] of Object.entries(metadata)) head.push(text(key), value(entry));
  const data: Buffer[] = [];
  let offset = 0;
  for (const tensor of tensors) {
    head.push(text(tensor.name), u32(tensor.dims.length), ...tensor.dims.map(u64), u32(tensor.type), u64(offset));
    data.push(Buffer.from(tensor.data), padding(tensor.data.length));
    offset += tensor.data.length + padding(tensor.data.length).length;
  }
  const header = Buffer.concat(head);
  return Buffer.concat([header, padding(header.length), ...data]);
}

/** A file system of some megabytes, where this process may mount one; else the test is skipped. */
export function smallDisk(t: TestContext, megabytes = 1): string | undefined {
  const mount = mkdtempSync(join(tmpdir(), "attune-disk-"));
  try {
    if (process.getuid?.() !== 0) throw new Error("not root");
    execFileSync("mount", ["-t", "tmpfs", "-o", `size=${megabytes}m`, "tmpfs", mount], { stdio: "ignore" });
    t.after(() => {
      execFileSync("umount", [mount]);
      rmdirSync(mount);
    });
    return mount;
  } catch {
    rmdirSync(mount);
    t.skip("no small disk can be mounted here");
    return undefined;
  }
}
