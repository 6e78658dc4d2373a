import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import { parse } from "yaml";
import { hubName, licenseOf, type ModelCard, writeModelCard } from "./model-card.js";
import type { ModelFiles } from "./model-files.js";
import { temporaryFolder } from "./testing/folders.js";

const card: ModelCard = {
  ...{ baseModel: "owner/base", library: "peft", pipeline: "text-generation", tags: ["lora", "yes: no"], license: "apache-2.0" },
  ...{ datasets: [], body: "# A card\n" },
};

test("a card begins with YAML as the hub reads it, and is replaced by the next one", async (t) => {
  const folder = temporaryFolder(t);
  assert.equal(await writeModelCard(folder, card), null);
  const text = () => readFileSync(join(folder, "README.md"), "utf8");
  const [, front] = /^---\n([\s\S]*?)\n---\n/.exec(text())!;
  assert.deepEqual(parse(front!), {
    ...{ base_model: "owner/base", library_name: "peft", pipeline_tag: "text-generation", tags: ["lora", "yes: no"] },
    license: "apache-2.0",
  });
  assert.equal(await writeModelCard(folder, { ...card, body: "# Another\n" }), null);
  assert.ok(text().endsWith("# Another\n"));
});

test("a README.md of the user's, or one that they changed, is never written over", async (t) => {
  const own = temporaryFolder(t);
  writeFileSync(join(own, "README.md"), "mine\n");
  assert.match((await writeModelCard(own, card))!, /README\.md is not attune's, or was changed, and stays; .*MODEL_CARD\.md/);
  assert.equal(readFileSync(join(own, "README.md"), "utf8"), "mine\n");
  assert.ok(readFileSync(join(own, "MODEL_CARD.md"), "utf8").endsWith("# A card\n"));

  const changed = temporaryFolder(t);
  await writeModelCard(changed, card);
  const path = join(changed, "README.md");
  writeFileSync(path, `${readFileSync(path, "utf8")}More.\n`);
  assert.notEqual(await writeModelCard(changed, card), null);
  assert.ok(readFileSync(path, "utf8").endsWith("More.\n"));
});

test("the licence of a base is what its own files say", async (t) => {
  const path = temporaryFolder(t);
  const files = { path, format: "safetensors" } as ModelFiles;
  assert.equal(await licenseOf(files), null);
  writeFileSync(join(path, "README.md"), "---\nlicense: llama3.2\ntags: [a]\n---\n# x\n");
  assert.equal(await licenseOf(files), "llama3.2");
  writeFileSync(join(path, "README.md"), "---\nlicense: [\n---\n");
  assert.equal(await licenseOf(files), null);
  assert.equal(await licenseOf({ ...files, format: "gguf", ggufMetadata: { "general.license": "mit" } }), "mit");
});

test("names of the hub are told from paths and files", () => {
  assert.equal(hubName("HuggingFaceTB/SmolLM2-135M"), "HuggingFaceTB/SmolLM2-135M");
  for (const name of ["/models/a", "./a/b", "a/b/c", "a", "data/rows.jsonl", "~/a/b"]) assert.equal(hubName(name), null, name);
});
