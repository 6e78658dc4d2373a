import { type FileHandle, open, stat } from "node:fs/promises";
import { CheckpointError } from "../errors.js";
import { replaceFile, reportingFullDisk, systemErrorCode } from "../io/disk.js";

/**
 * A file of JSON, one value a line, that grows while a run works. It notices after each line when the file under its name no longer holds all that was
 * written: somebody deleted it, its folder or lines of it, or put something else in its place.
 */
export class LogFile {
  readonly #path: string;
  readonly #file: FileHandle;
  #bytes: number;

  private constructor(path: string, file: FileHandle, bytes: number) {
    this.#path = path;
    this.#file = file;
    this.#bytes = bytes;
  }

  /** Begins the file anew with some values. Throws NoSpaceError. */
  static async create(path: string, values: AsyncIterable<object> | Iterable<object>): Promise<LogFile> {
    let bytes = 0;
    await replaceFile(path, async (file) => {
      for await (const value of values) {
        const line = toLine(value);
        bytes += Buffer.byteLength(line);
        await file.appendFile(line);
      }
    });
    return new LogFile(path, await open(path, "a"), bytes);
  }

  /** Throws NoSpaceError on a full disk, CheckpointError if the file is not what was written. */
  async append(value: object): Promise<void> {
    const line = toLine(value);
    await reportingFullDisk(this.#path, () => this.#file.appendFile(line));
    this.#bytes += Buffer.byteLength(line);
    await this.check();
  }

  /** Throws CheckpointError if the file is not what was written. */
  async check(): Promise<void> {
    const size = await sizeOf(this.#path);
    if (size === null || size < this.#bytes)
      throw new CheckpointError(
        `${this.#path}: ${size === null ? "is gone" : `holds ${size} bytes of the ${this.#bytes} that were written`}: somebody ` +
          "deleted, replaced or cut it, or the folder, while the run was at work. The run ends here; what checkpoints are left in the folder are good",
      );
  }

  /** Waits until the lines are on the disk. Throws CheckpointError if the file is not what was written. */
  async sync(): Promise<void> {
    await this.#file.sync();
    await this.check();
  }

  async close(): Promise<void> {
    await this.#file.close();
  }
}

/** Null if there is no such file, or it is none. */
async function sizeOf(path: string): Promise<number | null> {
  try {
    const stats = await stat(path);
    return stats.isFile() ? stats.size : null;
  } catch (error) {
    if (systemErrorCode(error) === "ENOENT" || systemErrorCode(error) === "ENOTDIR") return null;
    throw error;
  }
}

function toLine(value: object): string {
  return `${JSON.stringify(value)}\n`;
}
