/** docs/labelling.md and its translation: what stands in them runs, with a tiny model in the place of theirs. */
import assert from "node:assert/strict";
import { execFileSync, spawnSync } from "node:child_process";
import { cpSync, mkdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import ts from "typescript";
import { readLabels } from "../src/preference/label-store.js";
import { makeFolder } from "./support/run.js";
import { tinyLlama } from "./support/tiny-llama.js";

const root = join(import.meta.dirname, "../..");
const model = join(tinyLlama, "tied");

function blocksOf(page: string): { language: string; text: string }[] {
  const text = readFileSync(join(root, page), "utf8");
  return [...text.matchAll(/```(\w+)\n(.*?)```/gs)].map(([, language, block]) => ({ language: language!, text: block! }));
}

/** A project with two adapters on the tiny model, and a file of answers. */
function makeProject(): string {
  const folder = makeFolder();
  mkdirSync(join(folder, "node_modules"));
  symlinkSync(root, join(folder, "node_modules/attune"), "junction");
  writeFileSync(join(folder, "package.json"), JSON.stringify({ type: "module", dependencies: { attune: "*" } }));
  for (const [name, from] of [
    ["old", join(tinyLlama, "adapter-final")],
    ["new", join(tinyLlama, "../tiny-adapterhub/pfeiffer")],
  ] as const) {
    const adapter = join(folder, "runs", name);
    cpSync(from, adapter, { recursive: true });
    const path = join(adapter, "adapter_config.json");
    const config = { ...JSON.parse(readFileSync(path, "utf8")), base_model_name_or_path: model };
    writeFileSync(path, JSON.stringify(config));
  }
  const answered = Array.from({ length: 8 }, (_, i) => ({ prompt: `Q${i}`, answers: [`one ${i}`, `two ${i}`] }));
  writeFileSync(join(folder, "answered.jsonl"), answered.map((row) => JSON.stringify(row)).join("\n"));
  return folder;
}

for (const page of ["docs/labelling.md", "docs/zh/labelling.md"])
  test(`${page}: each block runs as it stands, one after the other`, async () => {
    const folder = makeProject();
    const said = new Map<string, string>();
    for (const { language, text } of blocksOf(page)) {
      if (language === "jsonl") writeFileSync(join(folder, "prompts.jsonl"), text);
      else if (language === "yaml") writeFileSync(join(folder, "recipe.yaml"), text.replace(/HuggingFaceTB\S+/, model));
      else if (language === "ts") {
        const { outputText } = ts.transpileModule(text, {
          compilerOptions: { module: ts.ModuleKind.ESNext, target: ts.ScriptTarget.ES2023 },
        });
        writeFileSync(join(folder, "example.js"), outputText);
        said.set("example", execFileSync(process.execPath, ["example.js"], { cwd: folder, encoding: "utf8" }));
      } else {
        assert.equal(language, "sh", "nothing runs it");
        for (const line of text
          .trim()
          .split("\n")
          .map((each) => each.replace(/\s+#.*$/, ""))) {
          const args = /^npx attune (.*)$/
            .exec(line)![1]!
            .replace(/HuggingFaceTB\S+/, model)
            .split(" ");
          // Two steps of training, and answers of a few tokens: the tiny model never stops of itself.
          const short =
            args[0] === "train" ? ["max_steps=2"] : args.includes("report") || args[1] === "answered.jsonl" ? [] : ["-n", "6"];
          const ran = spawnSync(process.execPath, [join(root, "bin/attune.js"), ...args, ...short], {
            ...{ cwd: folder, encoding: "utf8", input: "a\nt\nb\nx\na\nb\nn too long\na\na\na\n" },
            env: { ...process.env, ATTUNE_LANG: "en" },
          });
          assert.equal(ran.status, 0, `${line}\n${ran.stdout}${ran.stderr}`);
          said.set(line, ran.stdout);
        }
      }
    }
    const first = said.get("npx attune label prompts.jsonl --a runs/old --b runs/new")!;
    assert.match(first, /用一句话介绍长城。[\s\S]*3 labels by \S+ in prompts\.labels\.jsonl/);
    const report = [...said].find(([line]) => line.includes("report"))![1];
    assert.match(report, /6 labels of 3 items[\s\S]*Agreement, on the 3 items[\s\S]*\d\. (old|new) {2}\d+ /);
    const trained = [...said].filter(([line]) => line.includes("npx attune train"));
    assert.equal(trained.length, 3);
    for (const [line, output] of trained) {
      assert.match(output, line.includes("kto") ? / 8 rows;[\s\S]*Done after/ : / 4 rows;[\s\S]*Done after/, line);
      assert.match(output, /2 of 6 rows are left out, .*: 2 that are ties/);
    }
    assert.match(said.get("example")!, /krippendorff: /);
    const { rows } = await readLabels(join(folder, "prompts.labels.jsonl"));
    assert.equal(rows.length, 6, "the example took its label back");
    const answered = (await readLabels(join(folder, "answered.labels.jsonl"))).rows;
    assert.deepEqual([answered.length, answered.filter(({ repeat }) => repeat).length], [9, 1]);
    rmSync(folder, { recursive: true });
  });

test("both pages show the same commands, recipes and code", () => {
  const runnable = (page: string) =>
    blocksOf(page).map(({ language, text }) => [language, text.replaceAll(/[ \t]*(#|\/\/).*$/gm, "")]);
  assert.deepEqual(runnable("docs/zh/labelling.md"), runnable("docs/labelling.md"));
});
