/**
 * What exports keep of what adapters learnt, as their receipts say: a line for each adapter and type.
 *
 *     node dist/bench/exports.js --model MODEL --adapter runs/weak --adapter runs/well [--types f32,f16,bf16,q8_0,q4_k_m] [--rows 50]
 *
 * Run it from the folder that the runs were started from, where their data is found. Nothing that it writes stays.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { parseArgs } from "node:util";
import { exportModel, numberTypes } from "../src/index.js";

const { values } = parseArgs({
  options: {
    model: { type: "string" },
    adapter: { type: "string", multiple: true },
    types: { type: "string", default: "f32,f16,bf16,q8_0,q4_k_m" },
    rows: { type: "string", default: "50" },
  },
});
const types = numberTypes.filter((type) => values.types.split(",").includes(type));
const share = (value: number) => `${(100 * value).toFixed(0)} %`;

console.log(
  "| adapter | type | right before | read by | right | lost, gained | changed | loss before, after | change left | verdict |",
);
console.log("|---|---|---|---|---|---|---|---|---|---|");
for (const adapter of values.adapter ?? [])
  for (const type of types) {
    const folder = mkdtempSync(join(tmpdir(), "attune-exports-"));
    try {
      const options = {
        adapter,
        to: "gguf",
        type,
        out: join(folder, "out"),
        force: true,
        checkRows: Number(values.rows),
      } as const;
      const { receipt } = await exportModel({ ...options, ...(values.model !== undefined && { model: values.model }) });
      for (const { program, answers, change, verdict } of receipt!.readings)
        console.log(
          `| ${[
            ...[basename(adapter), type, receipt!.before.right, program, answers?.right],
            ...[answers && `${answers.lost}, ${answers.gained}`, answers && share(answers.changed)],
            ...[
              answers && `${receipt!.before.loss!.toFixed(4)}, ${answers.loss.toFixed(4)}`,
              change && share(change.along),
              verdict,
            ],
          ].join(" | ")} |`,
        );
    } finally {
      rmSync(folder, { recursive: true });
    }
  }
