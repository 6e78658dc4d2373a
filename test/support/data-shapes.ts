import assert from "node:assert/strict";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { loadDataset, tokenizeDataset } from "../../src/data/dataset.js";
import type { Example } from "../../src/data/example.js";
import { previewRow } from "../../src/data/preview.js";
import { DataError } from "../../src/errors.js";
import { ChatTemplate, type Dialogue } from "../../src/text/chat-template.js";
import type { ChatFormat } from "../../src/text/supervised.js";
import { chooseTemplate } from "../../src/text/templates.js";
import { byteLevel as tokenizer } from "../../src/text/testing/byte-level.js";

/** What another program makes of a row: the text, and what of it is learned; or why its template refuses it. */
export interface Written {
  readonly text?: string;
  readonly learned?: readonly string[];
  readonly error?: string;
}

/** test/fixtures/data-shapes.json. */
export interface Shapes {
  readonly templates: Readonly<Record<string, string>>;
  readonly rows: Readonly<Record<string, readonly object[]>>;
  /** Shape → program and template → what it makes of each row. */
  readonly rendered: Readonly<Record<string, Readonly<Record<string, readonly Written[]>>>>;
}

/** Previews each row of every shape as attune does, and compares with what the others made. Returns how often they agree, and refuse alike. */
export async function compareShapes({ templates, rows, rendered }: Shapes): Promise<{ equal: number; refused: number }> {
  const folder = await mkdtemp(join(tmpdir(), "attune-shapes-"));
  const counts = { equal: 0, refused: 0 };
  try {
    for (const [shape, all] of Object.entries(rows)) {
      await writeFile(join(folder, `${shape}.jsonl`), all.map((row) => JSON.stringify(row)).join("\n"));
      const { conversations } = await loadDataset({ dataset: `${shape}.jsonl`, datasetDir: folder });
      assert.equal(conversations.length, all.length);
      for (const [program, expected] of Object.entries(rendered[shape]!))
        for (const [i, dialogue] of conversations.entries()) {
          const label = `${shape}, row ${i + 1}, ${program}`;
          const outcome = await compareRow(dialogue, formatOf(program, templates), expected[i]!, label);
          counts[outcome]++;
        }
    }
    return counts;
  } finally {
    await rm(folder, { recursive: true });
  }
}

function formatOf(program: string, templates: Shapes["templates"]): ChatFormat {
  const name = program.split(" ").at(-1)!;
  if (program.startsWith("LLaMA-Factory") && !program.includes("v1"))
    return { tokenizer, template: chooseTemplate(tokenizer, { name, now: new Date(2026, 2, 5) }).template };
  return { tokenizer, template: new ChatTemplate(templates[name]!, { roles: tokenizer.roles, origin: name }) };
}

async function compareRow(
  dialogue: Dialogue & { readonly where: string },
  chat: ChatFormat,
  expected: Written,
  label: string,
): Promise<"equal" | "refused"> {
  let examples: Example[];
  try {
    ({ examples } = await tokenizeDataset([dialogue], chat, { cutoffLen: 1e6 }));
  } catch (error) {
    assert.ok(error instanceof DataError, `${label}: ${error}`);
    const isLost = expected.text === undefined || losesWords(dialogue, expected.text);
    assert.ok(isLost, `${label}: ${error.message}`);
    return "refused";
  }
  assert.equal(expected.error, undefined, label);
  const { pieces } = previewRow(examples[0]!, tokenizer);
  assert.equal(pieces.map(({ text }) => text).join(""), expected.text, label);
  assert.deepEqual(
    pieces.filter(({ supervised }) => supervised).map(({ text }) => text),
    expected.learned,
    label,
  );
  return "equal";
}

/** Whether the other's text lacks a call, a tool or the last thoughts: what it drops, attune refuses. */
function losesWords({ messages, tools = [] }: Dialogue, text: string): boolean {
  const calls = messages.flatMap(({ tool_calls = [] }) => tool_calls.map(({ function: { name } }) => name));
  const names = tools.map((tool) => (tool.function as { name: string }).name);
  const said = messages.filter(({ tool_calls }) => tool_calls !== undefined).map(({ content }) => content);
  const thoughts = messages.at(-1)!.reasoning_content ?? "";
  return [...calls, ...names, ...said, thoughts.trim()].some((words) => !text.includes(words));
}
