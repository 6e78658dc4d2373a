/** Event files against TensorBoard. Runs with ATTUNE_TENSORBOARD = a venv that has it: `python3 -m venv VENV && VENV/bin/pip install tensorboard`. */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { join } from "node:path";
import test from "node:test";
import { type Board, killedAndResumed } from "../support/tensorboard.js";

const venv = process.env.ATTUNE_TENSORBOARD;
const skip = venv === undefined && "set ATTUNE_TENSORBOARD to a venv with tensorboard to run this";

test("TensorBoard shows of a run that was killed and resumed what its trainer_state.json says", { skip }, async () => {
  const { board, expected } = await killedAndResumed({});
  const script = join(import.meta.dirname, "../../../test/parity/tensorboard.py");
  const shown = execFileSync(join(venv!, "bin/python"), [script, board], {
    encoding: "utf8",
    stdio: ["ignore", "pipe", "ignore"],
  });
  assert.deepEqual(JSON.parse(shown) as Board, expected);
});
