import { join } from "node:path";
import type { AdapterOrigin } from "../../io/adapters/adapter-folder.js";
import { baseAdapterNames } from "../../io/adapters/base-adapters.js";
import { pruneCheckpoints, verifyFolder } from "../../io/checkpoint.js";
import { writeFileAtomic } from "../../io/disk.js";
import type { ModelFiles } from "../../io/model-files.js";
import type { Module } from "../../nn/module.js";
import { squares } from "../../optim/clip.js";
import type { Recipe } from "../../recipe/schema.js";
import { generationConfig } from "../../text/generation-config.js";
import { type Trainee, trainedName } from "../../train/assemble.js";
import { saveCheckpoint } from "../../train/checkpoint.js";
import { weightsRanAway } from "../../train/diverged.js";
import type { Progress } from "../../train/loop.js";
import { loadValueHead, saveValueHead } from "../../train/value-head.js";
import { tuners } from "../../tuners/index.js";
import { besidePrefix } from "../../tuners/shared-base.js";
import { collectTuned, keepBaseAdapters, openTuned, readInto, writeTuned } from "../../tuners/tuned-files.js";
import type { Tuning } from "../../tuners/tuner.js";
import type { RunData } from "./run-data.js";

/** What belongs to what is saved, beside the weights. */
interface Origin {
  /** The base, with the config of the model that trains. */
  readonly files: ModelFiles;
  readonly tuning: Tuning;
  /** How many adapters lie in the output folder that the run's own is trained over. */
  readonly baseAdapterCount: number;
  readonly data: RunData;
  /** Identifies what a run that goes on from a checkpoint has to find as it was. */
  readonly work: string;
  /** When the run began, or that which it goes on with. */
  readonly startedAt: Date;
  /** trainer_state.json as of now. */
  readonly trainerState: (checkpoint: string) => string;
}

/** Saves what trains: as the result, and in checkpoints. */
export class Output {
  readonly #recipe: Recipe;
  readonly #trainee: Trainee;
  readonly #origin: Origin;

  constructor(recipe: Recipe, trainee: Trainee, origin: Origin) {
    this.#recipe = recipe;
    this.#trainee = trainee;
    this.#origin = origin;
  }

  /** Writes what others load, and what they need beside it: in a checkpoint in f32, so that training goes on exactly. Throws DivergedError if the weights have run away, NoSpaceError. */
  async writeModel(path: string, { step }: Progress, { isCheckpoint = false } = {}): Promise<void> {
    const { base, parameters } = this.#trainee;
    const { files, tuning, baseAdapterCount, data } = this.#origin;
    const { output_dir } = this.#recipe;
    const baseAdapters = baseAdapterNames(baseAdapterCount);
    const { save_dtype } = this.#recipe;
    const size = squares([...parameters.values()].map(({ value }) => value));
    const isSane = size === null || Number.isFinite(await size.item());
    size?.dispose();
    if (!isSane) throw weightsRanAway({ step, learningRate: this.#recipe.learning_rate });
    const [tuned, writeOthers] = base.with(trainedName, (model) => [
      collectTuned(model, tuning, {
        name: this.#recipe.model_name_or_path,
        config: files.config,
        ...(data.task.taskType !== undefined && { taskType: data.task.taskType }),
        modulesToSave: model.headModules,
        baseAdapters,
        ...(!isCheckpoint && save_dtype !== null && { types: savedTypes(save_dtype, files) }),
      }),
      data.task.weightFiles?.(model),
    ]);
    await keepBaseAdapters(
      baseAdapters.map((name) => join(output_dir, name)),
      path,
      tuners,
    );
    await writeTuned(path, tuned);
    await writeOthers?.(path);
    await saveValueHead(path, this.#beside);
    const ofModel = tuning.adapter === undefined && data.task.taskType === undefined;
    const beside = [...data.files, ...(ofModel ? [await generationConfig(files, data.tokenizer)] : [])];
    for (const { name, contents } of beside) await writeFileAtomic(join(path, name), contents);
  }

  /** The path of the checkpoint of a step. */
  checkpointOf({ step }: { readonly step: number }): string {
    return join(this.#recipe.output_dir, `checkpoint-${step}`);
  }

  /** Puts the weights of a checkpoint in the place of those that train. Throws CheckpointError if it is gone or damaged, and changes nothing then. */
  async takeWeights(path: string): Promise<void> {
    await verifyFolder(path);
    const { parameters } = this.#trainee;
    await readInto(
      new Map([...parameters].filter(([name]) => !name.startsWith(besidePrefix))),
      await openTuned(path, this.#origin.tuning),
    );
    await loadValueHead(path, this.#beside);
  }

  /** What trains beside the model. */
  get #beside(): Module | null {
    const { base } = this.#trainee;
    return base.with(trainedName, () => base.beside);
  }

  /** Writes a checkpoint, removes those that are too many, and returns its path. Throws as `writeModel` does. */
  async saveCheckpoint(progress: Progress): Promise<string> {
    const { output_dir, save_only_model, save_total_limit } = this.#recipe;
    const { work, startedAt, trainerState } = this.#origin;
    const path = this.checkpointOf(progress);
    await saveCheckpoint(path, {
      writeModel: async (temporary) => {
        await this.writeModel(temporary, progress, { isCheckpoint: true });
        await writeFileAtomic(join(temporary, "trainer_state.json"), trainerState(path));
      },
      optimizer: save_only_model ? null : this.#trainee.optimizer,
      progress,
      work,
      startedAt,
      state: this.#origin.data.task.state,
    });
    const best = progress.best === null ? undefined : this.checkpointOf(progress.best);
    if (save_total_limit !== null) await pruneCheckpoints(output_dir, save_total_limit, { best });
    return path;
  }
}

const dtypeNames = { f32: "float32", f16: "float16", bf16: "bfloat16" } as const;

/** The types that weights are saved in; of a quantized weight of the base: bf16. */
function savedTypes(wanted: NonNullable<Recipe["save_dtype"]>, { tensors }: ModelFiles): NonNullable<AdapterOrigin["types"]> {
  if (wanted !== "base") return { of: () => wanted, named: dtypeNames[wanted] };
  const of = (name: string) => {
    const stored = tensors.get(name)?.dtype ?? "f32"; // a head that the base lacks
    return stored in dtypeNames ? (stored as keyof typeof dtypeNames) : "bf16";
  };
  const matrix = [...tensors.values()].find(({ shape }) => shape.length > 1);
  return { of, named: dtypeNames[of(matrix?.name ?? "")] };
}
