import { join } from "node:path";
import type { Example } from "../data/example.js";
import { fastestCompute, loadEngine } from "../engine/load.js";
import { ModelError } from "../errors.js";
import { publishNewFolder } from "../io/checkpoint.js";
import { namesIn, sha256OfFile, writeFileAtomic } from "../io/disk.js";
import { writeModelCard } from "../io/model-card.js";
import type { CausalLM } from "../models/causal-lm.js";
import type { Recipe } from "../recipe/schema.js";
import type { ChatFormat } from "../text/supervised.js";
import type { Before, Check } from "./check.js";
import { type ExportTarget, type NumberType, receiptName } from "./choices.js";
import { type Drift, driftBetween, logitsOn, probesFor } from "./measure.js";
import { mergedCard } from "./merged-card.js";
import { adapterOn, mergeAndStore, openBase, requireFinite, type Source, usingWritten } from "./merged-model.js";
import { readAs, readersOf } from "./reader.js";
import { overall, type Reading, type Receipt } from "./receipt.js";

/** A whole model to write: what it is made of, as what, and how it is checked. */
export interface Plan {
  readonly out: string;
  /** Of the model, for who reads the receipt. */
  readonly name: string;
  readonly source: Source;
  readonly to: Exclude<ExportTarget, "gguf-lora">;
  readonly type: NumberType;
  /** Of the run that the weights come from. */
  readonly recipe: Recipe | undefined;
  readonly check: Check;
  /** Rows to compare logits on; text of many kinds where there are none. */
  readonly probeRows: readonly Example[];
  readonly chat: ChatFormat;
  readonly maxDrift: number;
  readonly force: boolean;
  /** Writes the model as it stands into a folder, and says what is to be opened. */
  writeWeights(folder: string, model: CausalLM): Promise<string>;
}

/** What was written, and what was found of it. */
export interface MergedReport {
  readonly written: readonly string[];
  readonly type: NumberType;
  readonly drift: Drift;
  readonly receipt: Receipt;
}

/** Merges, writes, opens what was written and judges it; nothing stays if it is refused. Throws ModelError, ConfigError, DivergedError, NoSpaceError. */
export async function exportMerged(plan: Plan): Promise<MergedReport> {
  const { source, type, check } = plan;
  const { adapter, files } = source;
  const base = await openBase(source);
  const { model } = base;
  try {
    const baseLoss = adapter === undefined ? null : await check.lossOf(model);
    const tuning = adapter === undefined ? undefined : await adapterOn(model, adapter);
    await requireFinite(model);
    const probes = probesFor(plan.chat, plan.probeRows, model.shape);
    const logits = await logitsOn(model, probes);
    const before: Before = { baseLoss, before: await check.sayingsOf(model) };
    const changes = await mergeAndStore(base, tuning, { files, type, readers: readersFor(plan, type) });
    return await publishNewFolder(plan.out, async (folder) => {
      const path = await plan.writeWeights(folder, model);
      model.dispose(); // only one of them at a time need fit into memory
      const drift = driftBetween(logits, await usingWritten(path, "f32", (written) => logitsOn(written, probes)), probes);
      if (!(drift.maxLogitDifference <= plan.maxDrift)) throw drifted(drift, type, plan.maxDrift);

      const readings: Reading[] = [];
      for (const [i, reader] of readersFor(plan, type).entries()) {
        const said = await usingWritten(path, reader.compute, async (written) => {
          readAs(written, reader);
          return await check.sayingsOf(written);
        });
        readings.push(check.judged(reader, before, said, changes[i]!));
      }
      const verdict = overall(readings);
      const advice = await adviceFor(readings, plan, { before, hasLora: tuning?.scaleAt !== undefined });
      if (verdict === "refuse" && !plan.force) throw refused(readings[0]!, type, advice);
      const receipt: Receipt = {
        receipt: 1,
        model: plan.name,
        adapter: adapter ?? null,
        to: plan.to,
        type,
        sha256: await sha256OfWeights(folder),
        rows: check.described,
        before: { baseLoss, loss: before.before.loss, right: check.rightIn(before.before) },
        readings,
        drift,
        verdict,
        advice,
      };
      if (plan.to === "hf") await writeModelCard(folder, await mergedCard(receipt, files, plan.recipe));
      await writeFileAtomic(join(folder, receiptName), `${JSON.stringify(receipt, null, 2)}\n`);
      return { written: (await namesIn(folder)).sort(), type, drift, receipt };
    });
  } finally {
    model.dispose();
  }
}

/** Who would read a model of this type. */
function readersFor({ to }: Plan, type: NumberType) {
  return readersOf(to === "hf" ? "hf" : "gguf", type, fastestCompute(loadEngine().info()));
}

/** sha256 of the files that hold weights, by name. */
async function sha256OfWeights(folder: string): Promise<Record<string, string>> {
  const names = (await namesIn(folder)).filter((name) => /\.(?:safetensors|gguf)$/.test(name)).sort();
  return Object.fromEntries(
    await Promise.all(names.map(async (name) => [name, await sha256OfFile(join(folder, name))] as const)),
  );
}

/** What to do about what was found. */
async function adviceFor(
  readings: readonly Reading[],
  plan: Plan,
  { before, hasLora }: { readonly before: Before; readonly hasLora: boolean },
): Promise<string[]> {
  const { to, type, source, check } = plan;
  const { adapter } = source;
  const advice: string[] = [];
  const [first, own] = readings;
  const readerOf = (candidate: NumberType) => readersFor(plan, candidate)[0]!;
  const passing =
    first!.verdict === "refuse"
      ? await check.passingType(source, { to: to === "hf" ? "hf" : "gguf", type, readerOf }, before)
      : null;
  if (passing !== null) advice.push(`${passing} passes the same check: --type ${passing}`);
  if (first!.verdict !== "pass" && adapter !== undefined) {
    if (to === "hf") advice.push(`or keep the adapter beside its base, where nothing is rounded: ${adapter} is what PEFT loads`);
    else if (hasLora)
      advice.push("or keep the adapter beside its base, where nothing is rounded: --to gguf-lora, for llama.cpp's --lora");
  }
  if (first!.verdict !== "refuse" && own !== undefined && own.verdict === "refuse")
    advice.push(
      `attune itself multiplies in bf16 on this CPU, which rounds ${type} weights further: in attune, use the adapter on its base, not this file`,
    );
  return advice;
}

function refused({ reasons, program, arithmetic }: Reading, type: NumberType, advice: readonly string[]): ModelError {
  return new ModelError(
    `The exported model has lost what was learnt: as ${program} reads it in ${type} (${arithmetic}), ${reasons.join("; ")}. Nothing was written. ` +
      `${advice.map((one) => `${one[0]!.toUpperCase()}${one.slice(1)}`).join(". ")}${advice.length > 0 ? ". " : ""}--force writes it all the same.`,
  );
}

function drifted({ maxLogitDifference }: Drift, type: NumberType, limit: number): ModelError {
  return new ModelError(
    `The exported model would say something else: merged, rounded to ${type} and opened again, a logit changes by ` +
      `${maxLogitDifference.toPrecision(3)}, more than the limit of ${limit}. Nothing was written. Choose a type with more bits, or raise the limit (--max-drift) if you accept it.`,
  );
}
