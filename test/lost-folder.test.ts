/** A run whose folder is taken away, cut or filled up while it works says so at the next event, and never ends as if all were well. */
import assert from "node:assert/strict";
import { execFileSync, spawnSync } from "node:child_process";
import {
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  renameSync,
  rmSync,
  statfsSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import test, { describe, type TestContext } from "node:test";
import { stringify } from "yaml";
import { AttuneError, type RecipeSettings, type RunEvent } from "../src/index.js";
import { smallDisk } from "../src/io/testing/folders.js";
import { engine } from "./support/gradient-check.js";
import { collect, makeFolder, tinyRecipe } from "./support/run.js";

const remove = (path: string) => rmSync(path, { recursive: true });

/** What somebody may do to the folder of a run. */
const sabotages: Record<string, (out: string) => void> = {
  "the folder deleted": remove,
  "the folder moved": (out) => renameSync(out, `${out}-moved`),
  "another folder in its place": (out) => {
    renameSync(out, `${out}-moved`);
    mkdirSync(out);
  },
  "a copy in its place": (out) => {
    renameSync(out, `${out}-moved`);
    cpSync(`${out}-moved`, out, { recursive: true });
  },
  "a file in its place": (out) => {
    remove(out);
    writeFileSync(out, "");
  },
  "a dangling link in its place": (out) => {
    remove(out);
    symlinkSync(join(out, "nowhere"), out);
  },
  "the events deleted": (out) => remove(join(out, "events.jsonl")),
  "the events emptied": (out) => truncateSync(join(out, "events.jsonl")),
  "lines of the events cut off": (out) => truncateSync(join(out, "events.jsonl"), 100),
  "a folder in place of the events": (out) => {
    remove(join(out, "events.jsonl"));
    mkdirSync(join(out, "events.jsonl"));
  },
  "the log deleted": (out) => remove(join(out, "trainer_log.jsonl")),
  "the log emptied": (out) => truncateSync(join(out, "trainer_log.jsonl")),
};

/** When: at an event of which the run goes on. */
const moments: Record<string, (event: RunEvent) => boolean> = {
  start: (event) => event.type === "start",
  "a step": (event) => event.type === "step" && event.step === 3,
  "an evaluation": (event) => event.type === "eval",
  "a checkpoint": (event) => event.type === "checkpoint",
  "the last step": (event) => event.type === "step" && event.step === event.totalSteps,
};

/** Asserts that a run ends with a word about its folder, at the latest one event after `when`. */
async function endsWithAWord(recipe: RecipeSettings, when: (event: RunEvent) => boolean, act: () => void, signal?: AbortSignal) {
  const before = engine.stats().liveBytes;
  let after = -1;
  const onEvent = (event: RunEvent) => {
    if (after >= 0 && event.type !== "failed") after++;
    if (after < 0 && when(event)) {
      act();
      after = 0;
    }
  };
  await assert.rejects(collect(recipe, onEvent, signal), (error) => {
    assert.ok(error instanceof AttuneError, `a word, not ${(error as Error).stack}`);
    assert.ok([2, 4].includes(error.exitCode), `${error.exitCode}: ${error.message}`);
    assert.match(error.message, /out/);
    return true;
  });
  assert.equal(after, 0, "no event but the failure's comes after it");
  await engine.sync();
  assert.equal(engine.stats().liveBytes, before);
}

const recipeIn = (folder: string) =>
  tinyRecipe(folder, { val_size: 4, eval_strategy: "steps", eval_steps: 2, save_strategy: "steps", save_steps: 2 });

describe("somebody is at the folder of a run", () => {
  for (const [what, sabotage] of Object.entries(sabotages))
    for (const [moment, when] of Object.entries(moments)) {
      if (what === "the log emptied" && moment === "start") continue; // there is nothing in it yet
      test(`${what}, at ${moment}`, async () => {
        const folder = makeFolder();
        const out = join(folder, "out");
        await endsWithAWord(recipeIn(folder), when, () => sabotage(out));
        remove(folder);
      });
    }

  test("after the last event, while the logs are finished", async () => {
    const folder = makeFolder();
    await endsWithAWord(
      recipeIn(folder),
      (event) => event.type === "end",
      () => remove(join(folder, "out")),
    );
  });

  test("while Ctrl-C ends it", async () => {
    const folder = makeFolder();
    const stop = new AbortController();
    const act = () => {
      stop.abort();
      remove(join(folder, "out"));
    };
    await endsWithAWord(recipeIn(folder), moments["a step"]!, act, stop.signal);
  });

  for (const [what, path] of Object.entries({ "the folder": "out", "the events": "out/events.jsonl" }))
    test(`${what} may no longer be changed`, async (t) => {
      const folder = makeFolder();
      const place = join(folder, path);
      const mark = (flag: string) => spawnSync("chattr", [flag, place]).status === 0;
      writeFileSync(join(folder, "probe"), "");
      if (spawnSync("chattr", ["+i", join(folder, "probe")]).status !== 0) return t.skip("no file can be made immutable here");
      spawnSync("chattr", ["-i", join(folder, "probe")]);
      t.after(() => mark("-i"));
      await endsWithAWord(recipeIn(folder), moments["an evaluation"]!, () => mark("+i"));
    });

  test("a checkpoint that somebody deletes is no loss to the run", async () => {
    const folder = makeFolder();
    let deleted = 0;
    const events = await collect(tinyRecipe(folder, { save_strategy: "steps", save_steps: 2, save_total_limit: 1 }), (event) => {
      if (event.type === "checkpoint" && ++deleted > 0) remove(event.path);
    });
    assert.ok(deleted > 1);
    assert.equal(events.at(-1)!.type, "end");
  });
});

test("a disk that fills up while a run works is told with exit code 4", async (t) => {
  const disk = smallDisk(t, 4);
  if (disk === undefined) return;
  for (const [moment, when] of Object.entries(moments)) {
    const folder = makeFolder();
    const out = join(disk, "out");
    const fill = () => {
      const { bavail, bsize } = statfsSync(disk);
      writeFileSync(join(disk, "filler"), Buffer.alloc(bavail * bsize));
    };
    const failed = collect(
      { ...recipeIn(folder), output_dir: out },
      (event) => !existsSync(join(disk, "filler")) && when(event) && fill(),
    );
    await assert.rejects(
      failed,
      (error) => error instanceof AttuneError && error.exitCode === 4 && /No space left/.test(error.message),
      moment,
    );
    for (const name of readdirSync(disk)) remove(join(disk, name));
  }
});

describe("an output_dir that cannot be one is refused before anything is done", () => {
  const places: Record<string, (folder: string) => string> = {
    "a file": (folder) => {
      writeFileSync(join(folder, "x"), "");
      return join(folder, "x");
    },
    "below a file": (folder) => {
      writeFileSync(join(folder, "x"), "");
      return join(folder, "x/out");
    },
    "a pipe": (folder) => {
      execFileSync("mkfifo", [join(folder, "x")]);
      return join(folder, "x");
    },
    "a device": () => "/dev/null",
    "a folder that nobody can make": () => "/proc/out",
    "a dangling link": (folder) => {
      symlinkSync(join(folder, "nowhere"), join(folder, "x"));
      return join(folder, "x");
    },
    "a link to itself": (folder) => {
      symlinkSync(join(folder, "x"), join(folder, "x"));
      return join(folder, "x");
    },
    "a name too long": (folder) => join(folder, "x".repeat(300)),
    "a name with a NUL": (folder) => join(folder, "a\0b"),
  };
  for (const [what, make] of Object.entries(places))
    test(what, { timeout: 20_000 }, async () => {
      const folder = makeFolder();
      const recipe = tinyRecipe(folder, { output_dir: make(folder) });
      await assert.rejects(collect(recipe), { code: "CHECKPOINT", exitCode: 2 });
    });

  const planted: Record<string, (t: TestContext, path: string) => void> = {
    "a folder": (_, path) => mkdirSync(join(path, "full"), { recursive: true }),
    "a pipe": (_, path) => execFileSync("mkfifo", [path]),
    "a link to /dev/full": (_, path) => symlinkSync("/dev/full", path),
  };
  const names = [
    ...["events.jsonl", "trainer_log.jsonl", "trainer_state.json", "recipe.yaml", "all_results.json", "training_loss.png"],
    ...["adapter_model.safetensors", "adapter_config.json", "checkpoint-2", ".attune.lock", "tokenizer.json"],
  ];
  for (const [what, plant] of Object.entries(planted))
    for (const resume of [true, false])
      test(`with ${what} under the name of one of its files, ${resume ? "going on" : "beginning anew"}: it is replaced, or refused`, {
        timeout: 60_000,
      }, async (t) => {
        for (const name of names) {
          const folder = makeFolder();
          mkdirSync(join(folder, "out"));
          plant(t, join(folder, "out", name));
          const begin = resume ? { resume_from_checkpoint: true } : { overwrite_output_dir: true };
          const changes = { ...begin, plot_loss: name.endsWith("png"), save_strategy: "steps", save_steps: 2, max_steps: 2 };
          const end = await collect(tinyRecipe(folder, { ...changes, max_steps: 3 })).then(
            (events) => events.at(-1)!.type,
            (error: unknown) => error,
          );
          const isWord = end instanceof AttuneError && end.exitCode === 2 && end.message.includes("out");
          assert.ok(isWord || end === "end", `${name}: ${end instanceof Error ? end.stack : end}`);
          if (end === "end")
            for (const left of ["events.jsonl", "adapter_model.safetensors", "checkpoint-2"])
              assert.ok(existsSync(join(folder, "out", left)), name);
        }
      });
});

test("the command ends with exit code 2 and a word", () => {
  const folder = makeFolder();
  const path = join(folder, "recipe.yaml");
  writeFileSync(path, stringify(tinyRecipe(folder, { num_train_epochs: 2000, logging_steps: 1 })));
  const bin = join(import.meta.dirname, "../../bin/attune.js");
  const script = `(sleep 2; while [ ! -e out/events.jsonl ]; do sleep 0.1; done; sleep 0.3; rm -r out) & exec ${process.execPath} ${bin} train recipe.yaml output_dir=out`;
  const { status, stderr } = spawnSync("sh", ["-c", script], { cwd: folder, encoding: "utf8", timeout: 60_000 });
  assert.equal(status, 2, stderr);
  assert.match(stderr, /attune: .*out/);
  assert.doesNotMatch(stderr, /bug in attune/);
});
