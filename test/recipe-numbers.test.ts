/** Absurd numbers in every setting that takes one: refused by name, or the run works with them, at once. */
import assert from "node:assert/strict";
import { rmSync } from "node:fs";
import test from "node:test";
import { everyMethod } from "../src/backends/index.js";
import { AttuneError } from "../src/index.js";

import { type KeySchema, keySchemas, RecipeKeys } from "../src/recipe/schema.js";
import { collect, makeFolder, tinyRecipe } from "./support/run.js";

const takesNumber = ({ type, anyOf }: KeySchema): boolean =>
  type === "integer" || type === "number" || (anyOf?.some(takesNumber) ?? false);

/** What else must be set for a setting to be read. */
function companions(method: string, key: string): Record<string, unknown> {
  const chosen = { finetuning_type: method, lora_dropout: undefined };
  if (key.startsWith("loftq")) return { ...chosen, loftq_init: true, quantization_bit: 4 };
  if (key.startsWith("pissa")) return { ...chosen, pissa_init: true };
  if (key === "encoder_hidden_size" && method === "prefix-tuning") return { ...chosen, prefix_projection: true };
  if (key.startsWith("encoder_") && method === "p-tuning") return { ...chosen, encoder_reparameterization_type: "LSTM" };
  return chosen;
}

const common = Object.entries(keySchemas(RecipeKeys)).map(([key, schema]) => ({ key, schema, others: {} }));
const ofTuners = everyMethod.tuners.flatMap(({ name, config }) =>
  Object.entries(keySchemas(config!)).map(([key, schema]) => ({ key, schema, others: companions(name, key) })),
);
const ofBackends = everyMethod.backends.flatMap(({ config }) =>
  Object.entries(keySchemas(config!)).map(([key, schema]) => ({ key, schema, others: {} })),
);
const nested = [
  { key: "rank_pattern", wrap: (value: number) => ({ q_proj: value }), others: {} },
  { key: "alpha_pattern", wrap: (value: number) => ({ q_proj: value }), others: {} },
  { key: "layers_to_transform", wrap: (value: number) => [value], others: {} },
  { key: "reduction_factor", wrap: (value: number) => ({ default: value }), others: companions("adapter", "") },
  { key: "leave_out", wrap: (value: number) => [value], others: companions("adapter", "") },
];
const numbers = [0, -0, -1, 0.5, 1e-300, 1e9, 1e15, 2 ** 53 - 1, 2 ** 53, 1e308, Number.NaN, Number.POSITIVE_INFINITY];

const cases = [
  ...[...common, ...ofTuners, ...ofBackends]
    .filter(({ schema }) => takesNumber(schema))
    .map((one) => ({ ...one, wrap: (value: number): unknown => value })),
  ...nested,
];
for (const { key, others, wrap } of cases)
  test(`${Object.values(others)[0] ?? ""} ${key}`, { timeout: 60_000 }, async () => {
    for (const value of numbers) {
      const folder = makeFolder();
      const stop = new AbortController();
      const recipe = tinyRecipe(folder, { max_steps: 2, val_size: 4, ...others, [key]: wrap(value) });
      if (key === "num_train_epochs") delete recipe.max_steps;
      const startedMs = performance.now();
      const end = await collect(recipe, ({ type }) => type === "step" && stop.abort(), stop.signal).then(
        (events) => events.at(-1)!.type,
        (error: unknown) => error,
      );
      const what = `${key}=${value} ends with ${end instanceof Error ? end.stack : end}`;
      assert.ok(end === "end" || (end instanceof AttuneError && [2, 3, 4, 5].includes(end.exitCode)), what);
      assert.ok(performance.now() - startedMs < 20_000, `${key}=${value} takes ${performance.now() - startedMs} ms`);
      rmSync(folder, { recursive: true });
    }
  });
