import { AttuneError } from "../errors.js";
import { loadDataset } from "./dataset.js";
import type { Conversation } from "./formats.js";

/** How many rows of each data set are looked at: they are read again, so never all of a large one. */
const rowsLookedAt = 1000;

/**
 * The system message that conversations begin with, if the first rows all have the same one: a model answers best under what it was trained under.
 * Undefined where they differ or have none, and for data that are no conversations.
 */
export async function systemPromptOf(dataset: readonly string[], datasetDir: string): Promise<string | undefined> {
  let rows: readonly Conversation[];
  try {
    rows = (await loadDataset({ dataset, datasetDir, maxSamples: rowsLookedAt, onBadRow: "skip" })).conversations;
  } catch (error) {
    if (error instanceof AttuneError) return undefined;
    throw error;
  }
  const [first, ...others] = rows.map(({ messages: [message] }) => (message?.role === "system" ? message.content : undefined));
  return others.every((other) => other === first) ? first : undefined;
}
