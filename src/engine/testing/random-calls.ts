/**
 * Calls of the engine with random arguments, most of them wrong, in a process that may die of it:
 *
 *   node dist/src/engine/testing/random-calls.js ADDON FIRST COUNT     calls number FIRST to FIRST + COUNT − 1; a number is all that a call depends on
 *   node dist/src/engine/testing/random-calls.js ADDON sizes           every kernel with every choice of 0, its own and 2⁵⁰ for each of its sizes
 *
 * Each call is written out before it is made, so the last line of what ended badly tells the call. Exits with 1 after an error of a class that
 * the engine does not promise.
 */
import { writeSync } from "node:fs";
import { createRequire } from "node:module";
import { inspect } from "node:util";
import { dtypes } from "../dtype.js";
import type { Id, NativeEngine } from "../kernels.js";
import { type Arguments, Block, kernelCalls, otherCalls, realNumbers } from "./good-calls.js";
import { randomSource } from "./testing.js";

/** What the addon itself exports, without the EngineErrors of load.ts. */
type Addon = NativeEngine & Record<string, (...args: unknown[]) => unknown>;

const calls: Record<string, Arguments> = { ...kernelCalls, ...otherCalls, emulateAmx: [["on", true]] };
const names = Object.keys(calls);
const kernelNames = Object.keys(kernelCalls);
const KiB = 1024;

class FromGetter extends Error {}

/** Blocks of one call: those made for it, which hold exactly what was asked, and what they hold in the first place. */
class Blocks {
  readonly #engine: Addon;
  readonly #next: () => number;
  readonly ids: Id[] = [];

  constructor(engine: Addon, next: () => number) {
    this.#engine = engine;
    this.#next = next;
  }

  of(bytes: number): Id {
    const id = this.#engine.alloc(bytes);
    this.ids.push(id);
    const kind = this.#next();
    const contents = new Uint8Array(bytes);
    const floats = new Float32Array(contents.buffer, 0, bytes >> 2);
    if (kind < 0.5) for (let i = 0; i < floats.length; i++) floats[i] = this.#next() * 2 - 1;
    else if (kind < 0.8) for (let i = 0; i < bytes; i++) contents[i] = this.#next() * 256;
    this.#engine.write(id, 0, contents);
    return id;
  }

  freed(): Id {
    const id = this.#engine.alloc(64);
    this.#engine.free(id);
    return id;
  }

  freeAll(): void {
    for (const id of this.ids) {
      try {
        this.#engine.free(id);
      } catch {} // the call freed it
    }
  }
}

function generator(engine: Addon, next: () => number, blocks: Blocks) {
  const pick = <T>(...list: readonly T[]): T => list[Math.floor(next() * list.length)]!;
  const small = () => pick(0, 0, 1, 2, 3, 5, 8, 17, 31, 32, 33, 64, 64, 100, 256);
  const size = () => (next() < 0.5 ? small() : pick(255, 2 ** 20, 2 ** 31 - 1, 2 ** 31, 2 ** 32, 2 ** 45, 2 ** 50, 2 ** 53 - 1));
  const noSize = () => pick(-1, -(2 ** 31), 0.5, -0, 1e-300, 2 ** 53, 1e300, Number.NaN, Number.POSITIVE_INFINITY);
  const real = () => pick(0, 1, -1, 0.5, 1e-45, 1e38, -1e300, Number.NaN, Number.NEGATIVE_INFINITY);
  const nonsense = () =>
    pick<unknown>(
      undefined,
      null,
      "f32",
      "",
      {},
      [],
      Symbol("s"),
      1n,
      true,
      3,
      () => 1,
      new Float32Array(2),
      Object.create(null),
    );
  const indices = (limit: number) => Int32Array.from({ length: Math.floor(next() * 9) }, () => Math.floor(next() * limit));
  /** A start and a length in turns: two segments, now and then one that is cut. */
  const segmentsOf = (values: Int32Array) =>
    Int32Array.from({ length: next() < 0.2 ? values.length : 12 }, (_, i) => (values[i % values.length] ?? i) % (i % 2 ? 4 : 7));

  const wrongBlock = (floats: number): unknown => {
    const kind = next();
    if (kind < 0.3) return blocks.of(Math.max(0, floats * 4 - pick(1, 4, floats * 4)));
    if (kind < 0.5) return blocks.freed();
    if (kind < 0.65) return pick(...blocks.ids, 0, 7, 2 ** 24, 2 ** 40);
    if (kind < 0.8) {
      const whole = blocks.of(floats * 4 + 64);
      const view = engine.view(whole, pick(0, 1, 2, 3, 4, 60, 64), floats * 4);
      blocks.ids.push(view);
      return view;
    }
    return pick<unknown>(noSize(), nonsense());
  };

  const wrongObject = (good: Record<string, number | boolean | bigint>): unknown => {
    const keys = Object.keys(good);
    const key = pick(...keys);
    const kind = next();
    if (kind < 0.15) {
      const freeing = () => {
        blocks.freeAll();
        return good[key];
      };
      return Object.defineProperty({ ...good }, key, { get: freeing });
    }
    if (kind < 0.25)
      return Object.defineProperty({ ...good }, key, {
        get: () => {
          throw new FromGetter();
        },
      });
    const values = keys.map((name) => [
      name,
      next() < 0.3 ? pick<unknown>(size(), size(), real(), noSize(), nonsense()) : good[name],
    ]);
    return kind < 0.9 ? Object.fromEntries(values) : nonsense();
  };

  /** Something of the kind that may be accepted. */
  const other = (name: string, good: Arguments[number][1]): unknown => {
    if (typeof good === "number") return realNumbers.has(name) ? pick(real(), next()) : size();
    if (typeof good === "boolean") return next() < 0.5;
    if (typeof good === "bigint") return pick(0n, 2n ** 64n - 1n, BigInt(Math.floor(next() * 2 ** 53)));
    if (typeof good === "string") return pick(...(words[name] ?? Object.keys(dtypes)));
    if (good instanceof Int32Array) return name === "segments" ? segmentsOf(indices(7)) : indices(5);
    if (good instanceof Float64Array) return good.map((value) => pick(value, next(), 0, 1, -1, 1e300, 1e-300, 5e-324));
    if (good instanceof Float32Array)
      return pick<unknown>(new Uint8Array(small()), new DataView(new ArrayBuffer(9), 1), new Float64Array(3));
    if (good instanceof Block) return blocks.of(good.floats * 4);
    const properties = Object.entries(good).map(([key, value]) => {
      if (typeof value === "number") return [key, shapeSizes.has(key) ? small() : next()];
      return [key, typeof value === "boolean" ? next() < 0.5 : BigInt(Math.floor(next() * 2 ** 53))];
    });
    return Object.fromEntries(properties);
  };

  /** Something that must be refused, most of the time. */
  const wrong = (good: Arguments[number][1]): unknown => {
    if (next() < 0.2) return nonsense();
    if (typeof good === "number") return pick(noSize(), size(), real());
    if (typeof good === "boolean") return pick<unknown>(0, 1, "true");
    if (typeof good === "bigint") return pick<unknown>(-1n, 2n ** 64n, 5);
    if (typeof good === "string") return pick("f64", "", "f".repeat(1000), "\0", "f32\0");
    if (good instanceof Int32Array)
      return pick<unknown>(
        Int32Array.from(indices(9), (value) => value - 3),
        Int32Array.of(2 ** 31 - 1, -(2 ** 31), 0, 1),
        Uint32Array.from(good),
        detached(Int32Array.from(good)),
        new Int32Array(new SharedArrayBuffer(16)),
      );
    if (good instanceof Float64Array)
      return pick<unknown>(
        good.map((value) => pick(value, real())),
        good.slice(1),
        Float32Array.from(good),
        detached(good.slice()),
      );
    if (good instanceof Float32Array)
      return pick<unknown>(detached(good.slice()), new Float32Array(1000), new Float32Array(0), new ArrayBuffer(8));
    if (good instanceof Block) return wrongBlock(good.floats);
    return wrongObject(good);
  };
  return { pick, other, wrong };
}

/** What the texts that are no element type may be. */
const words: Readonly<Record<string, readonly string[]>> = {
  compute: ["f32", "bf16"],
  kind: ["relu", "gelu", "gelu_tanh", "silu", "tanh", "sigmoid"],
  isa: ["portable", "avx2", "avx512", "avx512bf16", "amx"],
};
const shapeSizes = new Set(["qRows", "kRows", "heads", "kvHeads", "headDim", "window"]);

function detached<T extends ArrayBufferView>(view: T): T {
  structuredClone(view.buffer, { transfer: [view.buffer as ArrayBuffer] });
  return view;
}

/** The class of an error that the engine promises, or null. */
function promised(name: string, error: unknown): string | null {
  if (error instanceof FromGetter || !(error instanceof Error)) return error instanceof FromGetter ? "FromGetter" : null;
  if (!error.message.startsWith(`${name}: `) && error.message !== "Cannot convert object to primitive value") return null;
  if (error instanceof TypeError || error instanceof RangeError) return error.constructor.name;
  return (error as { code?: string }).code === "ENGINE" ? "ENGINE" : null;
}

const missing = /^\w+: (\w+) needs (\d+) bytes .*, but block \d+ has \d+$/;

/** Calls, and where a block is only too small, makes one that holds exactly enough and calls again. Returns how the call ended. */
async function callFitting(engine: Addon, name: string, args: Arguments, values: unknown[], blocks: Blocks): Promise<string> {
  for (let tries = 0; ; tries++) {
    try {
      const result = engine[name]!(...values);
      await result;
      if (name === "alloc" || name === "view") blocks.ids.push(result as Id);
      return "accepted";
    } catch (error) {
      const [, argument, bytes] = missing.exec(error instanceof Error ? error.message : "") ?? [];
      if (argument === undefined || Number(bytes) > 4096 * KiB || tries > args.length) {
        const kind = promised(name, error);
        if (kind === null) throw error;
        return kind;
      }
      values[args.findIndex(([each]) => each === argument)] = blocks.of(Number(bytes));
    }
  }
}

function tell(number: number | string, name: string, values: readonly unknown[]): void {
  const text = values.map((value) => inspect(value, { breakLength: Number.POSITIVE_INFINITY, depth: 1 }).slice(0, 200));
  writeSync(1, `${number} ${name}(${text.join(", ")})\n`);
}

async function randomCall(engine: Addon, number: number, ends: Map<string, number>): Promise<void> {
  const next = randomSource(number * 7919 + 1);
  const blocks = new Blocks(engine, next);
  const { pick, other, wrong } = generator(engine, next, blocks);
  engine.setIsa(pick(...engine.info().tiers));
  engine.emulateAmx!(next() < 0.2);
  if (number % 16 === 0) engine.setThreads(pick(1, 2, 3));
  const name = next() < 0.85 ? pick(...kernelNames) : pick(...names);
  const args = calls[name]!;
  // A third of the calls has only arguments of the right kind, in new combinations; the others have more and more wrong ones.
  const [changed, bad] = pick([0.9, 0], [0.9, 0], [0.3, 0.15], [0.5, 0.3], [0.2, 0.9], [0, 0.1]);
  const values = args.map(([argument, good]) => {
    if (next() < bad) return wrong(good);
    if (next() < changed) return other(argument, good);
    return good instanceof Block ? blocks.of(good.floats * 4) : good;
  });
  if (next() < 0.05) values.splice(pick(0, values.length - 1), next() < 0.5 ? 1 : 0, null);
  if (name === "setThreads" && Number(values[0]) > 64) values[0] = 64;
  if (name === "alloc" && Number(values[0]) > 2 ** 26 && Number(values[0]) < 2 ** 45) values[0] = 2 ** 26; // not the machine's memory
  tell(number, name, values);
  const end = await callFitting(engine, name, args, values, blocks);
  ends.set(end, (ends.get(end) ?? 0) + 1);
  blocks.freeAll();
  await engine.sync().catch((error: unknown) => {
    if ((error as { code?: string }).code !== "ENGINE") throw error;
  });
}

/** Every kernel with every choice of sizes. */
async function everyChoice(engine: Addon): Promise<void> {
  for (const [name, args] of Object.entries(kernelCalls)) {
    const places = args.flatMap(([argument, good], i) => (typeof good === "number" && !realNumbers.has(argument) ? [i] : []));
    for (let choice = 0; choice < 3 ** places.length; choice++) {
      const blocks = new Blocks(engine, () => 0);
      const values: unknown[] = args.map(([, good]) => (good instanceof Block ? blocks.of(good.floats * 4) : good));
      for (const [nth, i] of places.entries()) values[i] = [0, values[i], 2 ** 50][Math.floor(choice / 3 ** nth) % 3];
      tell("sizes", name, values);
      await callFitting(engine, name, args, values, blocks);
      await engine.sync();
      blocks.freeAll();
    }
  }
}

const [addon, first, count] = process.argv.slice(2);
const engine = createRequire(import.meta.url)(addon!) as Addon;
const unlisted = Object.keys(engine).filter((name) => !(name in calls));
if (unlisted.length > 0) throw new Error(`good-calls.ts has no call of ${unlisted.join(", ")}`);
const ends = new Map<string, number>();
if (first === "sizes") await everyChoice(engine);
else for (let number = Number(first); number < Number(first) + Number(count); number++) await randomCall(engine, number, ends);
writeSync(1, `ends ${JSON.stringify(Object.fromEntries(ends))}\n`);
