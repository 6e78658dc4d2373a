/**
 * How well the memory of a run is predicted: trains varied recipes as a user would, each in a process of its own, and compares the peak that the
 * run named before its first step with the one that it had. `--help` lists the options.
 *
 * Recipes are drawn from a seed: shapes of models, methods, lengths of rows and settings are dealt anew, so that nothing can be fitted to them.
 */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { pythonPackageModel } from "../src/io/python-package.js";
import { drawWorks, givenBase, train, type Work } from "./recipes.js";
import { formatMarkdown, formatTable } from "./table.js";

const help = `node dist/bench/estimates.js [options]

  --recipes N      how many; default 20
  --seed N         draws them; default 1
  --model FOLDER   a model in Hugging Face's format, trained beside random ones; default: none
  --only N,N       only those of these numbers, from 1
  --models FOLDER  where random models are kept, so that they are made once; default: nowhere
  --within N       what counts as right, in percent; default 10
  --json FILE      save settings and figures of every run
  --markdown       print the table as Markdown`;

const { values } = parseArgs({
  options: {
    recipes: { type: "string", default: "20" },
    seed: { type: "string", default: "1" },
    model: { type: "string" },
    only: { type: "string" },
    models: { type: "string" },
    within: { type: "string", default: "10" },
    json: { type: "string" },
    markdown: { type: "boolean", default: false },
    help: { type: "boolean", default: false },
  },
});

async function main(): Promise<void> {
  if (values.help) {
    console.log(help);
    return;
  }
  const log = (text: string) => process.stderr.write(`${text}\n`);
  const given = [
    ...(values.model === undefined ? [] : [givenBase("SmolLM2-135M", values.model), givenBase("SmolLM2-135M", values.model)]),
    givenBase("SmolLM2-135M, GGUF", await pythonPackageModel({ onNotice: log })),
  ];
  const works = drawWorks(Number(values.recipes), Number(values.seed), given);
  const wanted = values.only?.split(",").map(Number);
  const folder = mkdtempSync(join(tmpdir(), "attune-estimates-"));
  const tolerance = Number(values.within) / 100;
  const rows: string[][] = [];
  const saved: object[] = [];
  let right = 0;
  try {
    for (const [i, work] of works.entries()) {
      if (wanted !== undefined && !wanted.includes(i + 1)) continue;
      const mine = join(folder, `${i + 1}`);
      const model = await work.base.make(join(values.models ?? join(folder, "models"), work.base.name.replace(/\W+/g, "-")));
      const { predictedBytes, measuredBytes } = await train(work, model, mine);
      rmSync(mine, { recursive: true });
      const ratio = predictedBytes / measuredBytes;
      if (Math.abs(ratio - 1) <= tolerance) right++;
      const mb = (bytes: number) => (bytes / 1e6).toFixed(0);
      const row = [`${i + 1}`, work.base.name, inWords(work), mb(predictedBytes), mb(measuredBytes), ratio.toFixed(3)];
      rows.push(row);
      saved.push({ ...work, number: i + 1, base: work.base.name, predictedBytes, measuredBytes, ratio });
      log(row.join("  "));
      if (values.json !== undefined) writeFileSync(values.json, JSON.stringify(saved, null, 2));
    }
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
  const headings = ["", "model", "recipe", "predicted, MB", "measured, MB", "ratio"];
  console.log((values.markdown ? formatMarkdown : formatTable)(headings, rows));
  console.log(`\nwithin ${values.within} %: ${right} of ${rows.length}`);
}

/** A recipe in a cell of a table: the settings that differ from their defaults. */
function inWords({ settings, train, held }: Work): string {
  const { finetuning_type, stage, ...rest } = settings;
  const others = Object.entries(rest).filter(([, value]) => value !== false);
  const data = `${train.count} rows of ${train.least}–${train.most} characters`;
  const evaluation = held === null ? "" : `, held out ${held.least}–${held.most}`;
  return `${finetuning_type} ${stage}: ${others.map(([key, value]) => `${key}=${value}`).join(" ")}; ${data}${evaluation}`;
}

await main();
