import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test from "node:test";
import { commandLine, invocation } from "./shell.js";

const isPosix = process.platform !== "win32";

test("a line that is pasted into a shell gives the words back", { skip: !isPosix }, () => {
  const words = ["plain", "runs/a b", "it's", 'say "hi"', "$HOME `x` !", "~/x", "", "two\nlines", "名字", "C:\\x y\\"];
  const line = commandLine([process.execPath, "-e", "console.log(JSON.stringify(process.argv.slice(1)))", "--", ...words]);
  assert.deepEqual(JSON.parse(execFileSync("sh", ["-c", line], { encoding: "utf8" })), words);
  assert.equal(commandLine(["attune", "chat", "--adapter", "runs/orders"]), "attune chat --adapter runs/orders");
});

test("on Windows, words are quoted as its shells and programs read them", () => {
  const line = commandLine(["attune", "chat", "C:\\runs\\one", "C:\\my runs\\", 'say "hi"', "it's"], "win32");
  assert.equal(line, 'attune chat C:\\runs\\one "C:\\my runs\\\\" "say ""hi""" "it\'s"');
});

test("the command is called as this shell finds it: by its name, by npx, or by its file in a clone", { skip: !isPosix }, () => {
  const folder = mkdtempSync(join(tmpdir(), "attune-shell-"));
  const packageAt = (root: string) => {
    mkdirSync(join(root, "bin"), { recursive: true });
    writeFileSync(join(root, "bin/attune.js"), "");
    return root;
  };
  const linked = (path: string, root: string) => {
    mkdirSync(path, { recursive: true });
    symlinkSync(join(root, "bin/attune.js"), join(path, "attune"));
    return { PATH: `/nowhere:${path}` };
  };
  const clone = packageAt(join(folder, "a clone"));
  assert.deepEqual(invocation({}, { root: clone, folder: clone }), ["node", "bin/attune.js"]);
  assert.deepEqual(invocation({}, { root: clone, folder: join(clone, "examples") }), ["node", "../bin/attune.js"]);
  assert.deepEqual(invocation({}, { root: clone, folder: "/usr/share/doc" }), ["node", join(clone, "bin/attune.js")]);

  const local = packageAt(join(folder, "project/node_modules/attune"));
  assert.deepEqual(invocation({}, { root: local, folder }), ["npx", "attune"]);
  const byNpx = linked(join(folder, "project/node_modules/.bin"), local);
  assert.deepEqual(invocation(byNpx, { root: local, folder }), ["npx", "attune"]);

  const everywhere = packageAt(join(folder, "lib/node_modules/attune"));
  const byName = linked(join(folder, "bin"), everywhere);
  assert.deepEqual(invocation(byName, { root: everywhere, folder }), ["attune"]);
  assert.deepEqual(invocation(byName, { root: local, folder }), ["npx", "attune"], "another attune has the name");
  rmSync(folder, { recursive: true });
});
