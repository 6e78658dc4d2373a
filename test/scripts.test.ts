import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { chmodSync, copyFileSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import test, { type TestContext } from "node:test";
import { fileURLToPath } from "node:url";

const scripts = fileURLToPath(new URL("../../scripts/", import.meta.url));

/** A tree with a copy of one script and these files; `run` starts the script in it. */
function makeTree(t: TestContext, script: string, files: Record<string, string>) {
  const root = mkdtempSync(join(tmpdir(), "attune-scripts-"));
  t.after(() => rmSync(root, { recursive: true }));
  const write = (path: string, text: string) => {
    mkdirSync(dirname(join(root, path)), { recursive: true });
    writeFileSync(join(root, path), text);
  };
  write("package.json", '{ "type": "module" }');
  for (const [path, text] of Object.entries(files)) write(path, text);
  mkdirSync(join(root, "scripts"), { recursive: true });
  copyFileSync(join(scripts, script), join(root, "scripts", script));

  const run = (args: string[] = [], env: Record<string, string> = {}) => {
    const { NODE_TEST_CONTEXT: _, ATTUNE_PEERS: __, ...inherited } = process.env; // else Node's runner takes it for a part of this run
    const options = { encoding: "utf8", env: { ...inherited, ...env } } as const;
    const { stdout, stderr, status } = spawnSync(process.execPath, [join(root, "scripts", script), ...args], options);
    return { stdout, stderr, exitCode: status };
  };
  return { root, write, run };
}

const passing = 'import test from "node:test"; test("passes", () => {});';
const failing = 'import test from "node:test"; test("fails", () => { throw new Error("on purpose"); });';

test("test.mjs runs each test that has a source, those of test/parity/ only when asked", (t) => {
  const { run } = makeTree(t, "test.mjs", {
    "src/io/a.test.ts": "",
    "dist/src/io/a.test.js": passing,
    "test/b.test.ts": "",
    "dist/test/b.test.js": passing,
    "test/parity/c.test.ts": "",
    "dist/test/parity/c.test.js": failing,
    "dist/src/io/left-over.test.js": failing,
  });
  const all = run();
  assert.match(all.stdout, /tests 2\n/);
  assert.match(all.stdout, /pass 2\n/);
  assert.equal(all.exitCode, 0);

  const filtered = run(["src/io"]);
  assert.match(filtered.stdout, /tests 1\n/);
  assert.equal(filtered.exitCode, 0);

  const parity = run(["--parity"], { ATTUNE_PEERS: tmpdir() });
  assert.match(parity.stdout, /tests 1\n/);
  assert.match(parity.stdout, /fail 1\n/);
  assert.equal(parity.exitCode, 1);
});

test("test.mjs fails when one test does, when a file cannot run, and when nothing is left to run", (t) => {
  const { run, write } = makeTree(t, "test.mjs", {
    "src/a.test.ts": "",
    "dist/src/a.test.js": failing,
    "test/b.test.ts": "",
    "dist/test/b.test.js": passing,
  });
  const one = run();
  assert.match(one.stdout, /pass 1\n/);
  assert.match(one.stdout, /on purpose/);
  assert.equal(one.exitCode, 1);

  write("dist/src/a.test.js", 'import "./missing.js";');
  assert.equal(run().exitCode, 1);

  const nothing = run(["no-such-test"]);
  assert.match(nothing.stderr, /No test file matches "no-such-test"/);
  assert.equal(nothing.exitCode, 2);

  const noPeers = run(["--parity"]);
  assert.match(noPeers.stderr, /set ATTUNE_PEERS/);
  assert.equal(noPeers.exitCode, 2);
});

const lock = (version: string) =>
  JSON.stringify({ packages: { "": {}, "node_modules/a": { version }, "node_modules/for-mac": { version, optional: true } } });
const echo = (text: string, exitCode = 0) => `console.log(${JSON.stringify(text)}); process.exitCode = ${exitCode};`;

test("setup.mjs installs packages only when the lock file asks for others, then builds", (t) => {
  const { root, run, write } = makeTree(t, "setup.mjs", {
    "package-lock.json": lock("1.0.0"),
    "scripts/build-engine.mjs": echo("engine built"),
    // In place of npm: notes its arguments, and leaves behind what npm leaves.
    "npm-cli.js": `import fs from "node:fs";
      fs.writeFileSync("npm-was-called", process.argv.slice(2).join(" "));
      fs.mkdirSync("node_modules/typescript/bin", { recursive: true });
      fs.writeFileSync("node_modules/typescript/bin/tsc", "");
      fs.copyFileSync("package-lock.json", "node_modules/.package-lock.json");`,
  });
  const env = { npm_execpath: join(root, "npm-cli.js") };

  const first = run([], env);
  assert.equal(first.exitCode, 0, first.stderr);
  assert.match(first.stdout, /^packages +ready in .*\nengine +ready in .*\ntypescript +ready in .* s\n$/);
  assert.equal(readFileSync(join(root, "npm-was-called"), "utf8"), "ci --include=dev");

  const second = run([], env);
  assert.match(second.stdout, /^engine +ready in .*\ntypescript +ready in .* s\n$/);

  write("package-lock.json", lock("1.0.1"));
  assert.match(run([], env).stdout, /^packages +ready/);
});

test("setup.mjs shows what a failing stage said, and what to do", (t) => {
  const { root, run, write } = makeTree(t, "setup.mjs", {
    "package-lock.json": lock("1.0.0"),
    "node_modules/.package-lock.json": lock("1.0.0"),
    "node_modules/typescript/bin/tsc": "",
    "scripts/build-engine.mjs": echo("no such header", 1),
    "npm-cli.js": echo("ENOTFOUND registry", 1),
  });
  const engine = run();
  assert.equal(engine.exitCode, 1);
  assert.match(engine.stderr, /no such header.*engine +failed after .* s: .*build-engine\.mjs.*GCC 9/s);

  write("package-lock.json", lock("2.0.0"));
  const network = run([], { npm_execpath: join(root, "npm-cli.js") });
  assert.equal(network.exitCode, 1);
  assert.match(network.stderr, /ENOTFOUND registry.*packages +failed.*If the registry cannot be reached/s);
});

test("setup.mjs --clean leaves nothing in dist/ that has no source", (t) => {
  const { root, run } = makeTree(t, "setup.mjs", {
    "package-lock.json": lock("1.0.0"),
    "node_modules/.package-lock.json": lock("1.0.0"),
    "node_modules/typescript/bin/tsc": 'require("node:fs").mkdirSync("dist")', // fails where there is one
    "node_modules/package.json": "{}",
    "scripts/build-engine.mjs": "",
    "dist/old.js": "",
  });
  assert.equal(run(["--clean"]).exitCode, 0);
  assert.deepEqual(readdirSync(join(root, "dist")), []);
});

const systems = ["linux-x64", "linux-arm64", "darwin-arm64", "darwin-x64", "win32-x64"];
const engineOf = (system: string, version = "1.2.3") => ({
  [`build/packages/engine-${system}/package.json`]: JSON.stringify({ name: `@attune/engine-${system}`, version }),
});
const isWindows = process.platform === "win32";

test("publish.mjs publishes five engines, then attune that names them, and takes up a release that broke off", {
  skip: isWindows && "npm is replaced by a script",
}, (t) => {
  const manifest = JSON.stringify({ name: "attune", version: "1.2.3", type: "module" });
  const { root, run, write } = makeTree(t, "publish.mjs", {
    "package.json": manifest,
    ...Object.assign({}, ...systems.map((system) => engineOf(system))),
    // In place of npm: notes what is published, and refuses to publish it twice, or "broken" at all.
    "bin/npm": `#!${process.execPath}
      const fs = require("node:fs");
      const [command, of] = process.argv.slice(2);
      const { name, version, optionalDependencies } = JSON.parse(fs.readFileSync("package.json", "utf8"));
      const note = process.env.NOTES + "/" + name.replace("/", "+");
      if (command === "view") return fs.existsSync(process.env.NOTES + "/" + of.replace("/", "+").replace(/@[^@]*$/, "")) ? console.log(version) : process.exit(1);
      if (fs.existsSync(note) || name === process.env.BROKEN) process.exit(1);
      fs.writeFileSync(note, JSON.stringify({ arguments: process.argv.slice(2), optionalDependencies }));`,
  });
  chmodSync(join(root, "bin/npm"), 0o755);
  write("bin/package.json", "{}");
  write("notes/none", "");
  const env = { PATH: `${join(root, "bin")}:${process.env.PATH}`, NOTES: join(root, "notes") };

  assert.equal(run([], { ...env, BROKEN: "attune" }).exitCode, 1);
  assert.equal(readFileSync(join(root, "package.json"), "utf8"), manifest, "as it was, also where publishing failed");
  const again = run(["--provenance"], env);
  assert.equal(again.exitCode, 0, again.stderr);
  assert.equal(readFileSync(join(root, "package.json"), "utf8"), manifest);
  const optionalDependencies = Object.fromEntries(systems.map((system) => [`@attune/engine-${system}`, "1.2.3"]));
  assert.deepEqual(JSON.parse(readFileSync(join(root, "notes/attune"), "utf8")), {
    arguments: ["publish", "--access", "public", "--provenance"],
    optionalDependencies,
  });
  assert.equal(readdirSync(join(root, "notes")).length, 1 + systems.length + 1);
  assert.match(run([], env).stdout, /^attune 1\.2\.3 is published already$/m);

  write("build/packages/engine-darwin-x64/package.json", JSON.stringify({ name: "@attune/engine-darwin-x64", version: "1.2.2" }));
  assert.match(run([], env).stderr, /@attune\/engine-darwin-x64 is version 1\.2\.2, attune 1\.2\.3: make it again/);
  rmSync(join(root, "build/packages/engine-linux-x64"), { recursive: true });
  assert.match(run([], env).stderr, /engine-linux-x64 is not there: run scripts\/make-platform-package\.mjs on linux-x64 first/);
});
