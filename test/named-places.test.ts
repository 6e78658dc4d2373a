import assert from "node:assert/strict";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { PassThrough, Readable } from "node:stream";
import test from "node:test";
import { fileURLToPath } from "node:url";
import { main } from "../src/cli/main.js";
import { parts } from "../src/cli/parts.js";

const root = fileURLToPath(new URL("../../", import.meta.url));
const folders = ["src", "test", "bench", "examples", "scripts", "engine", "docs", "bin"];

interface Line {
  readonly where: string;
  readonly text: string;
}

function linesOf(file: string): Line[] {
  const lines = readFileSync(join(root, file), "utf8").split("\n");
  return lines.map((text, i) => ({ where: `${file}:${i + 1}`, text }));
}

const all = folders.flatMap((folder) =>
  readdirSync(join(root, folder), { recursive: true, encoding: "utf8" }).map((file) => `${folder}/${file.replaceAll("\\", "/")}`),
);
const documents = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", ...all.filter((file) => file.endsWith(".md"))];
const sources = all.filter((file) => /\.(ts|mjs|js|cpp|h|inl|py)$/.test(file));

const prose = documents.flatMap(linesOf);
/** Behind "Source:" stand the files of other projects. */
const comments = sources.flatMap(linesOf).filter(({ text }) => /^\s*(\*|\/\*|\/\/|#)/.test(text) && !/Sources?:/.test(text));

/** Whether a path is there; `*` stands for any part of a name, NAME for one to choose, and the number of a decision for its file. */
function isThere(path: string): boolean {
  if (path.includes("NAME")) return existsSync(join(root, dirname(path)));
  const folder = join(root, dirname(path));
  if (existsSync(join(root, path))) return true;
  const name = new RegExp(
    `^${basename(path).replaceAll(".", "\\.").replaceAll("*", ".*")}${/^\d{4}$/.test(basename(path)) ? "-" : "$"}`,
  );
  return existsSync(folder) && readdirSync(folder).some((file) => name.test(file));
}

function missing(lines: readonly Line[], pattern: RegExp): string[] {
  return lines.flatMap(({ where, text }) =>
    [...text.matchAll(pattern)]
      .map(([path]) => path.replace(/[./,-]+$/, ""))
      .filter((path) => !isThere(path))
      .map((path) => `${where}: ${path}`),
  );
}

test("each path that a document names exists", () => {
  assert.deepEqual(missing(prose, /(?<![\w./~-])(?:src|test|bench|examples|scripts|engine|docs|bin)\/[\w./*-]*/g), []);
  assert.deepEqual(missing([{ where: "here", text: "see `src/nowhere/`." }], /src\/[\w./*-]*/g), ["here: src/nowhere"]);
});

test("each link between documents leads to a file", () => {
  const broken = documents.flatMap((file) =>
    linesOf(file).flatMap(({ where, text }) =>
      [...text.matchAll(/\]\((?!https?:|#)([^)#\s]+)/g)]
        .filter(([, to]) => !existsSync(join(root, dirname(file), to!)))
        .map(([, to]) => `${where}: ${to}`),
    ),
  );
  assert.deepEqual(broken, []);
});

test("each of our own files that a comment names exists", () => {
  const ours = /(?<![\w./~-])(?:(?:src|test|bench|examples|scripts)\/[\w./*-]+\.(?:ts|mjs)|engine\/[\w./*-]+|docs\/[\w./*-]+)/g;
  assert.deepEqual(missing(comments, ours), []);
});

test("each command that a document names can be given", async () => {
  const scripts = Object.keys(JSON.parse(readFileSync(join(root, "package.json"), "utf8")).scripts);
  const stdout = new PassThrough({ encoding: "utf8" });
  await main(["--help"], parts, { stdin: Readable.from([]), stdout, stderr: stdout, env: {} });
  const commands = [...String(stdout.read()).matchAll(/^ {2}([a-z]+)/gm)].map(([, name]) => name);
  const wrong = prose.flatMap(({ where, text }) => [
    ...[...text.matchAll(/npm run ([\w:-]+)/g)].filter(([, name]) => !scripts.includes(name!)).map(([all]) => `${where}: ${all}`),
    ...[...text.matchAll(/node dist\/([\w/-]+)\.js/g)]
      .filter(([, file]) => !existsSync(join(root, `${file}.ts`)))
      .map(([all]) => `${where}: ${all}`),
    ...[...text.matchAll(/bin\/attune\.js ([a-z]+)/g)]
      .filter(([, name]) => !commands.includes(name))
      .map(([all]) => `${where}: ${all}`),
  ]);
  assert.deepEqual(wrong, []);
});
