import { totalmem } from "node:os";
import { ConfigError } from "../errors.js";

/**
 * Bytes that a run may take: what the system can give without swapping (of the machine, or of the control group that limits this process),
 * and no more than ATTUNE_MEMORY, a number of GB, if it is set. Throws ConfigError if that is no number.
 */
export function availableMemoryBytes(env: NodeJS.ProcessEnv = process.env): number {
  const available = Math.min(process.availableMemory(), totalmem());
  const wish = env.ATTUNE_MEMORY;
  if (wish === undefined) return available;
  const gigabytes = Number(wish);
  if (!(gigabytes > 0)) throw new ConfigError(`ATTUNE_MEMORY: expected a number of GB above 0, got ${JSON.stringify(wish)}`);
  return Math.min(available, gigabytes * 1e9);
}
