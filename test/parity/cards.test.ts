/**
 * The Python of each method's model card, run as it stands by the real libraries, answers as attune does. And PEFT's own `generate`, of which the cards of
 * virtual tokens warn, does not: if that changes, the warning can go.
 */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import { Chat } from "../../src/index.js";
import { skipWithoutPeers } from "../support/peers.js";
import { collect, makeFolder, tinyRecipe } from "../support/run.js";
import { tinyLlama } from "../support/tiny-llama.js";

const question = { role: "user", content: "Hello!" } as const;

/** What the Python of a card prints; `change` may write other Python. */
function printed(folder: string, change = (code: string) => code): string {
  const [, code] = /```python\n([\s\S]*?)\n```/.exec(readFileSync(join(folder, "README.md"), "utf8"))!;
  const script = join(folder, "card.py");
  const said = "import sys\nsys.stdout.reconfigure(encoding='utf-8')\n";
  writeFileSync(script, said + change(code!.replace("path/to/this/folder", folder)));
  const env = { ...process.env, OMP_NUM_THREADS: "2", HF_HUB_OFFLINE: "1" };
  return execFileSync(join(process.env.ATTUNE_PEERS!, "bin/python"), [script], {
    encoding: "utf8",
    env,
    stdio: ["ignore", "pipe", "ignore"],
  });
}

async function answerOf(folder: string, isAdapter: boolean): Promise<string> {
  const model = join(tinyLlama, "tied");
  const chat = await Chat.open({ ...(isAdapter ? { model, adapter: folder } : { model: folder }), compute: "f32" });
  try {
    return (await chat.answerAll([[question]], { maxNewTokens: 64 }))[0]!;
  } finally {
    chat.close();
  }
}

for (const [name, settings] of Object.entries({
  lora: {},
  "p-tuning": { finetuning_type: "p-tuning", lora_dropout: undefined },
  "prefix-tuning": { finetuning_type: "prefix-tuning", lora_dropout: undefined },
  "prefix-tuning with projection": { finetuning_type: "prefix-tuning", lora_dropout: undefined, prefix_projection: true },
  full: { finetuning_type: "full", lora_dropout: undefined },
}))
  test(`${name}: the card's Python answers as attune does`, { skip: skipWithoutPeers, timeout: 900_000 }, async () => {
    const folder = makeFolder();
    await collect(tinyRecipe(folder, { ...settings, learning_rate: 2e-2 }));
    const out = join(folder, "out");
    const answer = await answerOf(out, name !== "full");
    assert.notEqual(answer, await answerOf(join(tinyLlama, "tied"), false), "training changed nothing: this test cannot fail");
    assert.equal(printed(out).trim(), answer.trim());
    if (!/ids = torch\.cat/.test(readFileSync(join(out, "README.md"), "utf8"))) return;
    const generated = printed(
      out,
      (code) => `${code.replace(/^ids = [\s\S]*/m, "")}
answer = model.generate(**inputs, max_new_tokens=64, do_sample=False)
print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))`,
    );
    assert.notEqual(generated.trim(), answer.trim(), "PEFT's generate is right now: the card need not warn any more");
  });
