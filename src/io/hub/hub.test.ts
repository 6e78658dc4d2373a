import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { lstatSync, mkdirSync, readdirSync, readFileSync, readlinkSync, rmSync, writeFileSync } from "node:fs";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import test, { type TestContext } from "node:test";
import { ModelError } from "../../errors.js";
import { resolveModel } from "../resolve.js";
import { buildGguf, repetitions, seededIntegers, temporaryFolder } from "../testing/folders.js";
import { fetchFromHub, type HubOptions, ModelUnavailableError, parseHubName } from "./hub.js";

const repository = "owner/name";
const commit = "c".repeat(40);
const random = seededIntegers(6);
const noise = (length: number) => Buffer.from(Array.from({ length }, () => random(256)));
const sha256 = (data: Uint8Array) => createHash("sha256").update(data).digest("hex");
const gitId = (data: Uint8Array) => createHash("sha1").update(`blob ${data.length}\0`).update(data).digest("hex");

const safetensors = (() => {
  const header = Buffer.from('{"a":{"dtype":"F32","shape":[25000],"data_offsets":[0,100000]}}');
  const length = Buffer.alloc(8);
  length.writeUInt32LE(header.length);
  return Buffer.concat([length, header, noise(100_000)]);
})();

/** What the hub serves under a commit; .safetensors and .gguf files are "large", with a sha256 and on another host. */
type Files = Record<string, Buffer>;

const usualFiles: Files = {
  "config.json": Buffer.from('{"model_type":"llama"}'),
  "tokenizer.json": Buffer.from("{}"),
  "model.safetensors": safetensors,
  "README.md": Buffer.from("not wanted"),
  "pytorch_model.bin": Buffer.from("not wanted"),
  "onnx/model.onnx": Buffer.from("not wanted"),
};

interface FakeHub {
  readonly url: string;
  files: Files;
  commit: string;
  /** May answer a download itself; returns true if it did. */
  interfere: (request: IncomingMessage, response: ServerResponse, content: Buffer) => boolean;
  /** May answer a listing itself; returns true if it did. */
  interfereWithListing: (request: IncomingMessage, response: ServerResponse) => boolean;
  /** Status for the next requests to the API. */
  apiStatus: number[];
  readonly log: { host: "hub" | "store"; path: string; range: string | undefined; authorization: string | undefined }[];
}

/** A hub on this machine with its store of large files on another port, and an empty cache that the environment points to. */
async function fakeHub(t: TestContext): Promise<{ hub: FakeHub; cache: string; options: HubOptions }> {
  const listen = async (handle: (request: IncomingMessage, response: ServerResponse) => unknown) => {
    const server = createServer(handle);
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    t.after(() => {
      server.closeAllConnections();
      server.close();
    });
    return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  };
  const note = (host: "hub" | "store", { url, headers }: IncomingMessage) =>
    hub.log.push({ host, path: url!.split("?")[0]!, range: headers.range, authorization: headers.authorization });

  const send = (request: IncomingMessage, response: ServerResponse, path: string): unknown => {
    const content = hub.files[path];
    if (content === undefined) return response.writeHead(404).end();
    if (hub.interfere(request, response, content)) return undefined;
    const start = Number(/^bytes=(\d+)-$/.exec(request.headers.range ?? "")?.[1] ?? 0);
    const range = { "content-range": `bytes ${start}-${content.length - 1}/${content.length}` };
    return response.writeHead(start > 0 ? 206 : 200, start > 0 ? range : {}).end(content.subarray(start));
  };
  const store = await listen((request, response) => {
    note("store", request);
    send(request, response, decodeURIComponent(request.url!.slice(1)));
  });
  const url = await listen((request, response) => {
    note("hub", request);
    const path = request.url!.split("?")[0]!;
    const json = (value: unknown) => response.writeHead(200, { "content-type": "application/json" }).end(JSON.stringify(value));
    if (path.startsWith("/api/")) {
      const status = hub.apiStatus.shift() ?? 200;
      if (status !== 200) return response.writeHead(status, { "retry-after": "0.001" }).end();
      if (path === `/api/models/${repository}/revision/main` || path.endsWith(`/revision/${hub.commit}`))
        return json({ _id: "1", id: repository, sha: hub.commit });
      if (path !== `/api/models/${repository}/tree/${hub.commit}`) return response.writeHead(404).end();
      if (hub.interfereWithListing(request, response)) return undefined;
      return json(
        Object.entries(hub.files).map(([name, data]) => {
          const lfs = isLarge(name) ? { oid: sha256(data), size: data.length, pointerSize: 100 } : undefined;
          return { type: "file", path: name, size: data.length, oid: gitId(data), lfs };
        }),
      );
    }
    const name = path.slice(`/${repository}/resolve/${hub.commit}/`.length);
    if (isLarge(name)) return response.writeHead(302, { location: `${store}/${encodeURIComponent(name)}` }).end();
    return send(request, response, name);
  });
  const hub: FakeHub = {
    url,
    files: { ...usualFiles },
    commit,
    interfere: () => false,
    interfereWithListing: () => false,
    apiStatus: [],
    log: [],
  };

  const cache = join(temporaryFolder(t), "hub");
  const environment = { HF_ENDPOINT: `${url}/`, HF_HUB_CACHE: cache, HF_TOKEN: "hf_secret", HF_HUB_OFFLINE: "0" };
  for (const [key, value] of Object.entries(environment)) {
    const before = process.env[key];
    process.env[key] = value;
    t.after(() => {
      if (before === undefined) delete process.env[key];
      else process.env[key] = before;
    });
  }
  return { hub, cache, options: { retryMs: 1, timeoutMs: 2000 } };
}

function isLarge(name: string): boolean {
  return /\.(?:safetensors|gguf)$/.test(name);
}

const name = parseHubName(repository)!;

/** No file has its final name without its content; nothing temporary is left. */
function assertCacheIsSound(cache: string): void {
  const blobs = join(cache, "models--owner--name", "blobs");
  for (const blob of readdirSync(blobs)) {
    const data = readFileSync(join(blobs, blob));
    assert(blob === sha256(data) || blob === gitId(data), `${blob} is not what its name says`);
  }
}

test("names of a hub, and what is none", () => {
  assert.deepEqual(parseHubName("Owner/na.me-1_x"), { repository: "Owner/na.me-1_x", revision: "main" });
  assert.deepEqual(parseHubName("o/n@refs/pr/1"), { repository: "o/n", revision: "refs/pr/1" });
  assert.deepEqual(parseHubName("o/n/sub/x.Q4_1.gguf@v1"), { repository: "o/n", revision: "v1", file: "sub/x.Q4_1.gguf" });
  const none = [
    "",
    "x",
    "/o/n",
    "o/n/",
    "../n",
    "o/..",
    "o/n@..",
    "o/n@../x",
    "o/n@a/../b",
    "o/n/../x.gguf",
    "o/n/x.bin",
    "o--x/n",
    "o/n\0",
    "o/n?x",
    "o\\n/x",
    "C:/x",
    "o/n@",
  ];
  for (const text of none) assert.equal(parseHubName(text), undefined, text);
});

test("a model is downloaded into Python's cache layout, with only the files that are needed", async (t) => {
  const { hub, cache, options } = await fakeHub(t);
  const progress: [number, number][] = [];
  const model = await resolveModel(repository, { ...options, onProgress: (done, total) => progress.push([done, total]) });
  const folder = join(cache, "models--owner--name");
  assert.equal(model.path, join(folder, "snapshots", commit));
  assert.deepEqual(readdirSync(model.path).sort(), ["config.json", "model.safetensors", "tokenizer.json"]);
  assert.equal(readFileSync(join(folder, "refs", "main"), "utf8"), commit);
  const weights = join(model.path, "model.safetensors");
  assert(lstatSync(weights).isSymbolicLink());
  assert.equal(readlinkSync(weights), join("..", "..", "blobs", sha256(safetensors)));
  assert.equal(readlinkSync(join(model.path, "config.json")), join("..", "..", "blobs", gitId(usualFiles["config.json"]!)));
  assert.equal((await model.readTensor("a")).length, 100_000);
  assertCacheIsSound(cache);

  const total = safetensors.length + 24;
  assert.deepEqual(progress[0], [0, total]);
  assert.deepEqual(progress.at(-1), [total, total]);
  assert(
    progress.every(([done], i) => i === 0 || done >= progress[i - 1]![0]),
    "progress never goes back",
  );

  hub.log.length = 0;
  await resolveModel(repository, options);
  assert(
    hub.log.every(({ path }) => path.startsWith("/api/")),
    "the second time only the revision is looked up",
  );
});

test("the token goes to the hub and never to the store that it redirects to", async (t) => {
  const { hub, options } = await fakeHub(t);
  await fetchFromHub(name, options);
  assert(hub.log.some(({ host }) => host === "store"));
  for (const { host, authorization } of hub.log) assert.equal(authorization, host === "hub" ? "Bearer hf_secret" : undefined);
});

test("downloads that are cut at any byte go on where they stopped", async (t) => {
  const { hub, cache, options } = await fakeHub(t);
  const wantedCuts = repetitions(60, 300);
  let cuts = 0;
  hub.interfere = (request, response, content) => {
    if (cuts >= wantedCuts) return false;
    cuts++;
    const start = Number(/^bytes=(\d+)-$/.exec(request.headers.range ?? "")?.[1] ?? 0);
    response.writeHead(start > 0 ? 206 : 200, {
      "content-length": content.length - start,
      ...(start > 0 && { "content-range": `bytes ${start}-${content.length - 1}/${content.length}` }),
    });
    response.write(content.subarray(start, start + 1 + random(1600)), () => response.destroy());
    return true;
  };
  while (cuts < wantedCuts) {
    rmSync(cache, { recursive: true, force: true });
    await resolveModel(repository, options);
    assertCacheIsSound(cache);
  }
});

test("a killed download is continued by the next process, not begun again", async (t) => {
  const { hub, cache, options } = await fakeHub(t);
  let sent: () => void;
  const wasSent = new Promise<void>((resolve) => {
    sent = resolve;
  });
  hub.interfere = (_request, response, content) => {
    if (content !== safetensors) return false;
    response.writeHead(200, { "content-length": content.length });
    response.write(content.subarray(0, 60_000), () => sent()); // and then nothing more
    return true;
  };
  const source = `import { fetchFromHub } from ${JSON.stringify(new URL("./hub.js", import.meta.url).href)};
    await fetchFromHub(${JSON.stringify(name)}, { onProgress: (done) => done > 60000 && process.stdout.write("there") });`;
  const child = spawn(process.execPath, ["--input-type=module", "-e", source], { stdio: ["ignore", "pipe", "inherit"] });
  await wasSent;
  await new Promise((resolve) => child.stdout.once("data", resolve));
  const ended = new Promise((resolve) => child.on("exit", resolve));
  child.kill("SIGKILL");
  await ended;
  const blobs = join(cache, "models--owner--name", "blobs");
  assert(!readdirSync(blobs).includes(sha256(safetensors)), "half a file has no final name");

  hub.interfere = () => false;
  hub.log.length = 0;
  await fetchFromHub(name, options);
  const range = hub.log.find(({ host }) => host === "store")?.range;
  assert.match(range ?? "", /^bytes=[1-9]\d*-$/);
  assertCacheIsSound(cache);
});

test("a server that knows no ranges is asked from the beginning", async (t) => {
  const { hub, cache, options } = await fakeHub(t);
  let calls = 0;
  hub.interfere = (_request, response, content) => {
    if (content !== safetensors) return false;
    response.writeHead(200, { "content-length": content.length });
    if (calls++ < 3) response.write(content.subarray(0, 1000 * calls), () => response.destroy());
    else response.end(content);
    return true;
  };
  await fetchFromHub(name, options);
  assertCacheIsSound(cache);
});

test("a server that answers with another range, or none, is asked for the whole", async (t) => {
  const { hub, cache, options } = await fakeHub(t);
  let calls = 0;
  hub.interfere = (_request, response, content) => {
    if (content !== safetensors || calls === 4) return false;
    const call = calls++;
    if (call % 2 === 0)
      response.writeHead(200, { "content-length": content.length }).write(content.subarray(0, 500), () => response.destroy());
    else if (call === 1) response.writeHead(416).end();
    else response.writeHead(206, { "content-range": `bytes 7-${content.length - 1}/${content.length}` }).end(content.subarray(7));
    return true;
  };
  await fetchFromHub(name, options);
  assert.equal(calls, 4);
  assertCacheIsSound(cache);
});

test("wrong content is never kept: refused after a second try, repaired if the second try is right", async (t) => {
  const { hub, cache, options } = await fakeHub(t);
  let wrong = 1;
  hub.interfere = (_request, response, content) => {
    if (content !== safetensors || wrong-- <= 0) return false;
    const changed = Buffer.from(content);
    changed[50_000]! ^= 1;
    response.end(changed);
    return true;
  };
  await fetchFromHub(name, options);
  assertCacheIsSound(cache);

  rmSync(cache, { recursive: true });
  wrong = 100;
  await assert.rejects(fetchFromHub(name, options), /does not have the hash that the hub states/);
  assertCacheIsSound(cache);
  assert(!readdirSync(join(cache, "models--owner--name", "snapshots", commit)).includes("model.safetensors"));

  wrong = 0;
  hub.interfere = (_request, response, content) => {
    if (content === safetensors) response.end(Buffer.concat([content, content]));
    return content === safetensors;
  };
  await assert.rejects(fetchFromHub(name, options), /sends more than/);
});

test("a busy hub is asked again, a broken one is given up", async (t) => {
  const { hub, options } = await fakeHub(t);
  hub.apiStatus = [429, 503, 502];
  let busy = 2;
  hub.interfere = (_request, response) => {
    if (busy-- <= 0) return false;
    response.writeHead(503).end();
    return true;
  };
  await fetchFromHub(name, options);
  hub.apiStatus = Array(20).fill(429);
  const notices: string[] = [];
  await fetchFromHub(name, { ...options, onNotice: (notice) => notices.push(notice) });
  assert.match(notices[0]!, /too busy \(status 429, 5 attempts\).*Using the copy in the cache/);
});

test("a stalled download and a silent hub end in time, with words that help", async (t) => {
  const { hub, options } = await fakeHub(t);
  const quick = { ...options, timeoutMs: 100 };
  hub.interfere = (_request, response, content) => {
    response.writeHead(200, { "content-length": content.length });
    response.write(content.subarray(0, 1));
    return true;
  };
  await assert.rejects(fetchFromHub(name, quick), (error) => {
    assert(error instanceof ModelUnavailableError);
    assert.match(error.message, /breaks again and again \(nothing came for 0\.1 s\).*run again to continue/);
    return true;
  });
  process.env.HF_ENDPOINT = "http://127.0.0.1:9"; // nobody listens
  const start = performance.now();
  await assert.rejects(fetchFromHub(name, options), (error) => {
    assert(error instanceof ModelUnavailableError);
    assert.match(
      error.message,
      /http:\/\/127\.0\.0\.1:9 cannot be reached \(.*\)\. Check the network, set HF_ENDPOINT to a mirror/,
    );
    return true;
  });
  assert(performance.now() - start < 5000);
});

test("a listing that never ends, or drips, ends in time", async (t) => {
  const { hub, options } = await fakeHub(t);
  const file = (index: number) => ({ type: "file", path: `f${index}`, size: 1, oid: "0".repeat(40) });
  const page = (response: ServerResponse, files: unknown, next: string) =>
    response.writeHead(200, { "content-type": "application/json", link: `<${next}>; rel="next"` }).end(JSON.stringify(files));
  const many = Array.from({ length: 10_000 }, (_, index) => file(index));
  const endings: [RegExp, FakeHub["interfereWithListing"]][] = [
    [/on over 200 pages/, ({ url }, response) => !!page(response, [], `${hub.url}${url}`)],
    [/lists over 100000 files/, ({ url }, response) => !!page(response, many, `${hub.url}${url}`)],
    [/redirects in circles/, ({ url }, response) => !!response.writeHead(302, { location: `${hub.url}${url}` }).end()],
    [/answer of over 16777216 bytes/, (_, response) => pour(response, Buffer.alloc(2 ** 20, " "), 0)],
    [/only \d+ bytes came in/, (_, response) => pour(response, Buffer.from(" "), 50)],
    [/no usable answer/, (_, response) => !!response.writeHead(200, { "content-type": "application/json" }).end("{")],
  ];
  for (const [message, answer] of endings) {
    hub.interfereWithListing = answer;
    const start = performance.now();
    await assert.rejects(fetchFromHub(name, { ...options, timeoutMs: 300 }), (error) => {
      assert(error instanceof ModelError, String(error));
      assert.match(error.message, message);
      return true;
    });
    assert(performance.now() - start < 10_000, String(message));
  }
});

test("a download that drips is given up, and what came is kept", async (t) => {
  const { hub, options } = await fakeHub(t);
  hub.interfere = (_, response, content) => content.length > 1000 && pour(response, Buffer.from("x"), 20);
  await assert.rejects(fetchFromHub(name, { ...options, timeoutMs: 200 }), {
    code: "MODEL",
    message: /breaks again and again \(only \d+ bytes came in 1 s\)/,
  });
});

/** Answers with the same piece again and again until nobody listens. */
function pour(response: ServerResponse, piece: Buffer, pauseMs: number): true {
  response.writeHead(200, { "content-type": "application/json" });
  const write = () => {
    if (response.destroyed) return;
    response.write(piece, () => setTimeout(write, pauseMs).unref());
  };
  write();
  return true;
}

test("offline and unreachable hubs are served from the cache, if it has the model", async (t) => {
  const { hub, options } = await fakeHub(t);
  const offline = { ...options, offline: true };
  await assert.rejects(resolveModel(repository, offline), (error) => {
    assert(error instanceof ModelUnavailableError);
    assert.match(error.message, /no usable copy in the cache at .* \(it was never downloaded\), and offline mode is on/);
    return true;
  });
  await resolveModel(repository, options);
  hub.log.length = 0;
  await resolveModel(repository, offline);
  process.env.HF_HUB_OFFLINE = "YES";
  await resolveModel(repository, options);
  await resolveModel(`${repository}@${commit}`, options);
  assert.equal(hub.log.length, 0, "offline asks nobody");
  process.env.HF_HUB_OFFLINE = "";
  process.env.HF_ENDPOINT = "http://127.0.0.1:9";
  const notices: string[] = [];
  await resolveModel(repository, { ...options, onNotice: (notice) => notices.push(notice) });
  assert.match(notices[0]!, /cannot be reached.*Using the copy in the cache/);
});

test("a copy of which only a part arrived does not count", async (t) => {
  const { hub, cache, options } = await fakeHub(t);
  hub.interfere = (_request, response, content) => {
    if (content === safetensors) response.destroy();
    return content === safetensors;
  };
  const pinned = `${repository}@${commit}`;
  await assert.rejects(
    resolveModel(pinned, options),
    (error) => error instanceof ModelUnavailableError && /run again/.test(error.message),
  );
  assert(readdirSync(join(cache, "models--owner--name", "snapshots", commit)).includes("config.json"));
  await assert.rejects(resolveModel(pinned, { ...options, offline: true }), /no usable copy in the cache .*no weights/);
});

test("a revision that moves gets its new files; the old snapshot stays", async (t) => {
  const { hub, cache, options } = await fakeHub(t);
  await fetchFromHub(name, options);
  hub.commit = "d".repeat(40);
  hub.files = { ...hub.files, "config.json": Buffer.from('{"model_type":"llama","new":1}') };
  hub.log.length = 0;
  const model = await resolveModel(repository, options);
  assert.equal(model.config.new, 1);
  assert(!hub.log.some(({ host }) => host === "store"), "weights that did not change are not downloaded again");
  assert.deepEqual(readdirSync(join(cache, "models--owner--name", "snapshots")).sort(), [commit, hub.commit]);
});

test("processes that want the same model at once share one download", async (t) => {
  const { hub, cache } = await fakeHub(t);
  const source = `import { resolveModel } from ${JSON.stringify(new URL("../resolve.js", import.meta.url).href)};
    await resolveModel("${repository}", { retryMs: 1 });`;
  const codes = await Promise.all(
    [0, 1, 2].map(() => {
      const child = spawn(process.execPath, ["--input-type=module", "-e", source], { stdio: ["ignore", "inherit", "inherit"] });
      return new Promise((resolve) => child.on("exit", resolve));
    }),
  );
  assert.deepEqual(codes, [0, 0, 0]);
  assert.equal(hub.log.filter(({ host }) => host === "store").length, 1);
  assertCacheIsSound(cache);
});

test("a GGUF file is found by name, or alone in its repository", async (t) => {
  const { hub, options } = await fakeHub(t);
  const gguf = buildGguf({}, []);
  hub.files = { "a.gguf": gguf, "b.gguf": gguf, "README.md": Buffer.from("x") };
  assert.match(await fetchFromHub(parseHubName(`${repository}/b.gguf`)!, options), /b\.gguf$/);
  await assert.rejects(fetchFromHub(name, options), /name one file, as in owner\/name\/a\.gguf\. GGUF files: a\.gguf, b\.gguf/);
  await assert.rejects(
    fetchFromHub(parseHubName(`${repository}/c.gguf`)!, options),
    /has no file c\.gguf\. GGUF files: a\.gguf, b\.gguf/,
  );
  hub.files = { "only.gguf": gguf };
  hub.commit = "e".repeat(40);
  await assert.rejects(resolveModel(repository, options), /only\.gguf: .*"general\.architecture" is missing/);
});

test("refusals say what to do and never show the token", async (t) => {
  const { hub, options } = await fakeHub(t);
  const refused = async (reason: RegExp, target = repository) =>
    await assert.rejects(resolveModel(target, options), (error) => {
      assert(error instanceof ModelError, String(error));
      assert(!(error instanceof ModelUnavailableError));
      assert.match(error.message, reason);
      assert(!error.message.includes("hf_secret"));
      return true;
    });
  await refused(/owner\/other: no such model.*check that the token/, "owner/other");
  hub.apiStatus = [401];
  await refused(/no such model/);
  hub.apiStatus = [403];
  await refused(/access is restricted\. Accept its terms at http.*owner\/name/);
  hub.apiStatus = [418];
  await refused(/answered with status 418/);
  await refused(/no such file or folder, and not a name on a model hub/, "./nothing");
  hub.files = { "pytorch_model.bin": Buffer.from("x"), "config.json": Buffer.from("{}") };
  await refused(/only as a pickle \(pytorch_model\.bin\)/);
  hub.files = { "config.json": Buffer.from("{}") };
  await refused(/has no weights that attune reads/);
  process.env.HF_TOKEN = "hf_secret\nX-Injected: 1";
  await refused(/HF_TOKEN .* has characters/);
});

test("a local folder wins over a hub name", async (t) => {
  const { hub, options } = await fakeHub(t);
  const folder = temporaryFolder(t);
  const before = process.cwd();
  process.chdir(folder);
  t.after(() => process.chdir(before));
  mkdirSync("owner/name", { recursive: true });
  writeFileSync("owner/name/config.json", usualFiles["config.json"]!);
  writeFileSync("owner/name/model.safetensors", safetensors);
  assert.equal((await resolveModel(repository, options)).path, repository);
  assert.equal(hub.log.length, 0);
});

test("an abort ends a download at once", async (t) => {
  const { hub, options } = await fakeHub(t);
  const abort = new AbortController();
  hub.interfere = (_request, response) => {
    response.writeHead(200);
    setTimeout(() => abort.abort(new Error("stopped")), 20);
    return true;
  };
  await assert.rejects(fetchFromHub(name, { ...options, signal: abort.signal }), /stopped|aborted/);
});
