/**
 * Runs `attune train` as a user would, on a recipe given as settings: `node dist/bench/train.js key=value …`. Prints one JSON line with the names
 * of trl_sft.py. Tokens are useful ones: none is padding.
 */
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { RunResults } from "../src/runs/events.js";

const outputDir = mkdtempSync(join(tmpdir(), "attune-bench-"));
try {
  const cli = join(import.meta.dirname, "../../bin/attune.js");
  const startMs = performance.now();
  const { status, stderr } = spawnSync(process.execPath, [cli, "train", ...process.argv.slice(2), `output_dir=${outputDir}`], {
    encoding: "utf8",
  });
  const commandSeconds = (performance.now() - startMs) / 1000;
  if (status !== 0) throw new Error(`attune train ended with ${status}: ${stderr}`);
  const results = JSON.parse(readFileSync(join(outputDir, "all_results.json"), "utf8")) as RunResults;
  console.log(
    JSON.stringify({
      useful_tokens: results.num_input_tokens_seen,
      useful_tokens_per_second: results.num_input_tokens_seen / results.train_runtime,
      seconds_to_first_step_done: results.seconds_to_first_step,
      command_s: commandSeconds,
      peak_rss_gb: results.peak_memory_bytes / 1e9,
      loss: results.train_loss,
    }),
  );
} finally {
  rmSync(outputDir, { recursive: true, force: true });
}
