import { setTimeout as sleep } from "node:timers/promises";
import { ModelError } from "../../errors.js";

/**
 * A model cannot be had here and now: no network, hub down, offline and not in the cache, no Python. Another source may do.
 */
export class ModelUnavailableError extends ModelError {}

export interface HubConnection {
  /** Where the hub is, without a slash at the end. */
  readonly endpoint: string;
  readonly token?: string | undefined;
  readonly signal?: AbortSignal | undefined;
  /** First pause before a request is repeated; doubles each time. */
  readonly retryMs: number;
  /** How long an answer may take to begin, and a download may stand still. */
  readonly timeoutMs: number;
}

const maxRedirects = 5;
const maxAttempts = 5;
const maxPauseMs = 30_000;
const passingStatus = [429, 500, 502, 503, 504];

/**
 * GET with redirects, time limits, and repeats where the server asks for patience (429, 5xx). The token goes to the hub's
 * own origin and nowhere else, and a redirect never leads from https to http.
 * Throws ModelUnavailableError if the hub cannot be reached or stays busy; other answers are returned, also 404 and the like.
 */
export async function hubGet(connection: HubConnection, url: string, headers: Record<string, string> = {}): Promise<Response> {
  for (let attempt = 1; ; attempt++) {
    const response = await followRedirects(connection, url, headers);
    if (!passingStatus.includes(response.status)) return response;
    await response.body?.cancel();
    if (attempt === maxAttempts) {
      throw new ModelUnavailableError(
        `The model hub at ${connection.endpoint} is too busy (status ${response.status}, ${attempt} attempts). Try again later.`,
      );
    }
    const asked = Number(response.headers.get("retry-after")) * 1000;
    const pause = asked > 0 ? asked : connection.retryMs * 2 ** (attempt - 1);
    await sleep(Math.min(pause, maxPauseMs), undefined, { signal: connection.signal });
  }
}

async function followRedirects(connection: HubConnection, url: string, headers: Record<string, string>): Promise<Response> {
  let target = new URL(url);
  for (let hop = 0; hop <= maxRedirects; hop++) {
    const isHub = target.origin === new URL(connection.endpoint).origin;
    const authorization = isHub && connection.token ? { authorization: `Bearer ${connection.token}` } : {};
    const response = await fetchOnce(connection, target, { ...headers, ...authorization });
    const location = response.headers.get("location");
    if (response.status < 300 || response.status >= 400 || location === null) return response;
    await response.body?.cancel();
    const next = new URL(location, target);
    if (next.protocol !== "https:" && next.protocol !== target.protocol) {
      throw new ModelError(`The model hub at ${connection.endpoint} redirects to an unsafe address (${next.protocol}).`);
    }
    target = next;
  }
  throw new ModelError(`The model hub at ${connection.endpoint} redirects in circles.`);
}

async function fetchOnce(connection: HubConnection, url: URL, headers: Record<string, string>): Promise<Response> {
  const deadline = new AbortController();
  const timer = setTimeout(
    () => deadline.abort(new Error(`no answer in ${connection.timeoutMs / 1000} s`)),
    connection.timeoutMs,
  );
  try {
    // The deadline is for the headers; the body has its own watch, see `bodyOf`.
    const signal = AbortSignal.any([deadline.signal, ...(connection.signal ? [connection.signal] : [])]);
    return await fetch(url, { headers: { "user-agent": "attune", ...headers }, redirect: "manual", signal });
  } catch (error) {
    connection.signal?.throwIfAborted();
    throw unreachable(connection, error);
  } finally {
    clearTimeout(timer);
  }
}

/** A connection that stays open and brings next to nothing. */
export class TooSlowError extends Error {}

const slowestBytesPerSecond = 1000;

/** The pieces of a body; throws if the connection breaks or stands still, TooSlowError if it drips. */
export async function* bodyOf(connection: HubConnection, response: Response): AsyncGenerator<Uint8Array> {
  const reader = response.body?.getReader();
  if (!reader) return;
  const windowMs = 3 * connection.timeoutMs;
  let windowStart = performance.now();
  let windowBytes = 0;
  try {
    for (;;) {
      let timer: NodeJS.Timeout | undefined;
      const stalled = new Promise<never>((_, reject) => {
        const seconds = connection.timeoutMs / 1000;
        timer = setTimeout(() => reject(new Error(`nothing came for ${seconds} s`)), connection.timeoutMs);
      });
      const { done, value } = await Promise.race([reader.read(), stalled]).finally(() => clearTimeout(timer));
      if (done) return;
      windowBytes += value.length;
      const passedMs = performance.now() - windowStart;
      if (passedMs > windowMs) {
        if (windowBytes < (slowestBytesPerSecond * passedMs) / 1000)
          throw new TooSlowError(`only ${windowBytes} bytes came in ${Math.round(passedMs / 1000)} s`);
        windowStart += passedMs;
        windowBytes = 0;
      }
      yield value;
    }
  } finally {
    await reader.cancel().catch(() => {}); // ends the connection of a body that was not read to its end
  }
}

/**
 * A response with its whole body read, of at most `maxBytes`. Throws like `bodyOf`, and ModelError for a longer body.
 */
export async function readWhole(connection: HubConnection, response: Response, maxBytes: number): Promise<Response> {
  const pieces: Uint8Array[] = [];
  let bytes = 0;
  for await (const piece of bodyOf(connection, response)) {
    bytes += piece.length;
    if (bytes > maxBytes)
      throw new ModelError(
        `The model hub at ${connection.endpoint} sends an answer of over ${maxBytes} bytes to a small question.`,
      );
    pieces.push(piece);
  }
  const hasBody = ![101, 204, 205, 304].includes(response.status);
  return new Response(hasBody ? Buffer.concat(pieces) : null, { status: response.status, headers: response.headers });
}

function unreachable({ endpoint }: HubConnection, error: unknown): ModelUnavailableError {
  const proxy = process.env.HTTPS_PROXY ?? process.env.https_proxy;
  const proxyHint =
    proxy === undefined ? "" : " A proxy is configured: Node uses it only with NODE_USE_ENV_PROXY=1 (Node 24 and later).";
  return new ModelUnavailableError(
    `The model hub at ${endpoint} cannot be reached (${reasonOf(error)}). Check the network, set HF_ENDPOINT to a mirror, ` +
      `or give the path of a local model.${proxyHint}`,
    { cause: error },
  );
}

/** Why a request failed, in a few words: fetch itself only says "fetch failed" and puts the reason into `cause`. */
export function reasonOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const cause: unknown = error.cause ?? error;
  if (cause instanceof Error) return "code" in cause && typeof cause.code === "string" ? cause.code : cause.message;
  return error.message;
}
