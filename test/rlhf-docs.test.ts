import assert from "node:assert/strict";
import { rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import { blocksOf, makeProject, runCommand, runnableIn } from "./support/doc-blocks.js";

/** What the page's recipes name. */
function writeData(folder: string): void {
  const prompts = Array.from({ length: 20 }, (_, i) => `Where is the ${"very ".repeat(i % 4)}old owl${"?".repeat(1 + (i % 3))}`);
  const write = (name: string, rowOf: (prompt: string, i: number) => object) =>
    writeFileSync(join(folder, name), prompts.map((prompt, i) => JSON.stringify(rowOf(prompt, i))).join("\n"));
  write("answers.jsonl", (instruction, i) => ({ instruction, output: `on the roof ${i}` }));
  write("pairs.jsonl", (prompt, i) => ({ prompt, chosen: `on the roof ${i}`, rejected: `I cannot say where it is ${i}` }));
  write("prompts.jsonl", (prompt) => ({ prompt }));
}

/** A tiny model and two steps: a judge that has learned so little passes no gate. */
const small = "max_steps=2 max_new_tokens=8 ignore_reward_gate=true";

for (const page of ["docs/rlhf.md", "docs/zh/rlhf.md"])
  test(`${page}: each block runs in a project as it stands, one after the other`, () => {
    const { folder, inProject } = makeProject();
    writeData(folder);
    let commands = 0;
    for (const { language, text } of blocksOf(page)) {
      if (language === "yaml") writeFileSync(join(folder, "recipe.yaml"), inProject(text));
      else {
        assert.equal(language, "sh", "nothing runs it");
        for (const line of text.split("\n")) {
          const command = line.replace(/\s+#.*$/, "").trim();
          if (command === "") continue;
          commands++;
          runCommand(command.startsWith("npx attune train") ? `${command} ${small}` : command, folder);
        }
      }
    }
    assert.ok(commands >= 4);
    rmSync(folder, { recursive: true });
  });

test("both pages show the same commands and recipes", () => {
  assert.deepEqual(runnableIn("docs/zh/rlhf.md"), runnableIn("docs/rlhf.md"));
});
