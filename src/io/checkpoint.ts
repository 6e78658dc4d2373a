import { createHash } from "node:crypto";
import { mkdir, open, readdir, readFile, rename, rm, rmdir, stat } from "node:fs/promises";
import { basename, dirname, isAbsolute, join } from "node:path";
import { z } from "zod";
import { CheckpointError } from "../errors.js";
import {
  folderError,
  makeFolder,
  namesIn,
  reportingFullDisk,
  requireSpace,
  sha256OfFile,
  syncFolder,
  systemErrorCode,
} from "./disk.js";
import { isAlive } from "./lock.js";
import { parseJson } from "./strict-json.js";

/**
 * Folders that are there whole or not at all. A folder is written aside as `.tmp-NAME-PID`, every file is synced, then
 * `.complete` lists size and sha256 of each, and one rename gives it its name. Whatever else lies around is never read.
 */

const markerName = ".complete";
const checkpointName = /^checkpoint-(0|[1-9][0-9]{0,14})$/;
const temporaryName = /^\.(?:tmp|trash)-.*-([0-9]+)$/; // being written; being deleted
const replacedName = /^\.old-(.+)-([0-9]+)$/; // makes room for a folder of the same name

const Marker = z.strictObject({
  version: z.literal(1),
  files: z.record(z.string(), z.strictObject({ bytes: z.int().min(0), sha256: z.string().regex(/^[0-9a-f]{64}$/) })),
  /** sha256 of the JSON of `files`: damage to the marker itself is found too. */
  sha256: z.string(),
});
type Marker = z.output<typeof Marker>;

const underWay = new Set<string>();

/**
 * Makes `finalPath` out of what `write` puts into the folder it is given. A folder of that name is replaced.
 * `neededBytes` is checked against the free space first. After any error the old state stays and nothing is left over.
 * Throws NoSpaceError on a full disk, naming the checkpoint beside it that is still good.
 */
export async function publishFolder(
  finalPath: string,
  write: (temporaryPath: string) => Promise<void>,
  { neededBytes }: { neededBytes?: number } = {},
): Promise<void> {
  const stillSafe = () => describeLastGood(dirname(finalPath));
  await writeAside(finalPath, { neededBytes, stillSafe }, async (temporary) => {
    await write(temporary);
    await sealFolder(temporary);
    await moveIntoPlace(temporary, finalPath);
  });
}

/**
 * The same for a folder that other programs read: without a marker, and never in the place of anything but an empty folder. Removes what dead
 * processes left of the same folder half written. Returns what `write` does. Throws CheckpointError if something is there.
 */
export async function publishNewFolder<T>(finalPath: string, write: (temporaryPath: string) => Promise<T>): Promise<T> {
  await requireEmpty(finalPath);
  await cleanLeftovers(dirname(finalPath), basename(finalPath));
  return await writeAside(finalPath, {}, async (temporary) => {
    const result = await write(temporary);
    const { paths, folders } = await walk(temporary);
    for (const path of paths) await syncFile(join(temporary, path));
    for (const path of folders) await syncFolder(path);
    await requireEmpty(finalPath);
    await rmdir(finalPath).catch((error: unknown) => {
      if (systemErrorCode(error) !== "ENOENT") throw error;
    });
    await rename(temporary, finalPath);
    await syncFolder(dirname(finalPath));
    return result;
  });
}

/** Throws CheckpointError unless a folder is empty or not there. */
export async function requireEmpty(folder: string): Promise<void> {
  const names = await namesIn(folder).catch((error: unknown) => {
    if (systemErrorCode(error) !== "ENOTDIR") throw error;
    throw new CheckpointError(`${folder} is no folder: choose another name for the new folder`);
  });
  if (names.length > 0)
    throw new CheckpointError(`${folder} is not empty (${names.slice(0, 3).join(", ")}): choose a new folder`);
}

interface AsideOptions {
  readonly neededBytes?: number | undefined;
  readonly stillSafe?: () => Promise<string>;
}

/** Lets `write` fill a folder beside the final one, and removes it after an error. */
async function writeAside<T>(
  finalPath: string,
  { neededBytes, stillSafe }: AsideOptions,
  write: (temporaryPath: string) => Promise<T>,
): Promise<T> {
  const parent = dirname(finalPath);
  const temporary = join(parent, `.tmp-${basename(finalPath)}-${process.pid}`);
  if (underWay.has(temporary)) throw new CheckpointError(`${finalPath}: is already being written by this process.`);
  underWay.add(temporary);
  try {
    await makeFolder(parent);
    await rm(temporary, { recursive: true, force: true });
    if (neededBytes !== undefined) await requireSpace(parent, neededBytes, stillSafe);
    return await reportingFullDisk(
      parent,
      async () => {
        await mkdir(temporary);
        return await write(temporary);
      },
      { neededBytes, stillSafe },
    );
  } catch (error) {
    await rm(temporary, { recursive: true, force: true }).catch(() => {}); // the first error says more
    throw await folderError(parent, error);
  } finally {
    underWay.delete(temporary);
  }
}

/** Syncs every file, writes the marker, syncs the folders. */
async function sealFolder(folder: string): Promise<void> {
  const files: Marker["files"] = Object.create(null) as Marker["files"];
  const { paths, folders } = await walk(folder);
  for (const path of paths) {
    const full = join(folder, path);
    await syncFile(full);
    files[path] = { bytes: (await stat(full)).size, sha256: await sha256OfFile(full) };
  }
  const marker = await open(join(folder, markerName), "wx");
  try {
    await marker.writeFile(markerText(files));
    await marker.sync();
  } finally {
    await marker.close();
  }
  for (const path of folders) await syncFolder(path);
}

function markerText(files: Marker["files"]): string {
  const sha256 = createHash("sha256").update(JSON.stringify(files)).digest("hex");
  return `${JSON.stringify({ version: 1, files, sha256 }, null, 1)}\n`;
}

/** Files, relative with "/" and sorted, without the marker; and all folders, innermost first. */
async function walk(root: string): Promise<{ paths: string[]; folders: string[] }> {
  const paths: string[] = [];
  const folders: string[] = [];
  const visit = async (folder: string, prefix: string) => {
    for (const entry of await readdir(folder, { withFileTypes: true })) {
      const path = prefix + entry.name;
      if (entry.isDirectory()) await visit(join(folder, entry.name), `${path}/`);
      else if (!entry.isFile()) throw new CheckpointError(`${join(root, path)}: only plain files can be in a checkpoint.`);
      else if (path !== markerName) paths.push(path);
    }
    folders.push(folder);
  };
  await visit(root, "");
  return { paths: paths.sort(), folders };
}

async function syncFile(path: string): Promise<void> {
  const file = await open(path, "r+"); // Windows syncs only files open for writing
  try {
    await file.sync();
  } finally {
    await file.close();
  }
}

async function moveIntoPlace(temporary: string, finalPath: string): Promise<void> {
  const parent = dirname(finalPath);
  const old = join(parent, `.old-${basename(finalPath)}-${process.pid}`);
  const replaces = await stat(finalPath).then(
    () => true,
    () => false,
  );
  if (replaces) {
    // A crash between the two renames is repaired by `cleanLeftovers`, which puts the old folder back.
    await rm(old, { recursive: true, force: true });
    await rename(finalPath, old);
  }
  try {
    await rename(temporary, finalPath);
  } catch (error) {
    if (replaces) await rename(old, finalPath);
    throw error;
  }
  await syncFolder(parent);
  if (replaces) await rm(old, { recursive: true, force: true });
}

/**
 * Checks a published folder: the marker, and size and sha256 of every file in it. With `hashes: false` only that all
 * files are there in full size. Files that the marker does not list are not looked at.
 * Throws CheckpointError that names the file.
 */
export async function verifyFolder(path: string, { hashes = true }: { hashes?: boolean } = {}): Promise<void> {
  const { files } = await readMarker(path);
  for (const [name, { bytes, sha256 }] of Object.entries(files)) {
    const full = join(path, name);
    if (isAbsolute(name) || name.split(/[\\/]/).includes("..")) {
      throw new CheckpointError(`${join(path, markerName)}: names a file outside of the folder: ${name}.`);
    }
    const size = await stat(full).then(
      (stats) => (stats.isFile() ? stats.size : -1),
      () => -1,
    );
    if (size < 0) throw new CheckpointError(`${full}: missing, though the checkpoint was complete once.`);
    if (size !== bytes) throw new CheckpointError(`${full}: has ${size} bytes, expected ${bytes}: it was changed or damaged.`);
    if (hashes && (await sha256OfFile(full)) !== sha256) {
      throw new CheckpointError(`${full}: its sha256 is not the one it was saved with: it was changed or damaged.`);
    }
  }
}

async function readMarker(path: string): Promise<Marker> {
  const markerPath = join(path, markerName);
  let text: string;
  try {
    if (!(await stat(markerPath)).isFile()) throw new CheckpointError(`${markerPath}: not a file.`);
    text = await readFile(markerPath, "utf8");
  } catch (error) {
    throw new CheckpointError(`${path}: not complete: it has no readable ${markerName} file.`, { cause: error });
  }
  let json: unknown;
  try {
    json = parseJson(text);
  } catch (error) {
    throw new CheckpointError(`${markerPath}: damaged: not JSON.`, { cause: error });
  }
  const marker = Marker.safeParse(json);
  // Written again it must give the same bytes: that leaves no byte of the file unchecked.
  if (!marker.success || markerText(marker.data.files) !== text) throw new CheckpointError(`${markerPath}: damaged.`);
  return marker.data;
}

export interface Checkpoint {
  readonly path: string;
  readonly step: number;
}

/** All folders `checkpoint-N`, complete or not, newest first. */
async function listCheckpoints(outputDir: string): Promise<Checkpoint[]> {
  const checkpoints: Checkpoint[] = [];
  for (const name of await namesIn(outputDir)) {
    const step = checkpointName.exec(name)?.[1];
    if (step !== undefined) checkpoints.push({ path: join(outputDir, name), step: Number(step) });
  }
  return checkpoints.sort((a, b) => b.step - a.step);
}

/**
 * The newest checkpoint whose every byte is as it was saved, and that passes `check`; undefined if there is none. Damaged ones, and those for which
 * `check` throws CheckpointError, are passed over with a warning. Removes what dead processes left half written. Call it while holding the
 * folder's lock.
 */
export async function newestCompleteCheckpoint(
  outputDir: string,
  {
    onWarning = () => {},
    check = async () => {},
  }: { onWarning?: (message: string) => void; check?: (path: string) => Promise<void> } = {},
): Promise<Checkpoint | undefined> {
  await cleanLeftovers(outputDir);
  for (const checkpoint of await listCheckpoints(outputDir)) {
    try {
      await verifyFolder(checkpoint.path);
      await check(checkpoint.path);
      return checkpoint;
    } catch (error) {
      if (!(error instanceof CheckpointError)) throw error;
      onWarning(`${basename(checkpoint.path)} is not used: ${error.message}`);
    }
  }
  return undefined;
}

/**
 * Removes temporary folders of dead processes, and puts back a folder whose replacement was interrupted: all in a folder of ours, or those of
 * one name.
 */
async function cleanLeftovers(folder: string, ofName?: string): Promise<void> {
  for (const name of await namesIn(folder)) {
    if (ofName !== undefined && !name.startsWith(`.tmp-${ofName}-`)) continue;
    const path = join(folder, name);
    const temporaryPid = temporaryName.exec(name)?.[1];
    if (temporaryPid !== undefined && isLeftover(path, Number(temporaryPid))) await rm(path, { recursive: true, force: true });
    const replaced = replacedName.exec(name);
    if (replaced && isLeftover(path, Number(replaced[2]))) await restoreOrRemove(path, join(folder, replaced[1]!));
  }
}

function isLeftover(path: string, pid: number): boolean {
  return pid === process.pid ? !underWay.has(path) : !isAlive(pid);
}

async function restoreOrRemove(old: string, finalPath: string): Promise<void> {
  const isThere = await stat(finalPath).then(
    () => true,
    () => false,
  );
  if (isThere) await rm(old, { recursive: true, force: true });
  else await rename(old, finalPath);
}

/**
 * Deletes the oldest complete checkpoints until `limit` are left, never the newest and never `best` (its path or its name).
 * Nothing is deleted unless the newest is complete. Each goes out of sight by one rename before its files are deleted, so
 * that an interruption leaves no half checkpoint. Returns the paths deleted.
 */
export async function pruneCheckpoints(
  outputDir: string,
  limit: number,
  { best }: { best?: string | undefined } = {},
): Promise<string[]> {
  if (!Number.isSafeInteger(limit) || limit < 1) throw new CheckpointError(`cannot keep ${limit} checkpoints; keep at least 1.`);
  const complete: Checkpoint[] = [];
  for (const [index, checkpoint] of (await listCheckpoints(outputDir)).entries()) {
    if (await isWhole(checkpoint.path)) complete.push(checkpoint);
    else if (index === 0) return [];
  }
  const bestName = best === undefined ? undefined : basename(best);
  const deletable = complete.slice(1).filter(({ path }) => basename(path) !== bestName);
  const surplus = deletable.slice(Math.max(0, deletable.length - Math.max(0, complete.length - limit)));
  for (const { path } of surplus.reverse()) {
    const trash = join(outputDir, `.trash-${basename(path)}-${process.pid}`);
    await rm(trash, { recursive: true, force: true });
    await rename(path, trash);
    await rm(trash, { recursive: true, force: true });
  }
  return surplus.map(({ path }) => path);
}

async function isWhole(path: string): Promise<boolean> {
  return await verifyFolder(path, { hashes: false }).then(
    () => true,
    () => false,
  );
}

async function describeLastGood(outputDir: string): Promise<string> {
  for (const { path } of await listCheckpoints(outputDir)) {
    if (await isWhole(path)) return `last good checkpoint ${basename(path)} kept`;
  }
  return "no checkpoint was saved before";
}
