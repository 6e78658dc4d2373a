/** `attune label` on a real terminal, which util-linux's `script` makes. */
import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import test, { type TestContext } from "node:test";
import { stripVTControlCharacters } from "node:util";
import { readLabels } from "../src/preference/label-store.js";
import { makeFolder } from "./support/run.js";
import { tinyLlama } from "./support/tiny-llama.js";

const bin = join(import.meta.dirname, "../../bin/attune.js");
const hasTerminal = /util-linux/.test(spawnSync("script", ["--version"], { encoding: "utf8" }).stdout ?? "");

interface Terminal {
  /** Presses keys, and waits until what comes after matches. */
  press(keys: string, until: RegExp): Promise<string>;
  readonly exit: Promise<number | null>;
}

function label(t: TestContext, folder: string, flags: string): Terminal {
  const command = `stty cols 40 rows 20; exec '${process.execPath}' '${bin}' label prompts.jsonl ${flags}`;
  const child = spawn("script", ["-qefc", command, "/dev/null"], {
    env: { ...process.env, LANG: "C.UTF-8", LC_ALL: "", TERM: "xterm", NO_COLOR: "" },
    stdio: ["pipe", "pipe", "inherit"],
    cwd: folder,
  });
  t.after(() => child.kill("SIGKILL"));
  let seen = "";
  let wake = () => {};
  child.stdout.setEncoding("utf8").on("data", (text: string) => {
    seen += text;
    wake();
  });
  const plain = () => stripVTControlCharacters(seen).replaceAll("\r", "");
  return {
    async press(keys, until) {
      seen = "";
      child.stdin.write(keys);
      const deadline = Date.now() + 60_000;
      while (!until.test(plain())) {
        assert.ok(Date.now() < deadline, `${until} did not come; there is ${JSON.stringify(seen)}`);
        await new Promise<void>((resolve) => {
          wake = resolve;
          setTimeout(resolve, 1000);
        });
      }
      return plain();
    },
    exit: new Promise((resolve) => child.on("close", resolve)),
  };
}

const items = /── B ──[\s\S]*q: quit\n$/;

test("two adapters, blind, on a terminal: keys, a note, undo, Ctrl-C, and on from there", { skip: !hasTerminal }, async (t) => {
  const folder = makeFolder();
  const rows = ["Where is the cat?", "长城在哪里？请用中文回答，并说明为什么它如此重要。", "Say hi"].map((prompt) =>
    JSON.stringify({ prompt }),
  );
  writeFileSync(join(folder, "prompts.jsonl"), rows.join("\n"));
  const adapters = `--a '${join(tinyLlama, "adapter-final")}' --b '${join(tinyLlama, "../tiny-adapterhub/pfeiffer")}'`;
  const flags = `--model '${join(tinyLlama, "tied")}' ${adapters} -n 6 --rater ann`;

  const first = label(t, folder, flags);
  let screen = await first.press("", items);
  screen += await first.press("a", /A is better\n[\s\S]*── B ──[\s\S]*q: quit\n$/);
  await first.press("n", /note: $/);
  screen += await first.press("看 不懂\x7f\r", /The note goes with your answer\.\n$/);
  screen += await first.press("x", /both bad\n[\s\S]*── 3 of 3 ──[\s\S]*q: quit\n$/);
  screen += await first.press("\x03", /2 labels by ann/);
  assert.equal(await first.exit, 0);
  assert.doesNotMatch(screen, /adapter-final|pfeiffer|tied/);
  assert.deepEqual(readdirSync(folder).sort(), ["prompts.answers.jsonl", "prompts.jsonl", "prompts.labels.jsonl"]);

  const second = label(t, folder, flags);
  await second.press("", /── 3 of 3 ──[\s\S]*q: quit\n$/);
  await second.press("u", /Taken back\.\n[\s\S]*── 2 of 3 ──[\s\S]*长城在哪里[\s\S]*q: quit\n$/);
  await second.press("b", /B is better\n[\s\S]*q: quit\n$/);
  const { pid } = JSON.parse(readFileSync(join(folder, "prompts.labels.jsonl.lock"), "utf8"));
  process.kill(pid, "SIGKILL");
  assert.notEqual(await second.exit, 0);
  const third = label(t, folder, flags);
  await third.press("", /── 3 of 3 ──[\s\S]*q: quit\n$/);
  await third.press("t", /Everything is labelled/);
  await third.press("q", /3 labels by ann in prompts\.labels\.jsonl\n/);
  assert.equal(await third.exit, 0);
  const { rows: stored } = await readLabels(join(folder, "prompts.labels.jsonl"));
  assert.deepEqual(
    stored.map(({ label, note }) => [label === "tie", note]),
    [
      [false, undefined],
      [false, undefined],
      [true, undefined],
    ],
  );
  assert.ok(!existsSync(join(folder, "prompts.labels.jsonl.lock")));
  rmSync(folder, { recursive: true });
});
