import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { type FileHandle, mkdir, open, rename, rm } from "node:fs/promises";
import { dirname, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { ModelError } from "../../errors.js";
import { reportingFullDisk, requireSpace, syncFolder, systemErrorCode } from "../disk.js";
import { takeLock } from "../lock.js";
import { openModel } from "../open-model.js";
import { indexFileName, singleFileName } from "../safetensors.js";
import { CachedRepository, commitPattern, hubCacheFolder, isOffline, readToken, sizeOf } from "./cache.js";
import { bodyOf, type HubConnection, hubGet, ModelUnavailableError, readWhole, reasonOf, TooSlowError } from "./request.js";

export { ModelUnavailableError } from "./request.js";

/** A model on a hub: `owner/name`, `owner/name@revision`, `owner/name/file.gguf`, `owner/name/file.gguf@revision`. */
export interface HubName {
  readonly repository: string;
  readonly revision: string;
  /** A single file; without it the whole model. */
  readonly file?: string;
}

/** How a model is looked for and fetched. */
export interface HubOptions {
  /** Bytes there and bytes in all, over all files of the model. */
  readonly onProgress?: (doneBytes: number, totalBytes: number) => void;
  /** One line that the user should see. */
  readonly onNotice?: (message: string) => void;
  readonly signal?: AbortSignal;
  /** Use the cache only; default: HF_HUB_OFFLINE. */
  readonly offline?: boolean;
  /** For tests: see HubConnection. */
  readonly retryMs?: number;
  readonly timeoutMs?: number;
}

const part = "[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?";
const hubName = new RegExp(`^(${part}/${part})(?:/((?:${part}/)*${part}\\.gguf))?(?:@(${part}(?:/${part})*))?$`);

/** Reads a hub name; undefined if the text is none. No part of one can lead out of the cache folder. */
export function parseHubName(text: string): HubName | undefined {
  const [, repository, file, revision = "main"] = hubName.exec(text) ?? [];
  if (repository === undefined || /--|\.\./.test(repository) || revision.includes("..") || file?.includes("..")) return undefined;
  return { repository, revision, ...(file !== undefined && { file }) };
}

/** One file of a repository, and how to tell that it arrived whole. */
interface RemoteFile {
  readonly path: string;
  readonly bytes: number;
  /** Name of the blob: sha256 for large files, else git's object id, a sha1 over a small prefix and the content. */
  readonly hash: string;
}

/**
 * Makes a model of a hub available and returns its folder (or file) in the cache. Only what attune reads is downloaded:
 * config, tokenizer, chat template and safetensors, or one GGUF file. Every file is checked against the hash that the hub
 * states, and gets its name only then. An interrupted download is continued by the next call, also in another process.
 *
 * Throws ModelUnavailableError if the hub cannot be reached and the cache has nothing; ModelError if the model does not
 * exist, is not allowed, or has no usable weights; NoSpaceError.
 */
export async function fetchFromHub(name: HubName, options: HubOptions = {}): Promise<string> {
  const cacheFolder = hubCacheFolder();
  const repository = new CachedRepository(cacheFolder, name.repository);
  if (options.offline ?? isOffline()) {
    const cached = await findInCache(repository, name);
    if ("path" in cached) return cached.path;
    throw new ModelUnavailableError(
      `${name.repository} (revision ${name.revision}) has no usable copy in the cache at ${cacheFolder} (${cached.problem}), and offline ` +
        "mode is on (HF_HUB_OFFLINE). Turn it off once to download the model, or give the path of a local model.",
    );
  }
  try {
    return await download(repository, name, options);
  } catch (error) {
    if (!(error instanceof ModelUnavailableError)) throw error;
    const cached = await findInCache(repository, name);
    if ("problem" in cached) throw error;
    options.onNotice?.(`${error.message} Using the copy in the cache, which may not be the newest.`);
    return cached.path;
  }
}

/** A copy counts only if it opens: an interrupted download of Python or ours may have left a part of the files. */
async function findInCache(
  repository: CachedRepository,
  { revision, file }: HubName,
): Promise<{ path: string } | { problem: string }> {
  const commit = await repository.commitOf(revision);
  const path = commit && join(repository.snapshot(commit), file ?? "");
  if (path === undefined || (await sizeOf(path)) < 0) return { problem: "it was never downloaded" };
  try {
    await openModel(path);
    return { path };
  } catch (error) {
    if (error instanceof ModelError) return { problem: error.message };
    throw error;
  }
}

async function download(repository: CachedRepository, name: HubName, options: HubOptions): Promise<string> {
  const { HUB_URL } = await import("@huggingface/hub");
  const connection: HubConnection = {
    endpoint: (process.env.HF_ENDPOINT || HUB_URL).replace(/\/+$/, ""),
    token: await readToken(),
    signal: options.signal,
    retryMs: options.retryMs ?? 1000,
    timeoutMs: options.timeoutMs ?? 10_000,
  };
  const { commit, files } = await lookUp(connection, name);
  const wanted = chooseFiles(name, files);
  await mkdir(dirname(repository.blob("x")), { recursive: true });

  const totalBytes = wanted.reduce((sum, { bytes }) => sum + bytes, 0);
  const missing: RemoteFile[] = [];
  for (const file of wanted) if ((await sizeOf(repository.blob(file.hash))) !== file.bytes) missing.push(file);
  const missingBytes = missing.reduce((sum, { bytes }) => sum + bytes, 0);
  await requireSpace(repository.folder, missingBytes);

  let doneBytes = totalBytes - missingBytes;
  if (missing.length > 0) options.onProgress?.(doneBytes, totalBytes);
  for (const file of wanted) {
    if (missing.includes(file)) {
      const url = `${connection.endpoint}/${name.repository}/resolve/${commit}/${file.path.split("/").map(encodeURIComponent).join("/")}`;
      const before = doneBytes;
      const report = (bytes: number) => options.onProgress?.(before + bytes, totalBytes);
      await downloadBlob(connection, url, file, repository.blob(file.hash), report, options.onNotice);
      doneBytes += file.bytes;
    }
    await repository.addToSnapshot(commit, file.path, file.hash);
  }
  await repository.rememberCommit(name.revision, commit); // last: without it the snapshot counts as not there
  return join(repository.snapshot(commit), name.file ?? "");
}

const maxListedFiles = 100_000; // far over what a model has: a page lists 1000
const maxPages = 200;
const maxAnswerBytes = 2 ** 24;

/** The commit that a name stands for, and its files. However much the hub answers, and however slowly, this comes to an end. */
async function lookUp(connection: HubConnection, name: HubName): Promise<{ commit: string; files: RemoteFile[] }> {
  const { modelInfo, listFiles, HubApiError } = await import("@huggingface/hub");
  const limitMs = 12 * connection.timeoutMs;
  const signals = [AbortSignal.timeout(limitMs), ...(connection.signal ? [connection.signal] : [])];
  const limited = { ...connection, signal: AbortSignal.any(signals) };
  let requests = 0;
  const get = async (url: string | URL): Promise<Response> => {
    if (++requests > maxPages)
      throw new ModelError(`${name.repository}: the hub at ${connection.endpoint} lists its files on over ${maxPages} pages.`);
    // Ours adds the token: the library would also send it to another host that a page link names.
    return readWhole(limited, await hubGet(limited, String(url), { accept: "application/json" }), maxAnswerBytes);
  };
  const access = { hubUrl: connection.endpoint, fetch: get as typeof fetch };
  try {
    const { sha } = await modelInfo({ ...access, name: name.repository, revision: name.revision, additionalFields: ["sha"] });
    if (!commitPattern.test(sha))
      throw new ModelError(`${name.repository}: the hub gave no commit for revision ${name.revision}.`);
    const folder = name.file?.includes("/") ? dirname(name.file) : undefined;
    const files: RemoteFile[] = [];
    const listing = listFiles({ ...access, repo: name.repository, revision: sha, ...(folder !== undefined && { path: folder }) });
    let listed = 0;
    for await (const { type, path, size, oid, lfs } of listing) {
      if (++listed > maxListedFiles)
        throw new ModelError(`${name.repository}: the hub at ${connection.endpoint} lists over ${maxListedFiles} files.`);
      if (type === "file") files.push(checkedFile(name, { path, bytes: lfs?.size ?? size, hash: lfs?.oid ?? oid ?? "" }));
    }
    return { commit: sha, files };
  } catch (error) {
    if (error instanceof HubApiError) throw refusedByHub(connection, name, error.statusCode);
    connection.signal?.throwIfAborted();
    if (error instanceof ModelError && !signals[0]!.aborted) throw error;
    const reason = signals[0]!.aborted ? `not in ${limitMs / 1000} s` : reasonOf(error);
    throw new ModelUnavailableError(`The model hub at ${connection.endpoint} gave no usable answer (${reason}).`, {
      cause: error,
    });
  }
}

/** Checks what a hub says about a file, as names and sizes on this disk follow from it. */
function checkedFile(name: HubName, file: RemoteFile): RemoteFile {
  const isHash = /^(?:[0-9a-f]{40}|[0-9a-f]{64})$/.test(file.hash);
  if (isHash && Number.isSafeInteger(file.bytes) && file.bytes >= 0) return file;
  throw new ModelError(
    `${name.repository}: the hub gives no usable hash and size for ${JSON.stringify(file.path).slice(0, 200)}.`,
  );
}

function refusedByHub({ endpoint, token }: HubConnection, { repository, revision }: HubName, status: number): ModelError {
  const login =
    token === undefined ? " If it is private, set HF_TOKEN." : " If it is private, check that the token of HF_TOKEN may read it.";
  if (status === 403) {
    return new ModelError(
      `${repository}: access is restricted. Accept its terms at ${endpoint}/${repository}, then set HF_TOKEN.`,
    );
  }
  if (status === 401 || status === 404) {
    return new ModelError(
      `${repository}: no such model, or no such revision "${revision}", at ${endpoint}. Check the spelling.${login}`,
    );
  }
  return new ModelError(`${repository}: the hub at ${endpoint} answered with status ${status}.`);
}

const smallFile =
  /^(?:config\.json|generation_config\.json|tokenizer[\w.-]*|special_tokens_map\.json|added_tokens\.json|vocab\.json|vocab\.txt|merges\.txt|chat_template\.(?:jinja|json))$/;
const shardFile = /^model-\d+-of-\d+\.safetensors$/;

/** The files to download, weights last: whoever finds them finds the rest too. */
function chooseFiles({ repository, file }: HubName, files: readonly RemoteFile[]): RemoteFile[] {
  const named = (test: (path: string) => boolean) => files.filter(({ path }) => test(path));
  if (file !== undefined) {
    const [found] = named((path) => path === file);
    if (found) return [found];
    throw new ModelError(
      `${repository}: has no file ${file}. ${listOf(
        "GGUF files",
        named((path) => path.endsWith(".gguf")),
      )}`,
    );
  }
  const small = named((path) => smallFile.test(path));
  const single = named((path) => path === singleFileName);
  if (single.length > 0) return [...small, ...single];
  const index = named((path) => path === indexFileName);
  if (index.length > 0) return [...small, ...index, ...named((path) => shardFile.test(path))];

  const ggufs = named((path) => path.endsWith(".gguf"));
  if (ggufs.length === 1) return ggufs;
  if (ggufs.length > 1)
    throw new ModelError(`${repository}: name one file, as in ${repository}/${ggufs[0]!.path}. ${listOf("GGUF files", ggufs)}`);
  const pickles = named((path) => /\.(?:bin|pt|pth|ckpt)$/.test(path));
  throw new ModelError(
    pickles.length > 0
      ? `${repository}: has its weights only as a pickle (${pickles[0]!.path}), which can run any code; attune reads safetensors and GGUF.`
      : `${repository}: has no weights that attune reads (${singleFileName}, shards with an index, or GGUF).`,
  );
}

function listOf(what: string, files: readonly RemoteFile[]): string {
  const more = files.length > 20 ? ", …" : "";
  const names = files.slice(0, 20).map(({ path }) => path);
  return files.length === 0 ? `It has no ${what}.` : `${what}: ${names.join(", ")}${more}`;
}

/**
 * Downloads one file under the name of its hash. One process at a time does; others wait for it. Python locks its own
 * partial file in a way that Node cannot, so ours has another name: only whole blobs are shared.
 */
async function downloadBlob(
  connection: HubConnection,
  url: string,
  file: RemoteFile,
  blob: string,
  onProgress: (bytes: number) => void,
  onNotice: HubOptions["onNotice"],
): Promise<void> {
  const partial = `${blob}.attune.incomplete`;
  const lock = await waitForLock(connection, `${partial}.lock`, onNotice);
  try {
    if ((await sizeOf(blob)) === file.bytes) return; // another process was faster
    for (let isRetry = false; ; isRetry = true) {
      await reportingFullDisk(dirname(blob), () => fillPartial(connection, url, file, partial, onProgress), {
        neededBytes: file.bytes,
      });
      if ((await hashOf(partial, file)) === file.hash) break;
      await rm(partial, { force: true });
      if (isRetry)
        throw new ModelError(`${url}: the download does not have the hash that the hub states (${file.hash}). Try again later.`);
    }
    await rename(partial, blob);
    await syncFolder(dirname(blob));
  } finally {
    await lock.release();
  }
}

async function waitForLock(connection: HubConnection, path: string, onNotice: HubOptions["onNotice"]) {
  for (let isFirst = true; ; isFirst = false) {
    const lock = await takeLock(path);
    if ("release" in lock) return lock;
    if (isFirst) {
      onNotice?.(
        `Process ${lock.pid} on host ${lock.host} downloads the same file; waiting. If it is gone for certain, delete ${path}.`,
      );
    }
    await sleep(200, undefined, { signal: connection.signal });
  }
}

const maxFruitlessAttempts = 5;

/**
 * Continues the partial file until it has its full size. When a connection breaks, another one is opened, as long as each brings
 * enough (a thousandth of the file or 64 KiB) and none is too slow.
 */
async function fillPartial(
  connection: HubConnection,
  url: string,
  file: RemoteFile,
  partial: string,
  onProgress: (bytes: number) => void,
): Promise<void> {
  const target = await open(partial, "a+");
  try {
    let most = (await target.stat()).size; // not what is there now: a server that ignores ranges must not go on for ever
    let fruitless = 0;
    for (;;) {
      const broken = await continueDownload(connection, url, file, target, onProgress);
      if (broken === undefined) break;
      const have = (await target.stat()).size;
      const worthwhile = Math.min(2 ** 16, file.bytes / 1000);
      fruitless = have > most && have - most >= worthwhile && !(broken instanceof TooSlowError) ? 0 : fruitless + 1;
      most = Math.max(most, have);
      if (fruitless === maxFruitlessAttempts) {
        throw new ModelUnavailableError(
          `${url}: the connection breaks again and again (${reasonOf(broken)}). What arrived is kept; run again to continue.`,
        );
      }
      await sleep(connection.retryMs, undefined, { signal: connection.signal });
    }
    await target.sync();
  } finally {
    await target.close();
  }
}

/** Appends what one connection brings. Returns why it ended early, or undefined when the file has its full size. */
async function continueDownload(
  connection: HubConnection,
  url: string,
  file: RemoteFile,
  target: FileHandle,
  onProgress: (bytes: number) => void,
): Promise<Error | undefined> {
  let have = (await target.stat()).size;
  if (have > file.bytes) {
    await target.truncate(0);
    have = 0;
  }
  if (have === file.bytes) return undefined;
  try {
    const range = have > 0 ? { range: `bytes=${have}-` } : {};
    const response = await hubGet(connection, url, { "accept-encoding": "identity", ...range });
    const continues = response.status === 206 && response.headers.get("content-range")?.startsWith(`bytes ${have}-`);
    if (have > 0 && !continues) {
      await target.truncate(0);
      have = 0;
    }
    if (!continues && response.status !== 200) {
      await response.body?.cancel();
      const problem = `${url}: the hub answered with status ${response.status}`;
      if (response.status === 206 || response.status === 416) return new Error(problem); // the next attempt asks for the whole
      throw new ModelError(`${problem}.`);
    }
    for await (const chunk of bodyOf(connection, response)) {
      if (have + chunk.length > file.bytes)
        throw new ModelError(`${url}: the hub sends more than the ${file.bytes} bytes it stated.`);
      await target.appendFile(chunk);
      have += chunk.length;
      onProgress(have);
    }
    return have === file.bytes ? undefined : new Error("it was closed early");
  } catch (error) {
    connection.signal?.throwIfAborted();
    const isFinal = error instanceof ModelError && !(error instanceof ModelUnavailableError);
    const code = systemErrorCode(error);
    if (isFinal || code === "ENOSPC" || code === "EDQUOT" || !(error instanceof Error)) throw error;
    return error;
  }
}

async function hashOf(path: string, { hash: expected, bytes }: RemoteFile): Promise<string> {
  const isGitObject = commitPattern.test(expected);
  const hash = createHash(isGitObject ? "sha1" : "sha256");
  if (isGitObject) hash.update(`blob ${bytes}\0`);
  for await (const chunk of createReadStream(path, { highWaterMark: 1 << 20 })) hash.update(chunk as Uint8Array);
  return hash.digest("hex");
}
