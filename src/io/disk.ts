import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { type FileHandle, mkdir, open, readdir, rename, rm, stat, statfs } from "node:fs/promises";
import { basename, dirname, join, relative, resolve } from "node:path";
import { CheckpointError, NoSpaceError } from "../errors.js";

/** The code of a system error (`ENOENT`, `ENOSPC`, …), or undefined for anything else. */
export function systemErrorCode(error: unknown): string | undefined {
  const code = error instanceof Error && "code" in error ? error.code : undefined;
  return typeof code === "string" ? code : undefined;
}

/** The names in a folder; none if the folder does not exist. */
export async function namesIn(folder: string): Promise<string[]> {
  try {
    return await readdir(folder);
  } catch (error) {
    if (systemErrorCode(error) === "ENOENT") return [];
    throw error;
  }
}

/**
 * Runs a write and turns "disk full" and "quota exceeded" into NoSpaceError. `stillSafe` says what was saved before, for the message.
 */
export async function reportingFullDisk<T>(
  path: string,
  write: () => Promise<T>,
  { neededBytes, stillSafe }: { neededBytes?: number | undefined; stillSafe?: (() => Promise<string>) | undefined } = {},
): Promise<T> {
  try {
    return await write();
  } catch (error) {
    const code = systemErrorCode(error);
    if (code === undefined || !isFull(code)) throw error;
    throw new NoSpaceError(await noSpaceMessage(path, neededBytes, stillSafe), { cause: error });
  }
}

/**
 * Makes a folder and those that it lies in. Node's own `recursive` never ends where an existing folder can hold no other
 * (`/proc`).
 */
export async function makeFolder(path: string): Promise<void> {
  try {
    await mkdir(path);
  } catch (error) {
    const code = systemErrorCode(error);
    if (code === "EEXIST" && (await isFolder(path))) return;
    const parent = dirname(path);
    if (code !== "ENOENT" || parent === path || (await isFolder(parent))) throw error;
    await makeFolder(parent);
    await makeFolder(path);
  }
}

async function isFolder(path: string): Promise<boolean> {
  return await stat(path).then(
    (stats) => stats.isDirectory(),
    () => false,
  );
}

/** What an error of the system says of a file that was to be written. */
const refusals: Readonly<Record<string, string>> = {
  ENOENT: "it, or the folder for it, was deleted or moved",
  ENOTDIR: "there is a file where its folder should be",
  EEXIST: "something else is in its place",
  EISDIR: "there is a folder in its place",
  ERR_FS_EISDIR: "there is a folder in its place",
  ENOTEMPTY: "there is a folder in its place",
  EACCES: "choose a folder you may write to",
  EPERM: "choose a folder you may write to",
  EROFS: "choose a folder you may write to",
  EFBIG: "files may not be as large there",
  EIO: "the disk failed",
  ESTALE: "its disk is no longer there",
};

/**
 * An error that came up while a folder was written to, for the user: what the system says of a path in it, or of a file already open, becomes
 * CheckpointError, or NoSpaceError if the disk is full. Any other error is returned as it is.
 */
export async function folderError(folder: string, error: unknown): Promise<unknown> {
  const code = systemErrorCode(error);
  if (code === undefined || !(error instanceof Error) || !("syscall" in error)) return error;
  const path = "path" in error && typeof error.path === "string" ? error.path : folder;
  if (relative(resolve(folder), resolve(path)).startsWith("..")) return error;
  if (isFull(code)) return new NoSpaceError(await noSpaceMessage(folder, undefined), { cause: error });
  return new CheckpointError(`${path}: cannot be written (${code})${refusals[code] ? `: ${refusals[code]}` : ""}`, {
    cause: error,
  });
}

const isFull = (code: string) => code === "ENOSPC" || code === "EDQUOT";

/** Throws NoSpaceError if the file system of an existing folder has less than `neededBytes` free. */
export async function requireSpace(folder: string, neededBytes: number, stillSafe?: () => Promise<string>): Promise<void> {
  const free = await freeBytes(folder);
  if (free < neededBytes) throw new NoSpaceError(await noSpaceMessage(folder, neededBytes, stillSafe));
}

async function freeBytes(folder: string): Promise<number> {
  const { bavail, bsize } = await statfs(folder);
  return bavail * bsize;
}

async function noSpaceMessage(path: string, neededBytes: number | undefined, stillSafe?: () => Promise<string>): Promise<string> {
  const free = await freeBytes(path)
    .catch(() => freeBytes(dirname(path)))
    .catch(() => 0);
  const need = neededBytes === undefined ? "more than is free" : megabytes(neededBytes);
  const rest = stillSafe ? `; ${await stillSafe()}` : "";
  return `No space left: need ${need}, have ${megabytes(free)} at ${path}${rest}. Free some space or choose another folder, then run again.`;
}

function megabytes(bytes: number): string {
  return `${(bytes / 1e6).toFixed(bytes < 10e6 ? 2 : 0)} MB`;
}

/**
 * Replaces a file so that a reader, also one after a power failure, sees the old bytes or the new ones and never a mix:
 * write aside, fsync, rename, fsync of the folder. Throws NoSpaceError on a full disk; the old file then stays.
 */
export async function writeFileAtomic(path: string, data: string | Uint8Array): Promise<void> {
  await replaceFile(path, (file) => file.writeFile(data), { neededBytes: Buffer.byteLength(data) });
}

/** As `writeFileAtomic`, for content that `write` streams into the open file. */
export async function replaceFile(
  path: string,
  write: (file: FileHandle) => Promise<void>,
  { fsync = true, neededBytes }: { fsync?: boolean; neededBytes?: number } = {},
): Promise<void> {
  const aside = join(dirname(path), `.tmp-${basename(path)}-${process.pid}`);
  try {
    await reportingFullDisk(
      path,
      async () => {
        const file = await open(aside, "w");
        try {
          await write(file);
          if (fsync) await file.sync();
        } finally {
          await file.close();
        }
        await rename(aside, path);
      },
      { neededBytes },
    );
  } catch (error) {
    await rm(aside, { force: true });
    throw error;
  }
  if (fsync) await syncFolder(dirname(path));
}

/** Makes the names in a folder durable. Windows cannot open folders, and has no need to. */
export async function syncFolder(folder: string): Promise<void> {
  if (process.platform === "win32") return;
  const handle = await open(folder, "r");
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}

/** sha256 of a file as hex. */
export async function sha256OfFile(path: string): Promise<string> {
  const hash = createHash("sha256");
  for await (const chunk of createReadStream(path, { highWaterMark: 1 << 20 })) hash.update(chunk as Uint8Array);
  return hash.digest("hex");
}

const maxReadBytes = 1 << 30; // one read(2) returns at most 2 GiB

/** Fills `target` from a position of a file; returns how many bytes there were. */
export async function readFully(file: FileHandle, target: Uint8Array, position: number): Promise<number> {
  let done = 0;
  while (done < target.length) {
    const { bytesRead } = await file.read(target, done, Math.min(target.length - done, maxReadBytes), position + done);
    if (bytesRead === 0) break;
    done += bytesRead;
  }
  return done;
}
