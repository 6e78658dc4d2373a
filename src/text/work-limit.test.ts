import assert from "node:assert/strict";
import test from "node:test";
import { Worker } from "node:worker_threads";
import { withTimeLimit } from "./work-limit.js";

const tooLong = () => new RangeError("too long");

/** Runs `job` while other threads of the process are busy, as the engine's are. */
async function besideBusyThreads(job: () => void): Promise<void> {
  const threads = Array.from({ length: 2 }, () => new Worker("for (;;);", { eval: true }));
  try {
    await Promise.all(threads.map((thread) => new Promise((resolve) => thread.once("online", resolve))));
    job();
  } finally {
    await Promise.all(threads.map((thread) => thread.terminate()));
  }
}

/** Holds this thread up without letting it work, as a busy machine does. */
function wait(ms: number): void {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms);
}

test("a job that has to wait is not stopped, however busy other threads are", async () => {
  await besideBusyThreads(() => {
    const waits = () => {
      wait(500);
      return "done";
    };
    assert.equal(withTimeLimit(100, waits, tooLong), "done");
  });
});

test("a job that never ends is stopped, beside busy threads too; loops and regular expressions", async () => {
  const endless = () => {
    for (;;);
  };
  const backtracking = () => /(?:a+)+$/.test(`${"a".repeat(60)}b`);
  await besideBusyThreads(() => {
    for (const job of [endless, backtracking]) assert.throws(() => withTimeLimit(100, job, tooLong), { message: "too long" });
  });
});

test("what a job throws comes through, and a limit within a limit is the outer one's", () => {
  const fails = () => {
    throw new TypeError("its own");
  };
  assert.throws(() => withTimeLimit(100, fails, tooLong), { name: "TypeError", message: "its own" });
  const inner = () => withTimeLimit(1, () => wait(20), assert.fail);
  withTimeLimit(1000, inner, tooLong);
  assert.equal(
    withTimeLimit(1000, () => 1, tooLong),
    1,
    "the next limit is one of its own again",
  );
});
