import type { ChatFormat } from "../text/supervised.js";
import { formatOf, type TemplateFormat } from "../text/templates.js";
import type { RoleTokens } from "../text/tokenizer/tokenizer.js";

export interface ModelfileOptions {
  /** A GGUF file, beside the Modelfile or not, or the name of a model that Ollama has. */
  readonly from: string;
  /** A GGUF adapter to put on top. */
  readonly adapter?: string;
}

export interface Modelfile {
  readonly text: string;
  /** What the user should know. */
  readonly notices: readonly string[];
}

/**
 * Ollama's description of a model: where its weights are, the training's chat template in the syntax of Go's text/template, and the tokens that
 * end an answer. Source: Ollama, docs/modelfile.md and docs/template.md.
 *
 * A template that writes chats as none of the named ones is left out: Ollama then looks for one that it knows in the GGUF file itself.
 */
export function ollamaModelfile({ from, adapter }: ModelfileOptions, { tokenizer, template }: ChatFormat): Modelfile {
  const lines = [`FROM ${from}`];
  if (adapter !== undefined) lines.push(`ADAPTER ${adapter}`);
  const known = formatOf(template, tokenizer.roles);
  const format = known !== undefined && canBeSaid(known) ? known : undefined;
  if (format !== undefined) lines.push(`TEMPLATE """${goTemplate(format, tokenizer.roles, { addsBos: tokenizer.addsBos })}"""`);
  for (const id of tokenizer.stopIds) lines.push(`PARAMETER stop ${JSON.stringify(tokenizer.decode([id], { special: true }))}`);
  const notices =
    format === undefined
      ? [
          "Ollama's template language cannot say, or attune does not know how to say, what the chat template does. So the Modelfile has no " +
            "TEMPLATE: Ollama takes the one in the GGUF file if it knows it. Compare an answer with `attune chat` before you rely on it.",
        ]
      : [];
  return { text: `${lines.join("\n")}\n`, notices };
}

/** Go's templates cannot ask whether an answer holds thoughts; and a system message from a stranger's template must stay text. */
function canBeSaid({ noThoughts, defaultSystem = "" }: TemplateFormat): boolean {
  return noThoughts === undefined && !defaultSystem.includes("{{") && !defaultSystem.includes('"""');
}

/**
 * A format as a Go template over Ollama's `.System` and `.Messages`, all on one line: outside of its parts every character would be text.
 * A last message of the assistant is left open, to be gone on with. `addsBos` says that the engine itself begins every text with the
 * begin-of-sequence token.
 */
export function goTemplate(format: TemplateFormat, roles: RoleTokens, { addsBos }: { addsBos: boolean }): string {
  const { start = "", system, user, header, assistant, tool = user, defaultSystem, systemInUser = false } = format;
  const text = (part: string, content = "") =>
    part.replaceAll(/\{\}|<bos>|<eos>/g, (mark) =>
      mark === "{}" ? content : ((mark === "<bos>" ? roles.bos_token : roles.eos_token) ?? ""),
    );
  const content = "{{ .Content }}";
  const beginsWithBos = addsBos
    ? (part: string) => part.replace(/^<bos>/, "{{ if ne $i $first }}<bos>{{ end }}")
    : (part: string) => part;

  const opening = [addsBos ? text(start.replace(/^<bos>/, "")) : text(start)];
  const systemPart = (given: string) => {
    const other = defaultSystem === undefined ? "" : `{{ else }}${text(system, defaultSystem)}`;
    return `{{ if ${given} }}${text(system, `{{ ${given} }}`)}${other}{{ end }}`;
  };
  if (!systemInUser) opening.push(systemPart(".System"));
  const inUser = systemInUser ? `{{ if eq $i $first }}${systemPart("$.System")}{{ end }}` : "";
  const [userBefore, userAfter] = beginsWithBos(user).split("{}") as [string, string];
  const [answer, end] = assistant.split("{}") as [string, string];
  const turns = [
    `{{ if eq .Role "user" }}${text(userBefore)}${inUser}${content}${text(userAfter)}`,
    `{{ else if eq .Role "assistant" }}${text(header)}${text(answer)}${content}{{ if not $last }}${text(end)}{{ end }}`,
    `{{ else if eq .Role "tool" }}${text(beginsWithBos(tool), content)}{{ end }}`,
  ];
  const needsFirst = systemInUser || user.startsWith("<bos>");
  return [
    ...opening,
    needsFirst ? "{{ $first := 0 }}{{ if .System }}{{ $first = 1 }}{{ end }}" : "", // .Messages has the system message too
    "{{ range $i, $_ := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}",
    ...turns,
    header === "" ? "" : `{{ if and $last (ne .Role "assistant") }}${text(header)}{{ end }}`,
    "{{ end }}",
  ].join("");
}
