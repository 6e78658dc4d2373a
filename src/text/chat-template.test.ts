import assert from "node:assert/strict";
import test from "node:test";
import { ModelError } from "../errors.js";
import { ChatTemplate, type Message } from "./chat-template.js";
import { renderPrompt } from "./supervised.js";
import { chooseTemplate, namedTemplate, type TemplateChoice, templateNames } from "./templates.js";
import { talk } from "./testing/byte-level.js";
import { byteTokenizer } from "./tokenizer/byte-tokenizer.js";
import { Tokenizer } from "./tokenizer/tokenizer.js";

const roles = { bos_token: "<s>", eos_token: "</s>" };

function render(source: string, messages = talk("Hello", "Hi"), addGenerationPrompt = false): string {
  return new ChatTemplate(source, { roles, origin: "model", now: new Date(2026, 2, 5, 7, 8, 9) }).render(
    { messages },
    { addGenerationPrompt },
  );
}

test("templates see what transformers gives them", () => {
  assert.equal(render("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}{{ add_generation_prompt }}"), "<s>Hello</s>False");
  assert.equal(render("{{ tools is none }} {{ documents is none }} {{ pad_token is defined }}"), "True True False");
  assert.equal(render("{% for i in range(2, 8, 2) %}{{ i }}{% endfor %}{{ range(3) | length }}"), "2463");
  assert.equal(render("{{ strftime_now('%d %b %Y, %A %-d %B %y %H:%M:%S %%') }}"), "05 Mar 2026, Thursday 5 March 26 07:08:09 %");
  assert.equal(render("  {% if true %}\n  x\n  {% endif %}\ny"), "  x\ny");
  assert.equal(
    render("{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}{% endfor %}"),
    "assistant",
  );
});

test("a template that refuses the messages is quoted", () => {
  assert.throws(() => render("{{ raise_exception('System role not supported') }}"), {
    code: "MODEL",
    message: "model: the chat template refuses these messages: System role not supported",
  });
});

test("broken and hostile templates end as an error, soon", () => {
  const nest = (open: string, close: string, times: number) => `${open.repeat(times)}1${close.repeat(times)}`;
  const hostile = [
    "{% for i in range(1000000000) %}x{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
    "{% set ns = namespace(s='xxxxxxxxxxxxxxxx') %}{% for i in range(40) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s }}",
    "{% set ns = namespace(a=[1]) %}{% for i in range(40) %}{% set ns.a = ns.a + ns.a %}{% endfor %}{{ ns.a | length }}",
    "{% set ns = namespace(a=[]) %}{% for i in range(60) %}{% set ns.a = [ns.a, ns.a] %}{% endfor %}{{ ns.a | tojson }}",
    "{% set ns = namespace(s='ab') %}{% for i in range(18) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s.replace('', ns.s) | length }}",
    "{% set ns = namespace(s='ab') %}{% for i in range(18) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{% for i in range(90000) %}{% if ns.s | upper | lower | trim == 'x' %}{% endif %}{% endfor %}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% macro m(n) %}{{ m(n + 1) ~ m(n + 1) }}{% endmacro %}{{ m(0) }}",
    nest("{% if ", " %}{% endif %}", 3),
    `{{ ${nest("(", ")", 100_000)} }}`,
    `{{ ${nest("[", "]", 100_000)} }}`,
    nest("{% if true %}", "{% endif %}", 20_000),
    "{{ messages",
    "{% for %}",
    "{% if true %}",
    "{{ 1 / }}",
    "{{ messages | no_such_filter }}",
    "{{ range(0, 10, 0) }}",
    "{{ no_such_function() }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os.getcwd() }}",
    "x".repeat(2 ** 20 + 1),
  ];
  for (const source of hostile) {
    const label = source.slice(0, 70);
    const start = performance.now();
    assert.throws(() => render(source), ModelError, label);
    assert.ok(performance.now() - start < 3000, `${label} took too long`);
  }
});

test("a template reaches nothing of the process", () => {
  const payloads = [
    "{{ messages.constructor }}",
    "{{ messages.__class__ }}",
    "{{ ''.__class__.__mro__ }}",
    "{{ messages[0].constructor.constructor('return process')() }}",
    "{{ ''.constructor.constructor('return 7')() }}",
    "{{ raise_exception.constructor('return 7')() }}",
    "{{ range.constructor('return process')().pid }}",
    "{{ self.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ process.pid }}{{ globalThis }}{{ require }}",
    "{{ messages | attr('constructor') }}",
    "{{ messages['__proto__'] }}{{ messages[0]['__proto__'] }}",
    "{% set x = messages.__proto__ %}{{ x.polluted }}",
    "{% set ns = namespace() %}{% set ns.__proto__ = 7 %}{% set ns.constructor = 7 %}{{ ns.toString }}",
  ];
  for (const source of payloads) {
    let output = "";
    try {
      output = render(source);
    } catch (error) {
      assert.ok(error instanceof ModelError, source);
    }
    assert.ok(!/function|native code|\[object|7|\d{2,}|uid=/.test(output), `${source} gave ${output}`);
  }
  assert.equal(({} as Record<string, unknown>).polluted, undefined);
});

test("long chats are not mistaken for attacks", () => {
  const long = "word ".repeat(100_000);
  assert.ok(render(namedTemplate("llama3"), talk(long, long)).length > 2 * long.length);
  const many = talk(...Array.from({ length: 2000 }, (_, i) => `message ${i}`));
  assert.ok(render(namedTemplate("chatml"), many).includes("message 1999"));
});

test("LLaMA-Factory's templates write what it writes", () => {
  const chat = [{ role: "system", content: "S" }, ...talk("Q", "A", "P")];
  const expected: Record<string, string> = {
    default: "System: S</s>\nHuman: Q</s>\nAssistant:A</s>\nHuman: P</s>\nAssistant:",
    alpaca: "S### Instruction:\nQ\n\n### Response:\nA</s>\n\n### Instruction:\nP\n\n### Response:\n",
    chatml:
      "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n<|im_start|>user\nP<|im_end|>\n<|im_start|>assistant\n",
    llama2: "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nQ [/INST]A</s><s>[INST] P [/INST]",
    llama3:
      "<s><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nQ<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nA<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nP<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    gemma:
      "<s><start_of_turn>user\nS\n\nQ<end_of_turn>\n<start_of_turn>model\nA<end_of_turn>\n<start_of_turn>user\nP<end_of_turn>\n<start_of_turn>model\n",
    ministral: "<s>[INST]S\n\nQ[/INST]A</s>[INST]P[/INST]",
    mistral: "<s>[INST] S\n\nQ[/INST] A</s>[INST] P[/INST]",
    mistral_small: "<s>[SYSTEM_PROMPT]S[/SYSTEM_PROMPT][INST]Q[/INST]A</s>[INST]P[/INST]",
    phi: "<|system|>\nS<|end|>\n<|user|>\nQ<|end|>\n<|assistant|>\nA<|end|>\n<|user|>\nP<|end|>\n<|assistant|>\n",
    phi4: "<|im_start|>system<|im_sep|>S<|im_end|><|im_start|>user<|im_sep|>Q<|im_end|><|im_start|>assistant<|im_sep|>A<|im_end|><|im_start|>user<|im_sep|>P<|im_end|><|im_start|>assistant<|im_sep|>",
    phi4_mini: "<|system|>S<|end|><|user|>Q<|end|><|assistant|>A<|end|><|user|>P<|end|><|assistant|>",
    qwen3:
      "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\nA<|im_end|>\n<|im_start|>user\nP<|im_end|>\n<|im_start|>assistant\n",
    vicuna: "SUSER: Q ASSISTANT:A</s>USER: P ASSISTANT:",
    zephyr: "<|system|>\nS</s><|user|>\nQ</s><|assistant|>\nA</s><|user|>\nP</s><|assistant|>\n",
  };
  for (const name of ["smollm", "smollm2", "qwen", "qwen3_nothink"]) expected[name] = expected.chatml!;
  for (const name of ["gemma2", "gemma3"]) expected[name] = expected.gemma!;
  expected.llama2_zh = expected.llama2!;
  expected.phi_small = `<|endoftext|>${expected.phi}`;
  for (const name of templateNames) assert.equal(render(namedTemplate(name), chat, true), expected[name], name);
  assert.match(
    render(namedTemplate("smollm2")),
    /^<\|im_start\|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face\.<\|im_end\|>/,
  );
  const thoughtful = "<think>\nWhy?\n</think>\n\nA";
  assert.match(render(namedTemplate("qwen3"), talk("Q", thoughtful)), /assistant\n<think>\nWhy\?\n<\/think>\n\nA<\|im_end\|>/);
  assert.equal(
    render(namedTemplate("mistral"), [{ role: "tool", content: "T" }]),
    '<s>[TOOL_RESULTS] {"content": T}[/TOOL_RESULTS]',
  );
  assert.match(
    render(namedTemplate("llama3"), [{ role: "tool", content: "T" }]),
    /<\|start_header_id\|>ipython<\|end_header_id\|>\n\nT<\|eot_id\|>/,
  );
  assert.throws(() => render(namedTemplate("chatml"), [{ role: "critic", content: "C" }]), {
    code: "MODEL",
    message: /role critic/,
  });
});

test("the recipe's template wins, and says how it differs from the model's own", () => {
  const tokenizer = byteTokenizer();
  assert.equal(chooseTemplate(tokenizer).template.source, tokenizer.chatTemplate);
  assert.deepEqual(chooseTemplate(tokenizer, { name: "chatml" }).notices, []);
  const other = chooseTemplate(tokenizer, { name: "smollm2" });
  assert.match(other.notices.join(), /template smollm2 differs from the model's own chat template: it writes .*named SmolLM/);
  assert.match(chooseTemplate(tokenizer, { name: "llama3" }).notices[0]!, /<\|eot_id\|>.* no token of this model/);
  const saved = chooseTemplate(tokenizer, { source: "{{ messages[0].content }}" });
  assert.equal(tokenizer.decode(renderPrompt({ tokenizer, template: saved.template }, { messages: talk("Hello") })), "Hello");
  assert.throws(() => chooseTemplate(tokenizer, { name: "lama3" }), {
    code: "CONFIG",
    message: /"lama3" is not known. Did you mean "llama3"/,
  });
  assert.throws(() => chooseTemplate(tokenizer, { name: "__proto__" }), { code: "CONFIG", message: /is not known/ });
});

test("a template whose generation prompt and chats do not agree is told", () => {
  const json = JSON.parse(byteTokenizer().files()[0]!.contents);
  const noticesOf = (chatTemplate: string) =>
    chooseTemplate(new Tokenizer({ json, roles, stopIds: [258], chatTemplate, files: [], where: "x" })).notices;
  const turn = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n";
  const chat = (prompt: string) => `{% for m in messages %}${turn}{% endfor %}${prompt}`;
  const prompted = (text: string) => `{% if add_generation_prompt %}${text}{% endif %}`;
  assert.deepEqual(noticesOf(chat(prompted("{{ '<|im_start|>assistant\n' }}"))), []);
  assert.deepEqual(
    noticesOf(
      "{% for m in messages %}{{ '[INST] ' + m.content + ' [/INST]' if m.role == 'user' else ' ' + m.content + '</s>' }}{% endfor %}",
    ),
    [],
  );
  assert.match(noticesOf(chat("")).join(), /writes no generation prompt: "<\|im_start\|>assistant\\n" is learned/);
  assert.match(
    noticesOf(chat("{{ '<|im_start|>assistant\n' }}")).join(),
    /writes its generation prompt whether it is asked to or not/,
  );
  assert.match(
    noticesOf(chat(prompted("{{ '<|im_start|>model\n' }}"))).join(),
    /goes on with "model\\n" where its chats have "assistant/,
  );
});

test("a model without a template asks for one", () => {
  const json = JSON.parse(byteTokenizer().files()[0]!.contents);
  const bare = new Tokenizer({ json, roles: {}, stopIds: [], files: [], where: "tokenizer.json" });
  assert.throws(() => chooseTemplate(bare), { code: "MODEL", message: /Set `template:` in the recipe; one of default, alpaca/ });
  assert.throws(() => chooseTemplate(bare, { name: "zephyr" }), { code: "CONFIG", message: /end-of-sequence token/ });
  assert.deepEqual(chooseTemplate(bare, { name: "chatml" }).notices, []);
});

test("a default system message and enable_thinking are set before the template, and saved with it", () => {
  const chat = (messages: readonly Message[], choice: TemplateChoice) =>
    chooseTemplate(byteTokenizer(), choice).template.render({ messages }, { addGenerationPrompt: true });
  const asked: Message[] = [{ role: "user", content: "Q" }];
  const system = (text: string) => `<|im_start|>system\n${text}<|im_end|>\n`;
  const rest = "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n";

  const brief = { name: "qwen", defaultSystem: 'It\'s\n"brief" {{ 1 }}.' } as const;
  assert.equal(chat(asked, brief), system('It\'s\n"brief" {{ 1 }}.') + rest);
  assert.equal(chat([{ role: "system", content: "S" }, ...asked], brief), system("S") + rest);
  const { source } = chooseTemplate(byteTokenizer(), brief).template;
  assert.equal(chat(asked, { source }), chat(asked, brief), "the saved template writes it, too");

  for (const enableThinking of [undefined, true])
    assert.equal(chat(asked, { name: "qwen3", enableThinking }), rest, String(enableThinking));
  assert.equal(chat(asked, { name: "qwen3", enableThinking: false }), `${rest}<think>\n\n</think>\n\n`);
  assert.doesNotMatch(chooseTemplate(byteTokenizer(), { name: "qwen3", enableThinking: false }).notices.join(), /does not ask/);
  assert.match(
    chooseTemplate(byteTokenizer(), { name: "qwen", enableThinking: false }).notices.join(),
    /does not ask for enable_thinking/,
  );
});
