import assert from "node:assert/strict";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import test, { type TestContext } from "node:test";
import { contextOf, rewardFrom, sampleOf } from "./testing/samples.js";

interface Call {
  readonly method: string | undefined;
  readonly headers: IncomingMessage["headers"];
  readonly body: string;
}

/** A service that answers each request by the next of `replies`, the last of them from then on. */
async function service(t: TestContext, ...replies: ((response: ServerResponse, call: Call) => void)[]) {
  const calls: Call[] = [];
  const server = createServer((request, response) => {
    const chunks: Buffer[] = [];
    request.on("data", (chunk: Buffer) => chunks.push(chunk));
    request.on("end", () => {
      const call = { method: request.method, headers: request.headers, body: Buffer.concat(chunks).toString("utf8") };
      calls.push(call);
      replies[Math.min(calls.length, replies.length) - 1]!(response, call);
    });
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  t.after(() => {
    server.closeAllConnections();
    server.close();
  });
  const connections = () => new Promise<number>((resolve) => server.getConnections((_, count) => resolve(count)));
  return { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/score`, calls, connections };
}

const says =
  (body: unknown, status = 200) =>
  (response: ServerResponse) => {
    response.statusCode = status;
    response.end(typeof body === "string" ? body : JSON.stringify(body));
  };
const samples = [sampleOf("yes", {}, "rows.jsonl:4"), sampleOf("né", {}, "rows.jsonl:5")];

test("the service gets prompts with their answers, and what it says are the scores", async (t) => {
  const { url, calls, connections } = await service(t, says({ scores: [0.5, -2] }));
  const reward = rewardFrom({ type: "api", url });
  assert.deepEqual(await reward.score(samples, contextOf()), [0.5, -2]);
  assert.equal(calls[0]!.method, "POST");
  assert.equal(calls[0]!.headers["content-type"], "application/json");
  assert.deepEqual(JSON.parse(calls[0]!.body), { model: "model", messages: ["Qyes", "Qné"] });
  assert.equal(calls[0]!.headers.authorization, undefined);
  await new Promise((resolve) => setTimeout(resolve, 50));
  assert.equal(await connections(), 0);
});

test("a score may be missing, or NaN as Python writes it", async (t) => {
  const { url } = await service(t, says('{"scores": [null, NaN]}'));
  assert.deepEqual(await rewardFrom({ type: "api", url }).score(samples, contextOf()), [null, Number.NaN]);
});

test("a key comes from the environment, and is in no message", async (t) => {
  process.env.ATTUNE_TEST_REWARD_KEY = "s3cret";
  t.after(() => delete process.env.ATTUNE_TEST_REWARD_KEY);
  const { url, calls } = await service(t, says({ scores: [1, 2] }), says("no", 403));
  const reward = rewardFrom({ type: "api", url, key_env: "ATTUNE_TEST_REWARD_KEY", model: "judge" });
  await reward.score(samples, contextOf());
  assert.equal(calls[0]!.headers.authorization, "Bearer s3cret");
  assert.equal((JSON.parse(calls[0]!.body) as { model: string }).model, "judge");
  await assert.rejects(
    reward.score(samples, contextOf()),
    (error: Error) => /status 403/.test(error.message) && !error.message.includes("s3cret"),
  );
  await assert.rejects(rewardFrom({ type: "api", url, key_env: "ATTUNE_TEST_NO_KEY" }).open!(), {
    code: "CONFIG",
    message: /the environment has no ATTUNE_TEST_NO_KEY/,
  });
});

test("what may pass is tried again, and what may not is told at once", async (t) => {
  const passing = await service(t, says("busy", 503), (response) => response.destroy(), says({ scores: [1, 2] }));
  assert.deepEqual(await rewardFrom({ type: "api", url: passing.url }).score(samples, contextOf()), [1, 2]);
  assert.equal(passing.calls.length, 3);

  const wrong: readonly (readonly [reply: (response: ServerResponse) => void, message: RegExp])[] = [
    [
      says({ scores: [1] }),
      /^the reward api asked http:.*\/score of 2 answers, the first rows\.jsonl:4: it answered with 1 scores for 2 answers$/,
    ],
    [says({ scores: [1, "good"] }), /score 2 is "good": expected a number$/],
    [says({ scores: [1, [2]] }), /score 2 is \[2\]: expected a number$/],
    [says({ scores: { a: 1 } }), /expected \{"scores": \[2 numbers\]\}/],
    [says([1, 2]), /expected \{"scores"/],
    [says("<html>"), /which is no JSON/],
    [says(""), /which is no JSON/],
    [says("[".repeat(1e6)), /which is no JSON/],
    [says("no such model", 404), /status 404: "no such model"$/],
    [(response) => response.writeHead(302, { location: "http://127.0.0.1:9/elsewhere" }).end(), /status 302/],
    [says("x".repeat(2 ** 24 + 1)), /over 16777216 bytes/],
  ];
  for (const [reply, message] of wrong) {
    const { url, calls } = await service(t, reply);
    await assert.rejects(rewardFrom({ type: "api", url }).score(samples, contextOf()), { code: "REWARD", message });
    assert.equal(calls.length, 1);
  }
});

test("a service that hangs is given up after its time, as often as asked", async (t) => {
  const { url, calls, connections } = await service(t, () => {});
  const before = performance.now();
  await assert.rejects(rewardFrom({ type: "api", url, timeout: 0.1, retries: 1 }).score(samples, contextOf()), {
    code: "REWARD",
    message: /no answer within 0\.1 s \(2 tries\)$/,
  });
  assert.ok(performance.now() - before < 5000);
  assert.equal(calls.length, 2);
  await new Promise((resolve) => setTimeout(resolve, 50));
  assert.equal(await connections(), 0);

  const dripping = await service(t, (response) => {
    response.write('{"scores": [');
    setInterval(() => response.write(" "), 20).unref();
  });
  await assert.rejects(rewardFrom({ type: "api", url: dripping.url, timeout: 0.2, retries: 0 }).score(samples, contextOf()), {
    message: /no answer within 0\.2 s$/,
  });
});

test("nobody there is told with the place", async () => {
  await assert.rejects(rewardFrom({ type: "api", url: "http://127.0.0.1:9/", retries: 0 }).score(samples, contextOf()), {
    code: "REWARD",
    message: /asked http:\/\/127\.0\.0\.1:9\/ of 2 answers, .* it cannot be reached \(ECONNREFUSED\)$/,
  });
});

test("a run that is stopped waits neither for an answer nor for the next try", async (t) => {
  const { url, connections } = await service(t, () => {});
  for (const address of [url, "http://127.0.0.1:9/"]) {
    const stop = new AbortController();
    const before = performance.now();
    const scoring = rewardFrom({ type: "api", url: address, retries: 50 }).score(samples, contextOf(stop.signal));
    setTimeout(() => stop.abort(new Error("stopped")), 50);
    await assert.rejects(scoring, /^Error: stopped$/);
    assert.ok(performance.now() - before < 5000);
  }
  await new Promise((resolve) => setTimeout(resolve, 50));
  assert.equal(await connections(), 0);
});
