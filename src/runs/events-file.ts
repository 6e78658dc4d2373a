import { createReadStream } from "node:fs";
import { stat } from "node:fs/promises";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { systemErrorCode } from "../io/disk.js";
import { parseJson } from "../io/strict-json.js";
import type { RecordedEvent } from "./events.js";

/** Where the events of a run lie in its folder. */
export function eventsPath(outputDir: string): string {
  return join(outputDir, "events.jsonl");
}

/**
 * The events of a run, in order. A torn last line, which a run that was killed may leave, is passed over; so is any other line that is
 * no event. A file that is not there has none.
 */
export async function* readEvents(path: string): AsyncGenerator<RecordedEvent> {
  if (!(await isFile(path))) return;
  const input = createReadStream(path, "utf8");
  try {
    for await (const line of createInterface({ input, crlfDelay: Number.POSITIVE_INFINITY })) {
      const event = parseEvent(line);
      if (event) yield event;
    }
  } catch (error) {
    if (systemErrorCode(error) !== "ENOENT") throw error;
  } finally {
    input.destroy();
  }
}

/** Undefined for a line that is no event. */
export function parseEvent(line: string): RecordedEvent | undefined {
  try {
    const value = parseJson(line);
    const isEvent = typeof value === "object" && value !== null && "type" in value && typeof value.type === "string";
    return isEvent ? (value as RecordedEvent) : undefined;
  } catch {
    return undefined;
  }
}

async function isFile(path: string): Promise<boolean> {
  return await stat(path).then(
    (stats) => stats.isFile(),
    () => false,
  );
}
