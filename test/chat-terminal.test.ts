/** `attune chat` on a real terminal, which util-linux's `script` makes. */
import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import { stripVTControlCharacters } from "node:util";
import { makeFolder } from "./support/run.js";
import { tinyLlama } from "./support/tiny-llama.js";

const bin = join(import.meta.dirname, "../../bin/attune.js");
const hasTerminal = /util-linux/.test(spawnSync("script", ["--version"], { encoding: "utf8" }).stdout ?? "");

test("a conversation on a terminal: banner, paste, settings, save, cut, Ctrl-C, Ctrl-D", { skip: !hasTerminal }, async () => {
  const folder = makeFolder();
  const flags = `--model '${join(tinyLlama, "tied")}' --adapter '${join(tinyLlama, "adapter-final")}' -n 4`;
  const command = `stty cols 60 rows 20; exec '${process.execPath}' '${bin}' chat ${flags}`;
  const child = spawn("script", ["-qefc", command, "/dev/null"], {
    env: { ...process.env, LANG: "C.UTF-8", LC_ALL: "", TERM: "xterm", NO_COLOR: "" },
    stdio: ["pipe", "pipe", "inherit"],
  });
  let seen = "";
  let wake = () => {};
  child.stdout.setEncoding("utf8").on("data", (text: string) => {
    seen += text;
    wake();
  });
  const exit = new Promise<number | null>((resolve) => child.on("close", resolve));
  const type = async (keys: string, until: RegExp) => {
    seen = "";
    child.stdin.write(keys);
    const deadline = Date.now() + 60_000;
    while (!until.test(stripVTControlCharacters(seen).replaceAll("\r", ""))) {
      assert.ok(Date.now() < deadline, `${until} did not come; there is ${JSON.stringify(seen)}`);
      await new Promise<void>((resolve) => {
        wake = resolve;
        setTimeout(resolve, 1000);
      });
    }
    return stripVTControlCharacters(seen).replaceAll("\r", "");
  };

  const banner = await type("", /leaves\.\n> $/);
  assert.match(banner, /tied {2}f32 weights, (f32|bf16) products, \d+ tokens of context\nadapter adapter-final \(lora\)\n/);
  await type("\x1b[200~Where is\nthe owl??\x1b[201~", /the owl\?\?$/);
  await type("\r", /\n\[cut after 4 tokens; \/set max_new_tokens allows more\]\n> $/);
  await type("/set max_new_tokens 100000\r", /max_new_tokens 100000\n> $/);
  await type("/system 简短\r", /system: 简短\n> $/);
  const file = join(folder, "chat.json");
  await type(`/save ${file}\r`, /Wrote 3 messages to [\s\S]*\n> $/);
  const [row] = JSON.parse(readFileSync(file, "utf8"));
  assert.deepEqual(row.messages[0], { role: "system", content: "简短" });
  assert.equal(row.messages[1].content, "Where is\nthe owl??");
  await type("\x03", /Ctrl-C again, \/quit or Ctrl-D leaves\.\n> $/);
  child.stdin.write("\x04");
  assert.equal(await exit, 0);
  assert.ok(seen.includes("\x1b[?2004l"), "the terminal is given back as it was");
  rmSync(folder, { recursive: true });
});
