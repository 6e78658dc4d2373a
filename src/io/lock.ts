import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import { link, open, readFile, rm, stat, unlink } from "node:fs/promises";
import { hostname } from "node:os";
import { setTimeout as sleep } from "node:timers/promises";
import { systemErrorCode } from "./disk.js";
import { parseJson } from "./strict-json.js";

/** Who holds a lock. */
export interface LockHolder {
  readonly pid: number;
  readonly host: string;
  readonly startedAt: string;
}

interface LockContent extends LockHolder {
  /** Tells this process from a later one that got the same pid; empty where the system does not say. */
  readonly processMark: string;
  readonly nonce: string;
}

export interface Lock {
  /** Tells this lock from every other that was ever taken under its name. */
  readonly id: string;
  /** Gives the lock back. A lock that somebody else took over in the meantime is left alone. */
  release(): Promise<void>;
}

/** True if the process runs on this machine now, as far as can be told. */
export function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return systemErrorCode(error) === "EPERM"; // it exists, it is somebody else's
  }
}

/**
 * Takes a lock file, or says who has it. A lock of a process of this host that no longer runs is taken over; a lock of
 * another host never is, as nobody here can tell whether its process still runs.
 *
 * The file appears with its content in one step (a hard link). Only the holder of a second lock removes a stale one, so
 * that two takers cannot remove each other's fresh lock.
 */
export async function takeLock(path: string): Promise<Lock | LockHolder> {
  const mine: LockContent = {
    pid: process.pid,
    host: hostname(),
    startedAt: new Date().toISOString(),
    processMark: processMark(process.pid),
    nonce: randomUUID(),
  };
  for (;;) {
    if (await createWhole(path, mine)) {
      return {
        id: mine.nonce,
        async release() {
          try {
            if ((await readLock(path))?.nonce === mine.nonce) await rm(path, { force: true });
          } catch (error) {
            if (systemErrorCode(error) === undefined) throw error; // where it cannot be removed, it is stale once this process is gone
          }
        },
      };
    }
    const holder = await readLock(path);
    if (holder === undefined) continue; // released in this moment
    if (!isStale(holder)) return holder;
    await removeStale(path);
  }
}

/** Who has a lock, seen from outside. */
export interface LockState extends LockHolder {
  readonly id: string;
  /** Whether the holder's process still runs; null if it is, or was, on another host. */
  readonly isAlive: boolean | null;
}

/** Looks at a lock without taking it; undefined if there is none, or what is there says nothing. */
export async function lockState(path: string): Promise<LockState | undefined> {
  const holder = await readLock(path);
  if (holder === undefined || holder.pid <= 0) return undefined;
  const { pid, host, startedAt, nonce } = holder;
  return { pid, host, startedAt, id: nonce, isAlive: host === hostname() ? !isStale(holder) : null };
}

async function createWhole(path: string, content: LockContent): Promise<boolean> {
  const text = `${JSON.stringify(content)}\n`;
  const aside = `${path}-${content.nonce}`;
  const file = await open(aside, "wx");
  try {
    await file.writeFile(text);
  } finally {
    await file.close();
  }
  try {
    await link(aside, path);
    return true;
  } catch (error) {
    const code = systemErrorCode(error);
    if (code === "EEXIST") return false;
    if (code !== "EPERM" && code !== "ENOTSUP" && code !== "ENOSYS" && code !== "EOPNOTSUPP") throw error;
    return await createPlainly(path, text); // a file system without hard links
  } finally {
    await rm(aside, { force: true });
  }
}

async function createPlainly(path: string, text: string): Promise<boolean> {
  try {
    const file = await open(path, "wx");
    await file.writeFile(text);
    await file.close();
    return true;
  } catch (error) {
    if (systemErrorCode(error) === "EEXIST") return false;
    throw error;
  }
}

/** The content of a lock, undefined if there is none. Unreadable content counts as held by nobody. */
async function readLock(path: string): Promise<LockContent | undefined> {
  let text: string;
  try {
    text = (await stat(path)).isFile() ? await readFile(path, "utf8") : "";
  } catch (error) {
    if (systemErrorCode(error) === "ENOENT" || systemErrorCode(error) === "ENOTDIR") return undefined;
    throw error;
  }
  const nobody: LockContent = { pid: 0, host: "", startedAt: "", processMark: "", nonce: "" };
  try {
    const content = parseJson(text) as Partial<LockContent>;
    const isWhole = Number.isSafeInteger(content.pid) && typeof content.host === "string" && typeof content.nonce === "string";
    return isWhole ? { ...nobody, ...content } : nobody;
  } catch {
    return nobody;
  }
}

function isStale(holder: LockContent): boolean {
  if (holder.pid <= 0) return true;
  if (holder.host !== hostname()) return false;
  if (!isAlive(holder.pid)) return true;
  const mark = processMark(holder.pid);
  return mark !== "" && holder.processMark !== "" && mark !== holder.processMark;
}

const takeoverMs = 10_000; // a takeover lasts milliseconds; a lock for it that is this old belongs to a process that died

async function removeStale(path: string): Promise<void> {
  const guard = `${path}-takeover`;
  if (!(await createPlainly(guard, ""))) {
    const age = await stat(guard).then(
      ({ mtimeMs }) => Date.now() - mtimeMs,
      () => 0,
    );
    if (age > takeoverMs) await rm(guard, { force: true });
    await sleep(10);
    return;
  }
  try {
    const holder = await readLock(path);
    if (holder && isStale(holder)) await unlink(path);
  } finally {
    await rm(guard, { force: true });
  }
}

/** Boot and start time of a process on Linux, "" elsewhere. */
function processMark(pid: number): string {
  try {
    const boot = readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim();
    const status = readFileSync(`/proc/${pid}/stat`, "utf8");
    const fields = status.slice(status.lastIndexOf(")") + 2).split(" "); // the name before may hold spaces
    return `${boot}/${fields[19]}`; // field 22 of proc(5), starttime
  } catch {
    return "";
  }
}
