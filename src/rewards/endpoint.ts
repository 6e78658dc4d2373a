import { type IncomingMessage, request as requestHttp } from "node:http";
import { request as requestHttps } from "node:https";
import { setTimeout as sleep } from "node:timers/promises";
import { z } from "zod";
import { ConfigError, RewardError } from "../errors.js";
import { parseStrictJson, toPlainJson } from "../io/strict-json.js";
import { defineKind } from "./kind.js";
import { checked } from "./rules.js";

/**
 * Asks a service over HTTP: POST {"model", "messages": [prompt and answer as the model wrote them, control tokens included]} → {"scores": [number]}, one
 * for each. Prompts and answers leave the machine for the place that the recipe names and no other: redirects are not followed, proxies of the
 * environment are not used. A connection lives as long as its request.
 * Source: LLaMA-Factory 0.9.5, train/ppo/ppo_utils.py (get_rewards_from_server), `reward_model_type: api`, which waits for ever and tries once.
 */
export const api = defineKind({
  type: "api",
  summary: "what a service says over HTTP, in the form of LLaMA-Factory's `reward_model_type: api`",
  config: z.strictObject({
    url: checked(z.string(), checkUrl).describe("where the service is: http:// or https://"),
    model: z.string().default("model").describe("sent as `model`; LLaMA-Factory: model"),
    key_env: z
      .string()
      .regex(/^\w+$/, "expected the name of a variable of the environment")
      .nullable()
      .default(null)
      .describe(
        "the variable of the environment that holds the service's key, sent as `Authorization: Bearer`; the recipe never holds it",
      ),
    timeout: z.number().gt(0).max(3600).default(60).describe("seconds that an answer may take"),
    retries: z
      .int()
      .min(0)
      .max(100)
      .default(3)
      .describe("how often a request that failed is sent again, after 0.5 s, 1 s, 2 s …, at most 30 s"),
  }),
  async open({ url, model, key_env, timeout, retries }, { name, tokenizer }) {
    const key = key_env === null ? undefined : process.env[key_env];
    if (key_env !== null && !key) throw new ConfigError(`rewards: ${name}: the environment has no ${key_env}`);
    const headers = key === undefined ? {} : { authorization: `Bearer ${key}` };
    return async (samples, { signal }) => {
      const messages = samples.map(({ prompt, answerIds }) =>
        tokenizer.decode(Int32Array.of(...prompt, ...answerIds), { special: true }),
      );
      const body = JSON.stringify({ model, messages });
      for (let attempt = 0; ; attempt++) {
        try {
          return scoresIn(await post(url, body, { headers, timeoutMs: 1000 * timeout, signal }), samples.length);
        } catch (error) {
          signal.throwIfAborted();
          if (!(error instanceof Failure)) throw error;
          const tries = attempt === 0 ? "" : ` (${attempt + 1} tries)`;
          if (!error.mayPass || attempt === retries)
            throw new RewardError(
              `the reward ${name} asked ${url} of ${samples.length} answers, the first ${samples[0]?.where}: ${error.message}${tries}`,
              {
                cause: error.cause,
              },
            );
          await sleep(Math.min(30_000, 500 * 2 ** attempt), undefined, { signal, ref: false }).catch(() =>
            signal.throwIfAborted(),
          );
        }
      }
    };
  },
});

function checkUrl(text: string): void {
  const url = URL.canParse(text) ? new URL(text) : undefined;
  if (url === undefined || !/^https?:$/.test(url.protocol))
    throw new Error(`expected http://… or https://…, got ${JSON.stringify(text.slice(0, 80))}`);
  if (url.username !== "" || url.password !== "") throw new Error("holds a password; name the variable that holds it in key_env");
}

/** Why there are no scores. */
class Failure extends Error {
  /** Whether the same request may go well another time. */
  readonly mayPass: boolean;

  constructor(message: string, mayPass: boolean, options?: ErrorOptions) {
    super(message, options);
    this.mayPass = mayPass;
  }
}

interface PostOptions {
  readonly headers: Readonly<Record<string, string>>;
  readonly timeoutMs: number;
  readonly signal: AbortSignal;
}

const maxBytes = 2 ** 24;

/** The text of an answer with status 200. Throws Failure. */
async function post(url: string, body: string, { headers, timeoutMs, signal }: PostOptions): Promise<string> {
  const late = new AbortController();
  const clock = setTimeout(() => late.abort(), timeoutMs);
  try {
    const response = await new Promise<IncomingMessage>((resolve, reject) => {
      const send = url.startsWith("https:") ? requestHttps : requestHttp;
      const length = Buffer.byteLength(body);
      const request = send(
        url,
        {
          method: "POST",
          agent: false,
          signal: AbortSignal.any([signal, late.signal]),
          headers: { "content-type": "application/json", "content-length": length, ...headers },
        },
        resolve,
      );
      request.on("error", reject);
      request.end(body);
    });
    try {
      const { statusCode: status = 0 } = response;
      const chunks: Buffer[] = [];
      let bytes = 0;
      for await (const chunk of response as AsyncIterable<Buffer>) {
        bytes += chunk.length;
        if (bytes > maxBytes) throw new Failure(`it answered with over ${maxBytes} bytes`, false);
        chunks.push(chunk);
      }
      const text = Buffer.concat(chunks).toString("utf8");
      if (status === 200) return text;
      throw new Failure(
        `it answered with status ${status}: ${JSON.stringify(text.slice(0, 200))}`,
        status >= 500 || status === 429,
      );
    } finally {
      response.destroy();
    }
  } catch (error) {
    if (error instanceof Failure) throw error;
    if (late.signal.aborted) throw new Failure(`no answer within ${timeoutMs / 1000} s`, true);
    const { code, message } = error as NodeJS.ErrnoException;
    throw new Failure(`it cannot be reached (${code ?? message})`, true, { cause: error });
  } finally {
    clearTimeout(clock);
  }
}

/** Throws Failure for what are not so many numbers; null, and NaN as Python writes it, are numbers that are missing. */
function scoresIn(text: string, count: number): (number | null)[] {
  const shown = JSON.stringify(text.slice(0, 100));
  let answer: unknown;
  try {
    answer = toPlainJson(parseStrictJson(text, { allowNonFinite: true }));
  } catch (error) {
    throw new Failure(`it answered with ${shown}, which is no JSON: ${(error as Error).message}`, false);
  }
  const scores: unknown = typeof answer === "object" && answer !== null ? (answer as Record<string, unknown>).scores : undefined;
  if (!Array.isArray(scores)) throw new Failure(`it answered with ${shown}: expected {"scores": [${count} numbers]}`, false);
  if (scores.length !== count) throw new Failure(`it answered with ${scores.length} scores for ${count} answers`, false);
  const bad = scores.findIndex((score) => score !== null && typeof score !== "number");
  if (bad >= 0) throw new Failure(`score ${bad + 1} is ${JSON.stringify(scores[bad])?.slice(0, 100)}: expected a number`, false);
  return scores as (number | null)[];
}
