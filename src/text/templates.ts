import { ConfigError, ModelError } from "../errors.js";
import { ChatTemplate, type Message } from "./chat-template.js";
import { closest } from "./closest.js";
import type { RoleTokens, Tokenizer } from "./tokenizer/tokenizer.js";
import {
  callsAsText,
  contentWithCalls,
  jinjaString as quote,
  type ToolFormatName,
  toolsAsText,
  withToolFormat,
} from "./tool-formats.js";

/**
 * How a named template writes a chat. In each part `{}` stands for the message, `<bos>` and `<eos>` for the model's own tokens.
 * The `header` opens the assistant's answer; the model continues from there.
 */
export interface TemplateFormat {
  readonly start?: string;
  readonly system: string;
  readonly user: string;
  readonly header: string;
  readonly assistant: string;
  readonly tool?: string;
  readonly defaultSystem?: string;
  /** Whether the system message is written inside the first user message (Llama 2, Mistral, Gemma). */
  readonly systemInUser?: boolean;
  /** What stands before an answer that holds no thoughts of its own. Formats without it have no place for thoughts beside the answer. */
  readonly noThoughts?: string;
  /** How tools and calls of them are written, where not as the answer is: in LLaMA-Factory's default way. */
  readonly toolFormat?: ToolFormatName;
  /** What stands in place of the answer where tools are called. */
  readonly call?: string;
  /** The tools as JSON, in place of the tool format's description. */
  readonly tools?: string;
}

const chatml: TemplateFormat = {
  system: "<|im_start|>system\n{}<|im_end|>\n",
  user: "<|im_start|>user\n{}<|im_end|>\n",
  header: "<|im_start|>assistant\n",
  assistant: "{}<|im_end|>\n",
  tool: "<|im_start|>tool\n{}<|im_end|>\n",
};

const qwen: TemplateFormat = {
  ...chatml,
  tool: "<|im_start|>user\n<tool_response>\n{}\n</tool_response><|im_end|>\n",
  toolFormat: "qwen",
};

const gemma: TemplateFormat = {
  start: "<bos>",
  system: "{}\n\n",
  user: "<start_of_turn>user\n{}<end_of_turn>\n",
  header: "<start_of_turn>model\n",
  assistant: "{}<end_of_turn>\n",
  tool: "<start_of_turn>tool\n{}<end_of_turn>\n",
  systemInUser: true,
};

const llama2: TemplateFormat = {
  system: "<<SYS>>\n{}\n<</SYS>>\n\n",
  user: "<bos>[INST] {} [/INST]",
  header: "",
  assistant: "{}<eos>",
  systemInUser: true,
};

const ministral: TemplateFormat = {
  start: "<bos>",
  system: "{}\n\n",
  user: "[INST]{}[/INST]",
  header: "",
  assistant: "{}<eos>",
  tool: '[TOOL_RESULTS]{"content": {}}[/TOOL_RESULTS]',
  systemInUser: true,
  toolFormat: "mistral",
  call: "[TOOL_CALLS]{}<eos>",
};

const phi: TemplateFormat = {
  system: "<|system|>\n{}<|end|>\n",
  user: "<|user|>\n{}<|end|>\n",
  header: "<|assistant|>\n",
  assistant: "{}<|end|>\n",
};

/**
 * LLaMA-Factory's templates for the families that attune runs, under its names.
 * Source: LLaMA-Factory, src/llamafactory/data/template.py (register_template).
 */
const formats: Readonly<Record<string, TemplateFormat>> = {
  default: {
    system: "System: {}<eos>\n",
    user: "Human: {}<eos>\n",
    header: "Assistant:",
    assistant: "{}<eos>\n",
  },
  alpaca: {
    system: "{}",
    user: "### Instruction:\n{}\n\n",
    header: "### Response:\n",
    assistant: "{}<eos>\n\n",
    defaultSystem:
      "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n",
  },
  chatml,
  gemma,
  gemma2: gemma,
  gemma3: gemma,
  llama2,
  llama2_zh: { ...llama2, defaultSystem: "You are a helpful assistant. 你是一个乐于助人的助手。" },
  llama3: {
    start: "<bos>",
    system: "<|start_header_id|>system<|end_header_id|>\n\n{}<|eot_id|>",
    user: "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>",
    header: "<|start_header_id|>assistant<|end_header_id|>\n\n",
    assistant: "{}<|eot_id|>",
    tool: "<|start_header_id|>ipython<|end_header_id|>\n\n{}<|eot_id|>",
    toolFormat: "llama3",
  },
  ministral,
  mistral: {
    ...ministral,
    user: "[INST] {}[/INST]",
    assistant: " {}<eos>",
    tool: '[TOOL_RESULTS] {"content": {}}[/TOOL_RESULTS]',
    call: "[TOOL_CALLS] {}<eos>",
  },
  mistral_small: { ...ministral, system: "[SYSTEM_PROMPT]{}[/SYSTEM_PROMPT]", systemInUser: false },
  phi,
  phi_small: { ...phi, start: "<|endoftext|>" },
  phi4: {
    system: "<|im_start|>system<|im_sep|>{}<|im_end|>",
    user: "<|im_start|>user<|im_sep|>{}<|im_end|>",
    header: "<|im_start|>assistant<|im_sep|>",
    assistant: "{}<|im_end|>",
  },
  phi4_mini: {
    system: "<|system|>{}<|end|>",
    user: "<|user|>{}<|end|>",
    header: "<|assistant|>",
    assistant: "{}<|end|>",
    tools: "<|tool|>{}<|/tool|>",
  },
  qwen: { ...qwen, defaultSystem: "You are Qwen, created by Alibaba Cloud. You are a helpful assistant." },
  qwen3: { ...qwen, noThoughts: "<think>\n\n</think>\n\n" },
  qwen3_nothink: qwen,
  smollm: { ...chatml, tool: chatml.user },
  smollm2: {
    ...chatml,
    tool: chatml.user,
    defaultSystem: "You are a helpful AI assistant named SmolLM, trained by Hugging Face.",
  },
  vicuna: {
    system: "{}",
    user: "USER: {} ",
    header: "ASSISTANT:",
    assistant: "{}<eos>",
    defaultSystem:
      "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite answers to the user's questions.",
  },
  zephyr: {
    system: "<|system|>\n{}<eos>",
    user: "<|user|>\n{}<eos>",
    header: "<|assistant|>\n",
    assistant: "{}<eos>",
    defaultSystem: "You are Zephyr, a helpful assistant.",
  },
};

export const templateNames: readonly string[] = Object.keys(formats);

/**
 * The Jinja source of a named template, as it is saved with an adapter; with another tool format than its own where one is given.
 * Throws ConfigError for an unknown name.
 */
export function namedTemplate(name: string, toolFormat?: ToolFormatName): string {
  const format = Object.hasOwn(formats, name) ? formats[name] : undefined;
  if (format === undefined) {
    const guess = closest(name, templateNames);
    const hint = guess === undefined ? "" : ` Did you mean "${guess}"?`;
    throw new ConfigError(
      `template: "${name}" is not known.${hint} Known: ${templateNames.join(", ")}; without it, the model's own is used.`,
    );
  }
  if (toolFormat === undefined) return jinja(format);
  const { call: _, tools: __, ...plain } = format;
  return jinja({ ...plain, toolFormat });
}

export interface TemplateChoice {
  readonly name?: string | undefined;
  readonly source?: string | undefined;
  readonly now?: Date | undefined;
  readonly toolFormat?: ToolFormatName | undefined;
  /** The system message where a chat has none, in place of the template's own. */
  readonly defaultSystem?: string | undefined;
  /** What the template sees as `enable_thinking`, where who renders does not say. */
  readonly enableThinking?: boolean | undefined;
}

export interface ChosenTemplate {
  readonly template: ChatTemplate;
  readonly notices: readonly string[];
}

/**
 * The chat template to use: the one called `name`, or Jinja given as `source` (an adapter's), or the model's own. `toolFormat` is how tools and
 * calls are written in place of the template's own way. Says where a named one writes chats differently from the model's own.
 * Throws ModelError when the model has none and nothing else is given, ConfigError for an unknown name.
 */
export function chooseTemplate(tokenizer: Tokenizer, choice: TemplateChoice = {}): ChosenTemplate {
  const { template, notices } = chooseWritten(tokenizer, choice);
  const { defaultSystem, enableThinking, now } = choice;
  const prelude = preludeOf({ defaultSystem, enableThinking });
  if (prelude === "") return { template, notices };
  const isDeaf = enableThinking !== undefined && !template.source.includes("enable_thinking");
  const deaf = `${template.origin}: the chat template does not ask for enable_thinking`;
  return {
    template: new ChatTemplate(prelude + template.source, {
      roles: tokenizer.roles,
      origin: template.origin,
      ...(now === undefined ? {} : { now }),
    }),
    notices: isDeaf ? [...notices, `${deaf}: it writes chats as it always does.`] : notices,
  };
}

/** Jinja before a template that sets what it sees, and writes nothing. A caller's own `enable_thinking` wins, as does a chat's system message. */
function preludeOf({ defaultSystem, enableThinking }: Pick<TemplateChoice, "defaultSystem" | "enableThinking">): string {
  const parts: string[] = [];
  if (defaultSystem !== undefined && defaultSystem !== "") {
    const message = `[{'role': 'system', 'content': ${quote(defaultSystem)}}]`;
    parts.push(`{% if not messages or messages[0]['role'] != 'system' %}{% set messages = ${message} + messages %}{% endif %}`);
  }
  if (enableThinking !== undefined)
    parts.push(`{% if enable_thinking is not defined %}{% set enable_thinking = ${enableThinking} %}{% endif %}`);
  return parts.length === 0 ? "" : `${parts.join("")}{{ '' }}`; // so that a line break which the template begins with stays
}

function chooseWritten(tokenizer: Tokenizer, { name, source, now, toolFormat }: TemplateChoice): ChosenTemplate {
  const options = { roles: tokenizer.roles, ...(now === undefined ? {} : { now }) };
  const own = (): ChatTemplate | undefined =>
    tokenizer.chatTemplate === undefined
      ? undefined
      : new ChatTemplate(tokenizer.chatTemplate, { ...options, origin: "the model's own" });

  if (source !== undefined)
    return { template: new ChatTemplate(source, { ...options, origin: "the saved template" }), notices: [] };
  if (name === undefined) {
    const written = tokenizer.chatTemplate;
    const template =
      written === undefined || toolFormat === undefined
        ? own()
        : new ChatTemplate(withToolFormat(written, toolFormat), {
            ...options,
            origin: `the model's own, with tool_format: ${toolFormat}`,
          });
    if (template !== undefined)
      return { template, notices: [...bosNotices(template, tokenizer), ...promptNotices(template, tokenizer)] };
    throw new ModelError(
      `The model has no chat template, so it is not known how a chat is written for it. Set \`template:\` in the recipe; one of ${templateNames.join(", ")}.`,
    );
  }

  const template = new ChatTemplate(namedTemplate(name, toolFormat), { ...options, origin: `template ${name}` });
  const format = formats[name]!;
  if (tokenizer.eosId === undefined && Object.values(format).some((part) => String(part).includes("<eos>")))
    throw new ConfigError(
      `template: ${name} ends answers with the end-of-sequence token, and this model's tokenizer names none.`,
    );
  const missing = missingTokens(format, tokenizer);
  const notices =
    missing.length === 0
      ? []
      : [`template ${name}: ${missing.join(", ")} is no token of this model; it is written as plain text.`];
  const difference = firstDifference(template, own());
  if (difference !== undefined) notices.push(`template ${name} differs from the model's own chat template: ${difference}`);
  return { template, notices };
}

/** Chats on which two templates are compared. */
const probes: readonly (readonly Message[])[] = [
  [{ role: "user", content: "Hello" }],
  [
    { role: "system", content: "Be brief." },
    { role: "user", content: "Hello" },
    { role: "assistant", content: "Hi" },
    { role: "user", content: "Bye" },
  ],
];

function firstDifference(template: ChatTemplate, own: ChatTemplate | undefined): string | undefined {
  if (own === undefined) return undefined;
  for (const messages of probes) {
    const here = template.render({ messages }, { addGenerationPrompt: true });
    let there: string;
    try {
      there = own.render({ messages }, { addGenerationPrompt: true });
    } catch {
      return "the model's own refuses chats with a system message.";
    }
    if (here !== there) return `it writes ${JSON.stringify(here)}, the model's own ${JSON.stringify(there)}.`;
  }
  return undefined;
}

/**
 * How a template writes chats, told from what it makes of a few: as one of the named formats does, with the default system message that it has
 * itself. Undefined if it writes them in another way. A tool's messages need not be written alike, as some templates have no place for them.
 */
export function formatOf(template: ChatTemplate, roles: RoleTokens): TemplateFormat | undefined {
  const rendered = (by: ChatTemplate, messages: readonly Message[]) => {
    try {
      return by.render({ messages }, { addGenerationPrompt: true });
    } catch {
      return undefined; // no place for these roles
    }
  };
  const user: Message = { role: "user", content: "Hello" };
  const alone = rendered(template, [user]);
  if (alone === undefined) return undefined;
  const answer: Message = { role: "assistant", content: "Hi" };
  const chats = [...probes, [user, answer, { role: "user", content: "Bye" }]];
  const withTool: Message[] = [user, answer, { role: "tool", content: "42" }];
  const found: TemplateFormat[] = [];
  for (const { defaultSystem: _, ...format } of Object.values(formats)) {
    const writer = (candidate: TemplateFormat) => new ChatTemplate(jinja(candidate), { roles, origin: "format" });
    // A system message of its own stands where the format would put one that is given.
    const mark = "\u0000";
    const [before, after] = rendered(writer(format), [{ role: "system", content: mark }, user])!.split(mark) as [string, string];
    const hasOwn = alone.length >= before.length + after.length && alone.startsWith(before) && alone.endsWith(after);
    const own = hasOwn ? [{ ...format, defaultSystem: alone.slice(before.length, alone.length - after.length) }] : [];
    for (const candidate of [format, ...own]) {
      const writesAlike = (chat: readonly Message[]) => rendered(writer(candidate), chat) === rendered(template, chat);
      if (!chats.every(writesAlike)) continue;
      if (writesAlike(withTool)) return candidate;
      found.push(candidate);
    }
  }
  return found[0];
}

/** As in transformers, the template alone decides on the begin-of-sequence token; a mismatch is worth a word. */
function bosNotices(template: ChatTemplate, tokenizer: Tokenizer): string[] {
  const { bos_token: bos } = tokenizer.roles;
  if (!tokenizer.addsBos || bos === undefined) return [];
  if (template.render({ messages: probes[0]! }, { addGenerationPrompt: true }).startsWith(bos)) return [];
  return [
    `The tokenizer begins every text with ${bos}, but the model's chat template does not; chats follow the template, as in transformers.`,
  ];
}

/** Answers are learned as what follows the generation prompt: a template whose prompt and chats do not agree is worth a word. */
function promptNotices(template: ChatTemplate, tokenizer: Tokenizer): string[] {
  const [question, answer] = ["Hello", "Hi!"];
  const render = (addGenerationPrompt: boolean, messages: readonly Message[]) =>
    template.render({ messages }, { addGenerationPrompt });
  const asked: Message[] = [{ role: "user", content: question }];
  let [prompt, plain, whole] = ["", "", ""];
  try {
    [prompt, plain] = [render(true, asked), render(false, asked)];
    whole = render(false, [...asked, { role: "assistant", content: answer }]);
  } catch {
    return []; // it refuses such chats
  }
  if (!whole.startsWith(prompt)) {
    if (prompt.trimEnd().endsWith("<think>")) return []; // told where there are no thoughts
    let same = 0;
    while (whole[same] === prompt[same]) same++;
    const [there, here] = [prompt.slice(same), whole.slice(same, same + 20)].map((text) => JSON.stringify(text));
    return [
      `The chat template's generation prompt goes on with ${there} where its chats have ${here}: the model does not learn to answer after the prompt.`,
    ];
  }
  if (prompt !== plain) return [];
  const header = whole.slice(prompt.length, whole.indexOf(answer, prompt.length));
  if (header.trim() !== "")
    return [
      `The chat template writes no generation prompt: ${JSON.stringify(header)} is learned as the beginning of an answer, and the model has to write it.`,
    ];
  const end = plain.slice(plain.lastIndexOf(question) + question.length);
  const isStop = (id: number | undefined) => id !== undefined && tokenizer.stopIds.has(id);
  const words = tokenizer.split(end).filter(({ id, text }) => !isStop(id) && text.trim() !== "");
  if (words.length === 0 || !whole.endsWith(end)) return [];
  return [`The chat template writes its generation prompt whether it is asked to or not: chats end with ${JSON.stringify(end)}.`];
}

/** Tokens of a format that look like control tokens, such as `<|…|>`, but are not in the model's vocabulary. */
function missingTokens(format: TemplateFormat, tokenizer: Tokenizer): string[] {
  const text = [format.system, format.user, format.header, format.assistant].join("");
  return [...new Set(text.match(/<\|[a-z_]+\|>|<(?:start|end)_of_turn>/g) ?? [])].filter(
    (token) => tokenizer.idOf(token) === undefined,
  );
}

/** A format as Jinja that stands alone: transformers, vLLM and llama.cpp read it too. */
function jinja(format: TemplateFormat): string {
  const { defaultSystem, toolFormat = "default", tools } = format;
  const toolText =
    tools === undefined ? toolsAsText(toolFormat) : `{% set tool_text %}${emit(tools, "(tools | tojson)")}{% endset %}`;
  const lines = [
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set chat = messages[1:] %}",
    `{% else %}{% set system = ${defaultSystem === undefined ? "none" : quote(defaultSystem)} %}{% set chat = messages %}{% endif %}`,
    `{% if tools %}${toolText}{% set system = (system or '') + tool_text %}{% endif %}`,
    format.start === undefined ? "" : emit(format.start, ""),
    format.systemInUser ? "" : `{% if system is not none %}${emit(format.system, "system")}{% endif %}`,
    "{% for message in chat %}",
    `{% if message['role'] == 'user' %}${format.systemInUser ? userWithSystem(format) : emit(format.user, "message['content']")}`,
    `{% elif message['role'] == 'assistant' %}${answer(format)}`,
    `{% elif message['role'] == 'tool' %}${emit(format.tool ?? format.user, "message['content']")}`,
    "{% else %}{{ raise_exception('no place for the role ' + message['role'] + ' here') }}{% endif %}",
    "{% endfor %}",
    format.header === "" ? "" : `{% if add_generation_prompt %}${emit(format.header, "")}${withoutThinking(format)}{% endif %}`,
  ];
  return lines.join("");
}

function answer({ header, noThoughts, assistant, toolFormat = "default", call }: TemplateFormat): string {
  const calls = callsAsText(toolFormat);
  const words = (after: string) => emit(assistant, "content") + after;
  const hasNone = "'<think>' not in content and '</think>' not in content";
  const thoughts =
    noThoughts === undefined
      ? ""
      : "{% if message['reasoning_content'] %}{% set content = '<think>\\n' + message['reasoning_content'] + '\\n</think>\\n\\n' + content %}{% endif %}";
  const head = `{% set content = message['content'] or '' %}${thoughts}`;
  const opening = `${emit(header, "")}${noThoughts === undefined ? "" : `{% if ${hasNone} %}${emit(noThoughts, "")}{% endif %}`}`;
  if (call === undefined)
    return `${head}{% if message['tool_calls'] %}${calls}${contentWithCalls}{% endif %}${opening}${words("")}`;
  const before = assistant.slice(0, assistant.indexOf("{}"));
  const called = `${calls}{% if content %}${emit(`${before}{}`, "content")}{% endif %}${emit(call, "call_text")}`;
  return `${head}${opening}{% if message['tool_calls'] %}${called}{% else %}${words("")}{% endif %}`;
}

/** A prompt that opens no thoughts holds empty ones, after which the model answers at once. */
function withoutThinking({ noThoughts }: TemplateFormat): string {
  if (noThoughts === undefined) return "";
  return `{% if enable_thinking is defined and enable_thinking is false %}${emit(noThoughts, "")}{% endif %}`;
}

function userWithSystem({ system, user }: TemplateFormat): string {
  const [before, after] = user.split("{}") as [string, string];
  const inside = `{% if loop.first and system is not none %}${emit(system, "system")}{% endif %}`;
  return `${emit(before, "")}${inside}${emit(`{}${after}`, "message['content']")}`;
}

/** `{{ 'text' + content + eos_token }}` for a part of a format. */
function emit(part: string, content: string): string {
  const terms = part
    .split(/(\{\}|<bos>|<eos>)/)
    .filter((term) => term !== "")
    .map((term) =>
      term === "{}" ? content : term === "<bos>" ? "(bos_token or '')" : term === "<eos>" ? "eos_token" : quote(term),
    );
  return terms.length === 0 ? "" : `{{ ${terms.join(" + ")} }}`;
}
