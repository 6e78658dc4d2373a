import { open, stat } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";
import { systemErrorCode } from "../io/disk.js";
import type { RecordedEvent } from "./events.js";
import { eventsPath, parseEvent } from "./events-file.js";

const pollMs = 100;
const chunkBytes = 1 << 16;

/**
 * The events of a run from the first on, each as soon as it is written, from any process, until `signal` ends it. It waits for a folder that is not
 * there, or no longer there. A run may begin, end and be resumed meanwhile; a `start` says from which step on what came before is void.
 */
export async function* followRun(outputDir: string, signal: AbortSignal): AsyncGenerator<RecordedEvent> {
  const file = new GrowingFile(eventsPath(outputDir));
  let latest = "";
  while (!signal.aborted) {
    for await (const line of file.newLines()) {
      const event = parseEvent(line);
      if (event === undefined || event.time <= latest) continue; // the file was replaced, and this is known
      latest = event.time;
      yield event;
      if (signal.aborted) return;
    }
    await sleep(pollMs, undefined, { signal }).catch(() => {});
  }
}

/** A file that grows, and may be replaced by another of the same name or cut; then its lines come from the first again. */
class GrowingFile {
  readonly #path: string;
  /** Which file was read so far, and up to where: the end of its last whole line. */
  #identity = "";
  #offset = 0;

  constructor(path: string) {
    this.#path = path;
  }

  /** The whole lines that came since the last time. A line without an end is still being written. */
  async *newLines(): AsyncGenerator<string> {
    const file = await openFile(this.#path);
    if (file === null) return;
    try {
      const { dev, ino, birthtimeNs, size } = await file.stat({ bigint: true });
      const identity = `${dev}/${ino}/${birthtimeNs}`; // a number of a file may come again
      if (identity !== this.#identity || size < this.#offset) this.#offset = 0;
      this.#identity = identity;

      let rest = Buffer.alloc(0);
      for (let at = this.#offset; ; ) {
        const { bytesRead, buffer } = await file.read(Buffer.alloc(chunkBytes), 0, chunkBytes, at);
        if (bytesRead === 0) return;
        at += bytesRead;
        const bytes = Buffer.concat([rest, buffer.subarray(0, bytesRead)]);
        const end = bytes.lastIndexOf("\n") + 1;
        rest = bytes.subarray(end);
        for (const line of bytes.toString("utf8", 0, end).split("\n").slice(0, -1)) yield line;
        this.#offset += end;
      }
    } finally {
      await file.close();
    }
  }
}

/** Null if there is no such file. A pipe is not opened: its reader would wait for ever. */
async function openFile(path: string) {
  try {
    return (await stat(path)).isFile() ? await open(path, "r") : null;
  } catch (error) {
    const code = systemErrorCode(error);
    if (code === "ENOENT" || code === "ENOTDIR") return null;
    throw error;
  }
}
