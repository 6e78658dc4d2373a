import assert from "node:assert/strict";
import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import fs from "node:fs/promises";
import { syncBuiltinESMExports } from "node:module";
import { dirname, join, sep } from "node:path";
import test, { type TestContext } from "node:test";
import { newestCompleteCheckpoint, pruneCheckpoints, publishFolder } from "./checkpoint.js";
import { writeFileAtomic } from "./disk.js";
import { writeSafetensors } from "./safetensors.js";
import { temporaryFolder } from "./testing/folders.js";

/** A power failure after any operation of a save, modelled: each state that it can leave is rebuilt and read. */
type Operation =
  | { kind: "folder"; path: string }
  | { kind: "file"; path: string; id: number }
  | { kind: "write"; id: number; data: Buffer }
  | { kind: "sync"; id: number }
  | { kind: "syncFolder"; path: string }
  | { kind: "rename"; path: string; to: string }
  | { kind: "remove"; path: string };

type Tree = Map<string, number | "folder">;

/** Records what happens to files while `work` runs. */
async function record(t: TestContext, work: () => Promise<void>): Promise<Operation[]> {
  const operations: Operation[] = [];
  const tree: Tree = new Map();
  let ids = 0;
  const note = (operation: Operation) => {
    operations.push(operation);
    applyName(tree, operation);
  };
  const { open, mkdir, rename, rm } = fs;
  const spies = [
    t.mock.method(fs, "mkdir", async (path: string, options?: object) => {
      const made = await mkdir(path, options);
      if (!tree.has(path)) note({ kind: "folder", path });
      return made;
    }),
    t.mock.method(fs, "rename", async (path: string, to: string) => {
      await rename(path, to);
      note({ kind: "rename", path, to });
    }),
    t.mock.method(fs, "rm", async (path: string, options?: object) => {
      await rm(path, options);
      note({ kind: "remove", path });
    }),
    t.mock.method(fs, "open", async (path: string, flags: string) => {
      const handle = await open(path, flags);
      const isFolder = (await handle.stat()).isDirectory();
      if (!isFolder && flags.startsWith("w")) note({ kind: "file", path, id: ids++ });
      const { writeFile, sync } = handle;
      handle.writeFile = async (data) => {
        await writeFile.call(handle, data);
        note({ kind: "write", id: tree.get(path) as number, data: Buffer.from(data as Uint8Array) });
      };
      handle.sync = async () => {
        await sync.call(handle);
        note(isFolder ? { kind: "syncFolder", path } : { kind: "sync", id: tree.get(path) as number });
      };
      return handle;
    }),
  ];
  syncBuiltinESMExports();
  try {
    await work();
  } finally {
    for (const { mock } of spies) mock.restore();
    syncBuiltinESMExports();
  }
  return operations;
}

function applyName(tree: Tree, operation: Operation): void {
  const below = (path: string) => [...tree.keys()].filter((key) => key === path || key.startsWith(path + sep));
  const isPossible = (path: string) => tree.size === 0 || tree.has(dirname(path)); // the first entry is the output folder
  if (operation.kind === "folder" && isPossible(operation.path)) tree.set(operation.path, "folder");
  if (operation.kind === "file" && isPossible(operation.path)) tree.set(operation.path, operation.id);
  if (operation.kind === "remove") for (const key of below(operation.path)) tree.delete(key);
  if (operation.kind === "rename") {
    for (const key of below(operation.path)) {
      tree.set(operation.to + key.slice(operation.path.length), tree.get(key)!);
      tree.delete(key);
    }
  }
}

/**
 * What a failure right after the first `count` operations, of which `first` are long safe, can undo: names that no synced folder
 * vouches for, the last few or any one of them, and unsynced content but for the share `kept`.
 */
function* lossesAfter(
  operations: readonly Operation[],
  first: number,
  count: number,
): Generator<{ lost: ReadonlySet<number>; kept: number }> {
  const done = operations.slice(0, count);
  const isVouchedFor = (operation: Operation, index: number) => {
    if (!("path" in operation) || operation.kind === "syncFolder") return true;
    const folders = [dirname(operation.path), ...(operation.kind === "rename" ? [dirname(operation.to)] : [])];
    return folders.every((folder) =>
      done.some((later, at) => at > index && later.kind === "syncFolder" && later.path === folder),
    );
  };
  const unsafe = [...done.keys()].filter((index) => index >= first && !isVouchedFor(done[index]!, index));
  const losses = [[], ...unsafe.map((index) => [index]), ...unsafe.map((_, index) => unsafe.slice(index))];
  for (const lost of losses) for (const kept of [1, 0.5, 0]) yield { lost: new Set(lost), kept };
}

/** The files after the first `count` operations and a loss, in an order in which they can be made. */
function stateOf(
  operations: readonly Operation[],
  count: number,
  lost: ReadonlySet<number>,
  kept: number,
): [string, Buffer | "folder"][] {
  const tree: Tree = new Map();
  const contents = new Map<number, Buffer>();
  for (const [index, operation] of operations.slice(0, count).entries()) {
    if (!lost.has(index)) applyName(tree, operation);
    if (operation.kind !== "write") continue;
    const { id, data } = operation;
    const isSynced = operations.slice(index, count).some((later) => later.kind === "sync" && later.id === id);
    contents.set(
      id,
      Buffer.concat([contents.get(id) ?? Buffer.alloc(0), isSynced ? data : data.subarray(0, data.length * kept)]),
    );
  }
  const paths = [...tree].sort(([a], [b]) => a.length - b.length);
  return paths.map(([path, entry]) => [path, entry === "folder" ? entry : (contents.get(entry) ?? Buffer.alloc(0))]);
}

async function publish(outputDir: string, step: number, text: string): Promise<void> {
  await publishFolder(join(outputDir, `checkpoint-${step}`), async (folder) => {
    const data = () => Buffer.from(text.repeat(4));
    await writeSafetensors(join(folder, "weights"), [{ name: "a", dtype: "f32", shape: [text.length], data }], { fsync: false });
    await writeFileAtomic(join(folder, "state"), text);
  });
}

/** Rebuilds every state after the first save was finished; each must hold the old or the new text, and the new one when all was done. */
async function replay(outputDir: string, operations: readonly Operation[]): Promise<void> {
  const first = operations.findIndex((operation) => operation.kind === "syncFolder" && operation.path === outputDir) + 1;
  const seen = new Set<string>();
  for (let count = first; count <= operations.length; count++) {
    for (const { lost, kept } of lossesAfter(operations, first, count)) {
      const isDone = count === operations.length;
      const state = stateOf(operations, count, lost, kept);
      const key = JSON.stringify([isDone, state]);
      if (seen.has(key)) continue;
      seen.add(key);
      rmSync(outputDir, { recursive: true, force: true });
      for (const [path, content] of state) {
        if (content === "folder") mkdirSync(path, { recursive: true });
        else writeFileSync(path, content);
      }
      const newest = await newestCompleteCheckpoint(outputDir);
      assert(newest, `nothing to read after operation ${count}`);
      const text = readFileSync(join(newest.path, "state"), "utf8");
      assert(text === "new" || (text === "old" && !isDone), `found "${text}" after operation ${count}`);
      assert(readFileSync(join(newest.path, "weights")).includes(text.repeat(4)), "a mix of two saves");
    }
  }
  assert(seen.size > 30, `only ${seen.size} states`);
}

test("a power failure leaves the old checkpoint or the new one, and never takes back a finished save", async (t) => {
  const outputDir = join(temporaryFolder(t), "out");
  const operations = await record(t, async () => {
    await publish(outputDir, 1, "old");
    await publish(outputDir, 2, "new");
    await pruneCheckpoints(outputDir, 1);
  });
  await replay(outputDir, operations);
});

test("a power failure while a checkpoint is replaced leaves the old one or the new one", async (t) => {
  const outputDir = join(temporaryFolder(t), "out");
  const operations = await record(t, async () => {
    await publish(outputDir, 1, "old");
    await publish(outputDir, 1, "new");
  });
  await replay(outputDir, operations);
});
