/**
 * How LLaMA-Factory writes tools and calls of them, as Jinja. `tools` sets `tool_text` from the template's `tools`: it goes behind the system
 * message. `calls` sets `call_text` from `message['tool_calls']`.
 * Source: LLaMA-Factory 0.9.5, src/llamafactory/data/tool_utils.py. Parameters without properties are no error here.
 */
interface ToolFormat {
  readonly tools: string;
  readonly calls: string;
}

export const toolFormatNames = ["default", "qwen", "llama3", "mistral"] as const;
export type ToolFormatName = (typeof toolFormatNames)[number];

/** A list that stands inside a text: each item by the Jinja expression `item`, with `between` in between. */
function each(list: string, item: string, between: string): string {
  const separator = between === "" ? "" : `{% if not loop.last %}{{ ${jinjaString(between)} }}{% endif %}`;
  return `{% for ${list} %}{{ ${item} }}${separator}{% endfor %}`;
}

const asText = (name: string, ...parts: readonly string[]) => `{% set ${name} %}${parts.join("")}{% endset %}`;
const text = (words: string) => `{{ ${jinjaString(words)} }}`;

const wrapped = "(tool if tool.get('type') == 'function' else {'type': 'function', 'function': tool})";
const call = "call in message['tool_calls']";
const callAs = (argumentsKey: string) =>
  `{'name': call['function']['name'], '${argumentsKey}': call['function']['arguments']} | tojson`;

const parameter = [
  "'  - ' + name + ' (' ~ param.get('type', '')",
  "(', required' if name in (parameters.get('required') or []) else '')",
  "'): ' ~ param.get('description', '')",
  "((', should be one of [' + param.get('enum') | join(', ') + ']') if param.get('enum') else '')",
  "((', where each item should be ' ~ param.get('items').get('type', '')) if param.get('items') else '')",
  "'\\n'",
].join(" ~ ");

const toolFormats: Readonly<Record<ToolFormatName, ToolFormat>> = {
  default: {
    tools: asText(
      "tool_text",
      text("You have access to the following tools:\n"),
      "{% set names = namespace(all=[]) %}{% for tool in tools %}",
      "{% set tool = tool.get('function', {}) if tool.get('type') == 'function' else tool %}",
      "{% set names.all = names.all + [tool['name']] %}{% set parameters = tool.get('parameters') or {} %}",
      "{{ '> Tool Name: ' + tool['name'] + '\\nTool Description: ' + tool.get('description', '') + '\\nTool Args:\\n' }}",
      each("name, param in (parameters.get('properties') or {}).items()", parameter, ""),
      "{{ '\\n' }}{% endfor %}",
      text("Use the following format if using a tool:\n```\nAction: tool name (one of ["),
      "{{ names.all | join(', ') }}",
      text(
        '])\nAction Input: the input to the tool, in a JSON format representing the kwargs (e.g. ```{"input": "hello world", "num_beams": 5}```)\n```\n',
      ),
    ),
    calls: asText(
      "call_text",
      each(call, "'Action: ' + call['function']['name'] + '\\nAction Input: ' + call['function']['arguments'] | tojson", "\n"),
    ),
  },
  qwen: {
    tools: asText(
      "tool_text",
      text(
        "\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided with function signatures within <tools></tools> XML tags:\n<tools>",
      ),
      each("tool in tools", `'\\n' + ${wrapped} | tojson`, ""),
      text(
        '\n</tools>\n\nFor each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>',
      ),
    ),
    calls: asText("call_text", each(call, `'<tool_call>\\n' + ${callAs("arguments")} + '\\n</tool_call>'`, "\n")),
  },
  llama3: {
    tools: asText(
      "tool_text",
      text("Cutting Knowledge Date: December 2023\nToday Date: "),
      "{{ strftime_now('%d %b %Y') }}",
      text(
        '\n\nYou have access to the following functions. To call a function, please respond with JSON for a function call. Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}. Do not use variables.\n\n',
      ),
      each("tool in tools", `${wrapped} | tojson(indent=4) + '\\n\\n'`, ""),
    ),
    calls: asText(
      "call_text",
      "{% if message['tool_calls'] | length > 1 %}{{ '[' }}{% endif %}",
      each(call, callAs("parameters"), ", "),
      "{% if message['tool_calls'] | length > 1 %}{{ ']' }}{% endif %}",
    ),
  },
  mistral: {
    tools: asText(
      "tool_text",
      text("[AVAILABLE_TOOLS] ["),
      each("tool in tools", `${wrapped} | tojson`, ", "),
      text("][/AVAILABLE_TOOLS]"),
    ),
    calls: asText("call_text", text("["), each(call, callAs("arguments"), ", "), text("]")),
  },
};

/** Sets `tool_text`. */
export function toolsAsText(name: ToolFormatName): string {
  return toolFormats[name].tools;
}

/** Sets `call_text`. */
export function callsAsText(name: ToolFormatName): string {
  return toolFormats[name].calls;
}

/** Sets `content` to the words of `message` and its calls behind them. */
export const contentWithCalls =
  "{% set content = (content + ('' if content.endswith('\\n') else '\\n') + call_text) if content else call_text %}";

/** A template that has no place for tools and calls, with both written into the messages before it begins. */
export function withToolFormat(source: string, name: ToolFormatName): string {
  const append = (message: string) => `{% set told.messages = told.messages + [${message}] %}`;
  const prelude = [
    "{% set told = namespace(messages=[]) %}",
    `{% if tools %}${toolsAsText(name)}{% if messages[0]['role'] != 'system' %}${append("{'role': 'system', 'content': tool_text}")}{% endif %}{% endif %}`,
    "{% for message in messages %}{% if message['tool_calls'] %}{% set content = message['content'] or '' %}",
    `${callsAsText(name)}${contentWithCalls}{% if message['reasoning_content'] %}`,
    append("{'role': message['role'], 'reasoning_content': message['reasoning_content'], 'content': content}"),
    `{% else %}${append("{'role': message['role'], 'content': content}")}{% endif %}`,
    `{% elif loop.first and tools and message['role'] == 'system' %}${append("{'role': 'system', 'content': message['content'] + tool_text}")}`,
    `{% else %}${append("message")}{% endif %}{% endfor %}{% set messages = told.messages %}{% set tools = none %}`,
  ];
  // A line break behind a block is not written, and the template begins on a line of its own, as it did.
  return `${prelude.join("")}\n${source}`;
}

/** A text as a literal of Jinja. */
export function jinjaString(words: string): string {
  return `'${words.replaceAll("\\", "\\\\").replaceAll("'", "\\'").replaceAll("\n", "\\n")}'`;
}
