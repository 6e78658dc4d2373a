import { existsSync } from "node:fs";
import { resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { z } from "zod";
import { ConfigError, RewardError } from "../errors.js";
import { defineKind } from "./kind.js";
import type { Reward, RewardSample } from "./reward.js";

/**
 * Says what an answer is worth; null if it has nothing to say of it. The answers of a roll-out are given at once, so one that waits for something
 * holds up no other. Ends early if `signal` fires.
 */
export type RewardFunction = (
  sample: RewardSample,
  at: { readonly signal: AbortSignal },
) => number | null | Promise<number | null>;

export type RewardFunctions = Readonly<Record<string, RewardFunction>>;

/** A function of the program that calls `train`, which is handed over beside the recipe. */
export const functionReward = defineKind({
  type: "function",
  summary: "a function that the program hands to `train`, under the reward's name",
  config: z.strictObject({}),
  async open(_config, { functions, name }) {
    const given = Object.hasOwn(functions, name) ? functions[name] : undefined;
    if (typeof given === "function") return byFunction(name, given);
    const known = Object.keys(functions);
    const there = known.length === 0 ? "none was given" : `there are ${known.join(", ")}`;
    throw new ConfigError(
      `rewards: ${name} is a function of the program that trains, and ${there}: train(recipe, { rewards: { ${JSON.stringify(name)}: (sample) => … } }). ` +
        "For a function in a file, write type: module and module: path#export",
    );
  },
});

/** A function in a file. What the file says when it is loaded, and what the function does, is run as it stands. */
export const moduleReward = defineKind({
  type: "module",
  summary: "a function that a JavaScript or TypeScript module exports",
  config: z.strictObject({
    module: z
      .string()
      .min(1)
      .describe(
        "`path#export`: the file, from where the run starts, and the name of what it exports; `default` where no name is given",
      ),
  }),
  async open({ module }, { name }) {
    const [, path, exported = "default"] = /^(.*?)(?:#([^#/\\]*))?$/s.exec(module)!;
    const file = resolve(path!);
    if (!existsSync(file)) throw new ConfigError(`rewards: ${name}: there is no file ${file}`);
    let exports: Record<string, unknown>;
    try {
      exports = (await import(pathToFileURL(file).href)) as Record<string, unknown>;
    } catch (error) {
      const why = error instanceof Error ? error.message : String(error);
      const isTypeScript = (error as { code?: unknown } | null)?.code === "ERR_UNKNOWN_FILE_EXTENSION" && /\.[mc]?ts$/.test(file);
      const advice = isTypeScript
        ? " Node reads TypeScript from 22.18 on; for an older one, compile it and name the .js file."
        : "";
      throw new ConfigError(`rewards: ${name}: ${file} cannot be loaded: ${why}.${advice}`, { cause: error });
    }
    const found = exports[exported];
    if (typeof found === "function") return byFunction(name, found as RewardFunction);
    const functions = Object.keys(exports).filter((key) => typeof exports[key] === "function");
    const there = functions.length === 0 ? "it exports no function" : `its functions are ${functions.join(", ")}`;
    throw new ConfigError(`rewards: ${name}: ${file} exports no function ${JSON.stringify(exported)}; ${there}`);
  },
});

/** Throws RewardError that names the first answer, in their order, for which the function throws or gives no number. */
function byFunction(name: string, judge: RewardFunction): Reward["score"] {
  return async (samples, { signal }) => {
    const scoring = Promise.allSettled(samples.map(async (sample) => await judge(sample, { signal })));
    const settled = await untilAborted(scoring, signal);
    return settled.map((outcome, i) => {
      const { where } = samples[i]!;
      if (outcome.status === "rejected") {
        const { reason } = outcome as { reason: unknown };
        throw new RewardError(`${where}: the reward ${name} threw ${said(reason)}`, { cause: reason });
      }
      const score: unknown = outcome.value;
      if (score === null || typeof score === "number") return score;
      throw new RewardError(
        `${where}: the reward ${name} gave ${said(score)}: expected a number, or null for an answer that it has nothing to say of`,
      );
    });
  };
}

/** What a promise gives, or the signal's reason as soon as it fires. */
export async function untilAborted<T>(promise: Promise<T>, signal: AbortSignal): Promise<T> {
  signal.throwIfAborted();
  let stop = () => {};
  const aborted = new Promise<never>((_, reject) => {
    stop = () => reject(signal.reason as Error);
    signal.addEventListener("abort", stop, { once: true });
  });
  try {
    return await Promise.race([promise, aborted]);
  } finally {
    signal.removeEventListener("abort", stop);
  }
}

function said(value: unknown): string {
  if (value instanceof Error) return `${value.name}: ${value.message}`.slice(0, 500);
  if (typeof value === "object" && value !== null) return "an object";
  return typeof value === "string" ? JSON.stringify(value.slice(0, 200)) : String(value);
}
