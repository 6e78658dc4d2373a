import { type FileHandle, open, readdir } from "node:fs/promises";
import { hostname } from "node:os";
import { join } from "node:path";
import { CheckpointError } from "../errors.js";
import { makeFolder, namesIn, reportingFullDisk, systemErrorCode } from "../io/disk.js";

/** A number under its tag: `train/loss`. */
export type Scalars = Readonly<Record<string, number>>;

/** `runs/Nov25_12-30-05_HOST` in the output folder: the folder of transformers and PyTorch for a run that begins now. */
export function newLoggingDir(outputDir: string, now = new Date()): string {
  const month = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"][now.getMonth()];
  const two = (value: number) => String(value).padStart(2, "0");
  const time = [now.getHours(), now.getMinutes(), now.getSeconds()].map(two).join("-");
  return join(outputDir, "runs", `${month}${two(now.getDate())}_${time}_${hostname()}`);
}

/** The folder of the run that went last, which a resumed run writes on in; null if there is none. */
export async function lastLoggingDir(outputDir: string): Promise<string | null> {
  let last: { folder: string; seconds: number } | null = null;
  for (const name of await namesIn(join(outputDir, "runs"))) {
    const folder = join(outputDir, "runs", name);
    const seconds = await newestIn(folder);
    if (seconds > (last?.seconds ?? 0)) last = { folder, seconds };
  }
  return last?.folder ?? null;
}

/**
 * A log that TensorBoard shows, in a file of its own: records of protobuf messages `Event`, each with checksums, so that one that a killed run has cut is
 * passed over. TensorBoard reads the files of a folder by their names one after the other; a file says first from which step on it replaces what stands in
 * those before.
 *
 * Source of the format: tensorboard's `compat/proto/event.proto` and `summary.proto`; TFRecord, tensorflow.org/tutorials/load_data/tfrecord.
 */
export class EventFile {
  readonly #path: string;
  readonly #file: FileHandle;

  private constructor(path: string, file: FileHandle) {
    this.#path = path;
    this.#file = file;
  }

  /** A new file in the folder, which counts from `firstStep` on. Throws NoSpaceError, CheckpointError if the folder cannot be written to. */
  static async create(folder: string, firstStep: number, now = Date.now()): Promise<EventFile> {
    try {
      await makeFolder(folder);
      const seconds = Math.max(Math.floor(now / 1000), (await newestIn(folder)) + 1);
      const path = join(folder, `events.out.tfevents.${seconds}.${hostname()}.${process.pid}.0`);
      const log = new EventFile(path, await open(path, "wx"));
      await log.#append(Buffer.concat([versionRecord(now), sessionRecord(now, firstStep)]));
      return log;
    } catch (error) {
      const code = systemErrorCode(error);
      if (code === undefined) throw error;
      throw new CheckpointError(`logging_dir: ${folder} cannot be written to (${code}): choose another folder`, { cause: error });
    }
  }

  /** Throws NoSpaceError. */
  async add(step: number, scalars: Scalars, now: number): Promise<void> {
    await this.#append(scalarsRecord(now, step, scalars));
  }

  async sync(): Promise<void> {
    await this.#file.sync();
  }

  async close(): Promise<void> {
    await this.#file.close();
  }

  async #append(bytes: Uint8Array): Promise<void> {
    await reportingFullDisk(this.#path, () => this.#file.appendFile(bytes));
  }
}

/** Seconds in the name of the newest file in a folder, by which TensorBoard orders them; 0 if there is none. */
async function newestIn(folder: string): Promise<number> {
  const names = await readdir(folder).catch(() => []);
  return names.reduce((most, name) => Math.max(most, Number(/tfevents\.(\d{10})\./.exec(name)?.[1] ?? 0)), 0);
}

export async function hasEventFiles(folder: string): Promise<boolean> {
  return (await newestIn(folder)) > 0;
}

/** What an entry of `log_history` says, under the tags that transformers gives it: `eval_loss` is `eval/loss`, all else is `train/…`. */
export function scalarsOf(entry: object): Scalars {
  const { step: _, epoch, ...values } = entry as Record<string, unknown>;
  const all = "loss" in values ? { ...values, epoch } : values; // an evaluation has the epoch of its step
  const tagged = Object.entries(all).flatMap(([key, value]): [string, number][] =>
    typeof value === "number" ? [[key.startsWith("eval_") ? `eval/${key.slice("eval_".length)}` : `train/${key}`, value]] : [],
  );
  return Object.fromEntries(tagged);
}

/** The first record of a file. `now` in milliseconds. */
export const versionRecord = (now: number) => record(event(now, 0, field(3, utf8("brain.Event:2"))));

/** Says that what comes replaces all from a step on: a SessionLog whose status is START. */
export const sessionRecord = (now: number, firstStep: number) => record(event(now, firstStep, field(7, [number(1, 1)])));

export function scalarsRecord(now: number, step: number, scalars: Scalars): Buffer {
  const values = Object.entries(scalars).map(([tag, value]) => field(1, [field(1, utf8(tag)), float(2, value)]));
  return record(event(now, step, field(5, values)));
}

function event(now: number, step: number, what: Uint8Array): Buffer {
  const seconds = Buffer.alloc(9);
  seconds[0] = keyOf(1, 1);
  seconds.writeDoubleLE(now / 1000, 1);
  return Buffer.concat([seconds, ...(step > 0 ? [number(2, step)] : []), what]); // protobuf leaves out what is 0
}

const utf8 = (text: string) => [Buffer.from(text, "utf8")];
const keyOf = (id: number, type: number) => (id << 3) | type;

/** A field of the type "length-delimited": a text or a message. */
function field(id: number, parts: readonly Uint8Array[]): Buffer {
  const body = Buffer.concat(parts);
  return Buffer.concat([Buffer.from([keyOf(id, 2)]), varint(body.length), body]);
}

function number(id: number, value: number): Buffer {
  return Buffer.concat([Buffer.from([keyOf(id, 0)]), varint(value)]);
}

function float(id: number, value: number): Buffer {
  const bytes = Buffer.alloc(5);
  bytes[0] = keyOf(id, 5);
  bytes.writeFloatLE(value, 1);
  return bytes;
}

function varint(value: number): Buffer {
  const bytes: number[] = [];
  for (; value >= 128; value = Math.floor(value / 128)) bytes.push((value % 128) + 128);
  return Buffer.from([...bytes, value]);
}

/** Length, its checksum, the message, its checksum. */
function record(message: Buffer): Buffer {
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(message.length));
  return Buffer.concat([length, checksum(length), message, checksum(message)]);
}

/** CRC-32C, turned by 15 bits and moved by a constant, as TFRecord masks it. */
function checksum(bytes: Uint8Array): Buffer {
  let crc = 0xffffffff;
  for (const byte of bytes) crc = (crc >>> 8) ^ crcTable[(crc ^ byte) & 0xff]!;
  crc = ~crc >>> 0;
  const masked = Buffer.alloc(4);
  masked.writeUInt32LE((((crc >>> 15) | (crc << 17)) + 0xa282ead8) >>> 0);
  return masked;
}

/** Of Castagnoli's polynomial, reversed. */
const crcTable = Uint32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte;
  for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0x82f63b78 : crc >>> 1;
  return crc;
});
