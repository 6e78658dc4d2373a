import { join } from "node:path";
import { CheckpointError } from "../errors.js";
import { makeFolder, systemErrorCode } from "../io/disk.js";
import { type Lock, type LockState, lockState, takeLock } from "../io/lock.js";

const lockName = ".attune.lock";

/**
 * Reserves an output folder for one run, creating it if needed. The lock of a process that died is taken over.
 * Throws CheckpointError that names process and host of the other run.
 */
export async function lockFolder(outputDir: string): Promise<Lock> {
  const path = join(outputDir, lockName);
  try {
    await makeFolder(outputDir);
    const lock = await takeLock(path);
    if ("release" in lock) return lock;
    throw new CheckpointError(
      `${outputDir}: in use by process ${lock.pid} on host ${lock.host} since ${lock.startedAt}. ` +
        `Wait for it, stop it or choose another output_dir. If it is gone for certain, delete ${path}.`,
    );
  } catch (error) {
    const code = systemErrorCode(error);
    if (error instanceof CheckpointError || code === undefined) throw error;
    throw new CheckpointError(`${outputDir}: cannot be used as an output folder (${code}). Choose a folder you may write to.`, {
      cause: error,
    });
  }
}

/** Who has reserved an output folder; undefined if nobody has. */
export async function lockOf(outputDir: string): Promise<LockState | undefined> {
  return await lockState(join(outputDir, lockName));
}
