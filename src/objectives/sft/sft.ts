import { loadDataset, tokenizeDataset } from "../../data/dataset.js";
import type { Example } from "../../data/example.js";
import { asCausalLM } from "../../models/causal-lm.js";
import { NextTokenConfig, nextTokenTask } from "../next-token.js";
import { defineObjective, type Question } from "../objective.js";

/** Supervised fine-tuning: the model learns to write the assistant's turns of conversations, in its own chat template. */
export const sft = defineObjective<Example, NextTokenConfig>({
  name: "sft",
  summary: "learns to answer as the conversations do",
  config: NextTokenConfig,
  usedBy: "chat",
  measures: ["compute_accuracy"],

  check(model) {
    asCausalLM(model, `stage ${this.name}`);
  },

  async read(dataset, { files, tokenize, chat, warn }) {
    const loaded = await loadDataset({ dataset, ...files });
    const { examples, report } = await tokenizeDataset(loaded.conversations, chat(), tokenize);
    for (const message of [...loaded.notices, ...report.notices]) warn(message);
    return examples;
  },

  task: (_examples, config) => ({ ...nextTokenTask(config), question: lastAnswer }),
});

/** The last supervised tokens of a row that stand together, and all before them. */
function lastAnswer({ ids, supervised }: Example): Question | null {
  let end = ids.length;
  while (end > 0 && supervised[end - 1] !== 1) end--;
  let start = end;
  while (start > 0 && supervised[start - 1] === 1) start--;
  return start === end || start === 0 ? null : { prompt: ids.slice(0, start), label: ids.slice(start, end) };
}
