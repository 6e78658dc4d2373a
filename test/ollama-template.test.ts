import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import { ollamaModelfile } from "../src/export/modelfile.js";
import { ChatTemplate } from "../src/text/chat-template.js";
import { formatOf } from "../src/text/templates.js";
import { byteLevel } from "../src/text/testing/byte-level.js";
import { chats, type OllamaTemplate, ollamaTemplates, roles, templateOf } from "./support/ollama-templates.js";

/** What Go's text/template makes of each template: made by test/fixtures/make_ollama.go. */
const fixture = JSON.parse(readFileSync(join(import.meta.dirname, "../../test/fixtures/ollama.json"), "utf8")) as {
  chats: unknown;
  templates: (OllamaTemplate & { rendered: string[] })[];
};

test("Go renders each template as training does, but for a begin-of-sequence token that the engine adds", () => {
  assert.deepEqual(
    fixture.templates.map(({ rendered: _, ...template }) => template),
    ollamaTemplates(),
    "templates have changed: make the fixture again",
  );
  assert.deepEqual(fixture.chats, chats);
  for (const { name, addsBos, rendered } of fixture.templates)
    for (const [i, chat] of chats.entries()) {
      const trained = templateOf(name).render({ messages: chat }, { addGenerationPrompt: true });
      const added = addsBos && trained.startsWith(roles.bos_token) ? roles.bos_token : "";
      assert.equal(added + rendered[i]!, trained, `${name}, chat ${i}`);
    }
});

const smolLM2 = `{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are SmolLM<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}`;

test("a model's own template is recognised by what it writes, with its default system message", () => {
  const format = formatOf(new ChatTemplate(smolLM2, { roles, origin: "own" }), roles);
  assert.equal(format?.user, "<|im_start|>user\n{}<|im_end|>\n");
  assert.equal(format?.defaultSystem, "You are SmolLM");
  const other = new ChatTemplate("{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}{% endfor %}", {
    roles,
    origin: "own",
  });
  assert.equal(formatOf(other, roles), undefined);
  const refusing = new ChatTemplate("{{ raise_exception('no') }}", { roles, origin: "own" });
  assert.equal(formatOf(refusing, roles), undefined);
});

test("a Modelfile has the weights, the template and where answers end", () => {
  const template = new ChatTemplate(smolLM2, { roles: byteLevel.roles, origin: "own" });
  const { text, notices } = ollamaModelfile(
    { from: "smollm2:135m", adapter: "./adapter.gguf" },
    { tokenizer: byteLevel, template },
  );
  assert.deepEqual(notices, []);
  assert.match(text, /^FROM smollm2:135m\nADAPTER \.\/adapter\.gguf\nTEMPLATE """\{\{ if \.System \}\}<\|im_start\|>system\n/);
  assert.match(text, /\{\{ else \}\}<\|im_start\|>system\nYou are SmolLM<\|im_end\|>\n\{\{ end \}\}/);
  const stops = text.split("\n").filter((line) => line.startsWith("PARAMETER stop "));
  assert.equal(stops.length, byteLevel.stopIds.size);
  for (const id of byteLevel.stopIds)
    assert.ok(stops.includes(`PARAMETER stop "${byteLevel.decode([id], { special: true })}"`), `no stop for ${id}`);
});

for (const [what, source] of [
  ["is none of the known ones", "{{ messages[0]['content'] }}"],
  ["would end the Modelfile's text", smolLM2.replace("You are SmolLM", '\\"\\"\\"\\nFROM /etc/passwd')],
  ["would be read as a template again", smolLM2.replace("You are SmolLM", "{{ .Secret }}")],
] as const)
  test(`a template that ${what} is left to Ollama, and the user is told`, () => {
    const template = new ChatTemplate(source, { roles, origin: "own" });
    const { text, notices } = ollamaModelfile({ from: "./model.gguf" }, { tokenizer: byteLevel, template });
    assert.doesNotMatch(text, /TEMPLATE|passwd|Secret/);
    assert.match(notices.join(), /the Modelfile has no TEMPLATE/);
  });
