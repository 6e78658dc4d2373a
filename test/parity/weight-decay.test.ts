import assert from "node:assert/strict";
import { mkdtempSync, readFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test from "node:test";
import { runPython, skipWithoutPeers } from "../support/peers.js";

/** test/weight-decay.test.ts holds attune against the file. */
test("decay.json is what the Trainer of transformers decays", { skip: skipWithoutPeers, timeout: 600_000 }, () => {
  const fresh = join(mkdtempSync(join(tmpdir(), "attune-decay-")), "decay.json");
  runPython("../fixtures/make_decay.py", [fresh]);
  const committed = join(import.meta.dirname, "../../../test/fixtures/decay.json");
  assert.deepEqual(JSON.parse(readFileSync(fresh, "utf8")), JSON.parse(readFileSync(committed, "utf8")));
});
