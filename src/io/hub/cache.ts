import { copyFile, mkdir, readFile, rename, rm, stat, symlink } from "node:fs/promises";
import { homedir } from "node:os";
import { dirname, join, relative } from "node:path";
import { ModelError } from "../../errors.js";
import { systemErrorCode, writeFileAtomic } from "../disk.js";

/**
 * The cache that Python's huggingface_hub keeps, and its environment variables, so that a model is downloaded once for both.
 * Source: huggingface_hub, constants.py and file_download.py.
 *
 *     models--OWNER--NAME/blobs/HASH                   contents, by sha256 (large files) or git's sha1
 *                         refs/REVISION                the commit a branch or tag stood for
 *                         snapshots/COMMIT/FILE        symbolic links into blobs
 */

export const commitPattern = /^[0-9a-f]{40}$/;

type Environment = Readonly<Record<string, string | undefined>>;

function huggingFaceHome(env: Environment): string {
  return env.HF_HOME || join(env.XDG_CACHE_HOME || join(homedir(), ".cache"), "huggingface");
}

/** The folder of all cached repositories: HF_HUB_CACHE, else `hub` under HF_HOME. */
export function hubCacheFolder(env: Environment = process.env): string {
  return env.HF_HUB_CACHE || env.HUGGINGFACE_HUB_CACHE || join(huggingFaceHome(env), "hub");
}

/** HF_HUB_OFFLINE, with the spellings that Python takes for yes. */
export function isOffline(env: Environment = process.env): boolean {
  return /^(?:1|on|yes|true)$/i.test(env.HF_HUB_OFFLINE ?? "");
}

/** HF_TOKEN, else the file that `hf auth login` writes. Throws ModelError, without showing it, if it cannot be sent. */
export async function readToken(env: Environment = process.env): Promise<string | undefined> {
  const tokenPath = env.HF_TOKEN_PATH || join(huggingFaceHome(env), "token");
  const raw = env.HF_TOKEN || env.HUGGING_FACE_HUB_TOKEN || (await readFile(tokenPath, "utf8").catch(() => ""));
  const token = raw.trim();
  if (!/^[\x21-\x7e]*$/.test(token)) {
    throw new ModelError("HF_TOKEN (or the saved token) has characters that no token has; set it again.");
  }
  return token === "" ? undefined : token;
}

/** The paths of one repository in the cache. */
export class CachedRepository {
  readonly folder: string;

  constructor(cacheFolder: string, name: string) {
    this.folder = join(cacheFolder, `models--${name.replace("/", "--")}`);
  }

  blob(hash: string): string {
    return join(this.folder, "blobs", hash);
  }

  snapshot(commit: string): string {
    return join(this.folder, "snapshots", commit);
  }

  /** The commit that a revision stood for when it was last looked up; undefined if it never was. */
  async commitOf(revision: string): Promise<string | undefined> {
    if (commitPattern.test(revision)) return revision;
    const commit = (await readFile(join(this.folder, "refs", revision), "utf8").catch(() => "")).trim();
    return commitPattern.test(commit) ? commit : undefined;
  }

  async rememberCommit(revision: string, commit: string): Promise<void> {
    if (commitPattern.test(revision) || (await this.commitOf(revision)) === commit) return;
    const path = join(this.folder, "refs", revision);
    await mkdir(dirname(path), { recursive: true });
    await writeFileAtomic(path, commit);
  }

  /**
   * Shows a blob as a file of a snapshot: by a relative link, or a copy where links cannot be made (Windows without the
   * right to). The file appears in one step.
   */
  async addToSnapshot(commit: string, file: string, hash: string): Promise<string> {
    const path = join(this.snapshot(commit), file);
    const blob = this.blob(hash);
    if ((await sizeOf(path)) === (await sizeOf(blob))) return path; // sizeOf follows links; a blob has one content for ever
    await mkdir(dirname(path), { recursive: true });
    const aside = join(dirname(path), `.tmp-${hash}-${process.pid}`);
    await rm(aside, { force: true });
    try {
      await symlink(relative(dirname(path), blob), aside);
    } catch (error) {
      const code = systemErrorCode(error);
      if (code !== "EPERM" && code !== "EACCES" && code !== "ENOSYS" && code !== "ENOTSUP" && code !== "EOPNOTSUPP") throw error;
      await copyFile(blob, aside);
    }
    await rename(aside, path);
    return path;
  }
}

/** Size of the file that a path leads to, −1 if there is none. */
export async function sizeOf(path: string): Promise<number> {
  return await stat(path).then(
    ({ size }) => size,
    () => -1,
  );
}
