import { homedir } from "node:os";
import { join } from "node:path";

/** Where attune keeps what it fetched or compiled itself: ATTUNE_HOME, else `attune` in the user's cache folder. */
export function attuneHome(): string {
  return process.env.ATTUNE_HOME || join(process.env.XDG_CACHE_HOME || join(homedir(), ".cache"), "attune");
}
