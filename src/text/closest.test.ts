import assert from "node:assert/strict";
import test from "node:test";
import { closest, nearest } from "./closest.js";

test("the candidate with the fewest edits is closest, if it is near", () => {
  assert.equal(closest("learning_rte", ["learning_rate", "lr", "logging_steps"]), "learning_rate");
  assert.equal(closest("zzz", ["learning_rate"]), undefined);
  assert.equal(closest("a", ["b"]), undefined);
});

test("near are few edits first, then words in common; never more than three", () => {
  const keys = ["lora_rank", "lora_alpha", "lora_dropout", "learning_rate", "eval_steps", "save_steps", "warmup_steps", "seed"];
  assert.deepEqual(nearest("lora_rnk", keys), ["lora_rank"]);
  assert.deepEqual(nearest("learning_rate_value", keys), ["learning_rate"]);
  assert.deepEqual(nearest("sav_steps", keys), ["save_steps", "eval_steps"]);
  assert.deepEqual(nearest("steps", keys).sort(), ["eval_steps", "save_steps", "warmup_steps"]);
  assert.deepEqual(nearest("zzzzzz", keys), []);
  assert.deepEqual(nearest("x".repeat(1e6), keys), []);
  assert.deepEqual(nearest("__proto__", keys), []);
});
