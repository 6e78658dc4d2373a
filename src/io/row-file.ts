import { type FileHandle, open, readFile, stat } from "node:fs/promises";
import { basename, dirname, resolve } from "node:path";
import { CheckpointError, DataError } from "../errors.js";
import { folderError, makeFolder, syncFolder, systemErrorCode } from "./disk.js";
import { type Lock, takeLock } from "./lock.js";
import { parseJson } from "./strict-json.js";

/** What the rows of a file are. */
export interface RowKind<Row> {
  /** As errors call such a file: "a label store". */
  readonly name: string;
  /** What every row's line begins with: what is left of a torn one is told from a file of somebody else's by it. */
  readonly start: string;
  /** The row that a value is, or why it is none. */
  read(value: unknown): { readonly row: Row } | { readonly fault: string };
}

/** What a file of rows holds. */
export interface ReadRowFile<Row> {
  readonly rows: readonly Row[];
  /** Bytes behind the last whole row: the beginning of one, which a killed process left. */
  readonly tornBytes: number;
}

/**
 * Reads a file of rows without locking it; one that is not there has none. A torn last line is told and left alone.
 * Throws DataError that names the line for a file of something else.
 */
export async function readRowFile<Row>(path: string, kind: RowKind<Row>): Promise<ReadRowFile<Row>> {
  const { rows, tornBytes } = parse(await contentOf(path), path, kind);
  return { rows, tornBytes };
}

async function contentOf(path: string): Promise<Buffer> {
  try {
    return await readFile(path);
  } catch (error) {
    if (systemErrorCode(error) === "ENOENT") return Buffer.alloc(0);
    throw new DataError(`${path}: cannot be read: ${error instanceof Error ? error.message : String(error)}`, { cause: error });
  }
}

interface Parsed<Row> extends ReadRowFile<Row> {
  /** Where each row begins. */
  readonly starts: readonly number[];
  readonly lacksNewline: boolean;
}

function parse<Row>(content: Buffer, path: string, kind: RowKind<Row>): Parsed<Row> {
  const rows: Row[] = [];
  const starts: number[] = [];
  let [from, lacksNewline] = [0, false];
  for (let line = 1; from < content.length; line++) {
    const found = content.indexOf(0x0a, from);
    const end = found < 0 ? content.length : found;
    const text = content.toString("utf8", from, end);
    lacksNewline = found < 0;
    if (text.trim() !== "") {
      const read = rowIn(text, kind);
      if ("fault" in read) {
        if (lacksNewline && isTorn(text, kind)) return { rows, starts, tornBytes: content.length - from, lacksNewline: false };
        throw new DataError(`${path}:${line}: this is no row of ${kind.name}: ${read.fault}`);
      }
      rows.push(read.row);
      starts.push(from);
    }
    from = end + 1;
  }
  return { rows, starts, tornBytes: 0, lacksNewline };
}

function rowIn<Row>(text: string, kind: RowKind<Row>): ReturnType<RowKind<Row>["read"]> {
  let value: unknown;
  try {
    value = parseJson(text);
  } catch (error) {
    return { fault: `not valid JSON: ${error instanceof Error ? error.message : String(error)}` };
  }
  return kind.read(value);
}

/** Whether a line without an end can be what is left of a row: what somebody else wrote is never cut. A power failure may leave zeros. */
function isTorn(text: string, { start }: RowKind<unknown>): boolean {
  const written = text.replace(/\0+$/, "");
  return written.startsWith(start) || start.startsWith(written);
}

/**
 * A file of JSON rows, one a line, that a kill cannot tear. A row counts once `append` has resolved: it is then whole and on the disk, and a process that is
 * killed later cannot lose it. What a killed process left of the row it was writing is cut off when the file is opened again, and told.
 * Rows are only ever added at the end; `undo` takes the last one away. One process at a time writes (`PATH.lock`), any number may read.
 */
export class RowFile<Row> {
  readonly path: string;
  readonly #file: FileHandle;
  readonly #lock: Lock;
  readonly #rows: Row[];
  readonly #starts: number[];
  #bytes: number;
  /** Writes wait for one another. */
  #last: Promise<unknown> = Promise.resolve();

  private constructor(path: string, file: FileHandle, lock: Lock, { rows, starts }: Parsed<Row>, bytes: number) {
    this.path = path;
    this.#file = file;
    this.#lock = lock;
    this.#rows = [...rows];
    this.#starts = [...starts];
    this.#bytes = bytes;
  }

  /**
   * Opens a file, or begins one. `onNotice` is told of a torn last line, which is cut off. Throws CheckpointError where another process has the file or it
   * cannot be written, DataError for a file of something else; such a file stays as it is.
   */
  static async open<Row>(
    path: string,
    kind: RowKind<Row>,
    { onNotice = () => {} }: { onNotice?: ((message: string) => void) | undefined } = {},
  ): Promise<RowFile<Row>> {
    const lock = await lockOf(path);
    let file: FileHandle | undefined;
    try {
      const content = await contentOf(path);
      const parsed = parse(content, path, kind);
      const bytes = content.length - parsed.tornBytes;
      file = await open(path, "a");
      if (parsed.tornBytes > 0) await file.truncate(bytes);
      if (parsed.lacksNewline) await file.write("\n");
      await file.datasync();
      if (content.length === 0) await syncFolder(dirname(resolve(path)));
      if (parsed.tornBytes > 0)
        onNotice(
          `${path}: the last ${parsed.tornBytes} bytes were half a row, left by a process that was killed; they are cut off`,
        );
      return new RowFile(path, file, lock, parsed, bytes + (parsed.lacksNewline ? 1 : 0));
    } catch (error) {
      await file?.close();
      await lock.release();
      throw await folderError(dirname(resolve(path)), error);
    }
  }

  /** In the order in which they were added. */
  get rows(): readonly Row[] {
    return this.#rows;
  }

  /**
   * Adds a row; it is on the disk when this resolves. Throws CheckpointError or NoSpaceError where it cannot be written, or another program changed the file;
   * the rows before it stay.
   */
  append(row: Row): Promise<void> {
    return this.#write(async () => {
      const line = Buffer.from(`${JSON.stringify(row)}\n`);
      try {
        for (let done = 0; done < line.length; ) done += (await this.#file.write(line, done)).bytesWritten;
        await this.#file.datasync();
      } catch (error) {
        await this.#file.truncate(this.#bytes).catch(() => {}); // where even that fails, the next opening cuts it
        throw error;
      }
      this.#starts.push(this.#bytes);
      this.#rows.push(row);
      this.#bytes += line.length;
    });
  }

  /** Takes the last row away and returns it; undefined if there is none. Throws as `append`. */
  undo(): Promise<Row | undefined> {
    return this.#write(async () => {
      const start = this.#starts.at(-1);
      if (start === undefined) return undefined;
      await this.#file.truncate(start);
      await this.#file.datasync();
      this.#bytes = start;
      this.#starts.pop();
      return this.#rows.pop();
    });
  }

  /** Waits for what is being written, and lets others write. */
  async close(): Promise<void> {
    await this.#last;
    await this.#file.close();
    await this.#lock.release();
  }

  #write<T>(work: () => Promise<T>): Promise<T> {
    const result = this.#last.then(async () => {
      try {
        await this.#checkUnchanged();
        return await work();
      } catch (error) {
        throw await folderError(dirname(resolve(this.path)), error);
      }
    });
    this.#last = result.catch(() => {});
    return result;
  }

  /** What is written into a file that was deleted or replaced would be lost, and where somebody else wrote, rows could be torn. */
  async #checkUnchanged(): Promise<void> {
    const [mine, there] = await Promise.all([this.#file.stat(), stat(this.path)]);
    if (mine.ino !== there.ino || mine.dev !== there.dev)
      throw new CheckpointError(`${this.path}: was replaced by another file while it was open; open it again`);
    if (mine.size !== this.#bytes)
      throw new CheckpointError(`${this.path}: another program wrote to it while it was open; open it again`);
  }
}

async function lockOf(path: string): Promise<Lock> {
  const lockPath = `${path}.lock`;
  try {
    await makeFolder(dirname(resolve(path)));
    const lock = await takeLock(lockPath);
    if ("release" in lock) return lock;
    throw new CheckpointError(
      `${path}: process ${lock.pid} on host ${lock.host} has been writing to it since ${lock.startedAt}. Wait for it, or write into ` +
        `another file. If it is gone for certain, delete ${basename(lockPath)} beside it.`,
    );
  } catch (error) {
    throw await folderError(dirname(resolve(path)), error);
  }
}
