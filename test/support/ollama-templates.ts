import { goTemplate } from "../../src/export/modelfile.js";
import { ChatTemplate, type Message } from "../../src/text/chat-template.js";
import { formatOf, namedTemplate, templateNames } from "../../src/text/templates.js";

/** Every named template as Ollama's, and chats to try them on. As a program, prints them for test/fixtures/make_ollama.go. */

export const roles = { bos_token: "<s>", eos_token: "</s>" };

const system: Message = { role: "system", content: "Be brief: 2 < 3 & 'x'." };
const user: Message = { role: "user", content: "Hello {{ .System }}\n\nSecond line" };
const answer: Message = { role: "assistant", content: "Hi" };
const more: Message = { role: "user", content: "Bye" };

export const chats: readonly (readonly Message[])[] = [
  [user],
  [system, user],
  [user, answer, more],
  [system, user, answer, more, answer, user],
];

export interface OllamaTemplate {
  readonly name: string;
  readonly addsBos: boolean;
  readonly template: string;
}

export function templateOf(name: string): ChatTemplate {
  return new ChatTemplate(namedTemplate(name), { roles, origin: name });
}

export function ollamaTemplates(): OllamaTemplate[] {
  return templateNames.flatMap((name) => {
    const format = formatOf(templateOf(name), roles)!;
    if (format.noThoughts !== undefined) return [];
    return [true, false].map((addsBos) => ({ name, addsBos, template: goTemplate(format, roles, { addsBos }) }));
  });
}

if (process.argv[1] === import.meta.filename) console.log(JSON.stringify({ chats, templates: ollamaTemplates() }));
