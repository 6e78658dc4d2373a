import assert from "node:assert/strict";
import { PassThrough } from "node:stream";
import test from "node:test";
import { ProgressBar, renderProgress } from "./progress-bar.js";
import { sketchLoss } from "./sketch.js";
import {
  cutTo,
  displayWidth,
  escapeControls,
  formatBytes,
  formatCount,
  formatDuration,
  formatLoss,
  hasUnicode,
  padTo,
  styleFor,
  wrapText,
} from "./terminal.js";
import { en } from "./words/en.js";
import { zh } from "./words/zh.js";

const words = en.train;

const progress = {
  step: 42,
  totalSteps: 100,
  loss: 1.2345,
  tokensPerSecond: 512.3,
  remainingMs: 200_000,
  peakMemoryBytes: 1.2e9,
};

test("the progress line fits every width and drops the least important first", () => {
  for (let width = 1; width <= 200; width++) {
    for (const unicode of [true, false]) {
      const line = renderProgress(progress, width, { unicode, words });
      assert.ok(line.length <= width, `${width}: ${line}`);
      if (!unicode) assert.match(line, /^[ -~]*$/);
      const wide = renderProgress(progress, width, { unicode, words: zh.train });
      assert.ok(displayWidth(wide) <= width, `${width}: ${wide}`);
    }
  }
  assert.equal(renderProgress(progress, 14, { unicode: true, words }), " 42% 42/100");
  assert.equal(renderProgress(progress, 40, { unicode: false, words }), " 42% #######--------- 42/100  loss 1.234");
  assert.equal(
    renderProgress(progress, 80, { unicode: true, words }),
    " 42% ━━━━━━━────────── 42/100 · loss 1.234 · 3m 20s left · 512 tokens/s · 1.2 GB",
  );
  assert.match(renderProgress({ ...progress, step: 100 }, 60, { unicode: false, words }), /^100% #+ 100\/100/);
  assert.match(
    renderProgress({ ...progress, totalSteps: 0, loss: Number.NaN }, 60, { unicode: false, words }),
    /^ {2}0% -+ 42\/0 {2}loss NaN/,
  );
});

test("a terminal that became narrower keeps no rest of the bar", () => {
  const stdout = Object.assign(new PassThrough({ encoding: "utf8" }), { isTTY: true, columns: 60 });
  const bar = new ProgressBar({ stdin: new PassThrough(), stdout, stderr: stdout, env: { LANG: "C.UTF-8", ATTUNE_LANG: "zh" } });
  bar.showTraining({ ...progress, step: 100 });
  const wide = displayWidth(String(stdout.read()).slice(1));
  assert.ok(wide > 40 && wide < 60, `${wide}`);
  stdout.columns = 20;
  bar.print("saved");
  assert.ok((stdout.read() as string).startsWith("\x1b[2A\r\x1b[J\x1b[Ksaved\n"), "two rows up, and all below emptied");
  bar.clear();
  stdout.columns = 60;
});

test("numbers are written for people", () => {
  const bytes = [0, 980, 999.6, 1234, 999_949, 999_950, 1.2e9, 3.4e15].map(formatBytes);
  assert.deepEqual(bytes, ["0 B", "980 B", "1.0 kB", "1.2 kB", "999.9 kB", "1.0 MB", "1.2 GB", "3.4 PB"]);
  assert.deepEqual([980, 4900, 134_515_008, 7.6e9].map(formatCount), ["980", "4.9 k", "134.5 M", "7.6 B"]);
  const times = [-5, 0, 499, 42_000, 200_000, 3_599_600, 7_500_000, 273_600_000].map(formatDuration);
  assert.deepEqual(times, ["0s", "0s", "0s", "42s", "3m 20s", "1h 00m", "2h 05m", "3d 04h"]);
  assert.deepEqual([1.23456, 12.3, 0.0123, 0.00001, 0, Number.NaN].map(formatLoss), [
    "1.235",
    "12.300",
    "0.0123",
    "1.00e-5",
    "0.0000",
    "NaN",
  ]);
});

test("text from outside cannot move the cursor or turn the writing around", () => {
  assert.equal(escapeControls("a\tb\nc é 日本 👍"), "a\tb\nc é 日本 👍");
  assert.equal(
    escapeControls("\x1b[2J\r\x07\x7f\x9b1A\u202eabc\u2066"),
    "\\u001b[2J\\u000d\\u0007\\u007f\\u009b1A\\u202eabc\\u2066",
  );
});

test("colours follow NO_COLOR, FORCE_COLOR and the terminal", () => {
  const terminal = Object.assign(new PassThrough(), { isTTY: true });
  const pipe = new PassThrough();
  const isColoured = (output: PassThrough, env: Record<string, string>) => styleFor(output, env).red("x") !== "x";
  assert.equal(isColoured(terminal, {}), true);
  assert.equal(isColoured(pipe, {}), false);
  assert.equal(isColoured(terminal, { NO_COLOR: "1" }), false);
  assert.equal(isColoured(terminal, { NO_COLOR: "" }), true);
  assert.equal(isColoured(pipe, { FORCE_COLOR: "1" }), true);
  assert.equal(isColoured(terminal, { TERM: "dumb" }), false);
  assert.equal(hasUnicode({ LANG: "en_US.UTF-8" }, "linux"), true);
  assert.equal(hasUnicode({ LANG: "en_US.UTF-8", LC_ALL: "C" }, "linux"), false);
  assert.equal(hasUnicode({}, "win32"), false);
});

test("the sketch falls as the loss does, in the size asked for", () => {
  const falling = Array.from({ length: 200 }, (_, i) => ({ step: i + 1, loss: 0.5 + 3 * Math.exp(-i / 30) }));
  for (const unicode of [true, false]) {
    const lines = sketchLoss(falling, { width: 60, height: 8, unicode }).split("\n");
    assert.equal(lines.length, 8);
    assert.ok(
      lines.every((line) => line.length <= 60),
      lines.join("\n"),
    );
    const firstMark = lines.slice(0, -1).map((line) => line.slice(line.search(/[┤│|]/) + 1).search(/\S/));
    assert.deepEqual(
      firstMark,
      [...firstMark].sort((a, b) => a - b),
    );
    assert.equal(firstMark[0], 0);
    assert.match(lines.at(-1)!, /^ +step 1 +200$/);
    if (!unicode) assert.match(lines.join(""), /^[ -~]*$/);
  }
});

test("a sketch needs two finite points and some room", () => {
  const size = { width: 60, height: 8, unicode: true };
  assert.equal(sketchLoss([], size), "");
  assert.equal(
    sketchLoss(
      [
        { step: 1, loss: 1 },
        { step: 2, loss: Number.NaN },
      ],
      size,
    ),
    "",
  );
  const flat = [
    { step: 1, loss: 1 },
    { step: 2, loss: 1 },
  ];
  assert.equal(sketchLoss(flat, { ...size, width: 10 }), "");
  assert.equal(sketchLoss(flat, { ...size, height: 2 }), "");
  assert.match(sketchLoss(flat, size), /1\.00 ┤⣀+\n/);
});

test("wide characters take two columns, and lines break between them", () => {
  assert.equal(displayWidth("\x1b[32m完成\x1b[39m ok"), 7);
  assert.equal(padTo("内存", 6), "内存  ");
  assert.equal(cutTo("内存最多", 5), "内存");
  assert.equal(wrapText("按配方微调模型，再导出 GGUF 文件。", 12), "按配方微调模\n型，再导出\nGGUF 文件。");
  assert.equal(wrapText("merge an adapter\nand write it", 10), "merge an\nadapter\nand write\nit");
});
