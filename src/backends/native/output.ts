import { join } from "node:path";
import { pruneCheckpoints, verifyFolder } from "../../io/checkpoint.js";
import { writeFileAtomic } from "../../io/disk.js";
import type { ModelFiles } from "../../io/model-files.js";
import { squares } from "../../optim/clip.js";
import type { Recipe } from "../../recipe/schema.js";
import { type Trainee, trainedName } from "../../train/assemble.js";
import { saveCheckpoint } from "../../train/checkpoint.js";
import { weightsRanAway } from "../../train/diverged.js";
import type { Progress } from "../../train/loop.js";
import { collectTuned, openTuned, readInto, writeTuned } from "../../tuners/tuned-files.js";
import type { Tuning } from "../../tuners/tuner.js";
import type { RunData } from "./run-data.js";

/** What belongs to what is saved, beside the weights. */
interface Origin {
  /** The base, with the config of the model that trains. */
  readonly files: ModelFiles;
  readonly tuning: Tuning;
  readonly data: RunData;
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

  /** Writes what others load, and what they need beside it. Throws DivergedError if the weights have run away, NoSpaceError. */
  async writeModel(path: string, { step }: Progress): Promise<void> {
    const { base, parameters } = this.#trainee;
    const { files, tuning, data } = this.#origin;
    const size = squares([...parameters.values()].map(({ value }) => value));
    const isSane = size === null || Number.isFinite(await size.item());
    size?.dispose();
    if (!isSane) throw weightsRanAway({ step, learningRate: this.#recipe.learning_rate });
    const tuned = base.with(trainedName, (model) =>
      collectTuned(model, tuning, {
        name: this.#recipe.model_name_or_path,
        config: files.config,
        ...(data.task.taskType !== undefined && { taskType: data.task.taskType }),
        modulesToSave: model.headModules,
      }),
    );
    await writeTuned(path, tuned);
    for (const { name, contents } of data.files) await writeFileAtomic(join(path, name), contents);
  }

  /** The path of the checkpoint of a step. */
  checkpointOf({ step }: { readonly step: number }): string {
    return join(this.#recipe.output_dir, `checkpoint-${step}`);
  }

  /** Puts the weights of a checkpoint in the place of those that train. Throws CheckpointError if it is gone or damaged, and changes nothing then. */
  async takeWeights(path: string): Promise<void> {
    await verifyFolder(path);
    await readInto(this.#trainee.parameters, await openTuned(path, this.#origin.tuning));
  }

  /** Writes a checkpoint, removes those that are too many, and returns its path. Throws as `writeModel` does. */
  async saveCheckpoint(progress: Progress): Promise<string> {
    const { output_dir, save_only_model, save_total_limit } = this.#recipe;
    const { data, startedAt, trainerState } = this.#origin;
    const path = this.checkpointOf(progress);
    await saveCheckpoint(path, {
      writeModel: async (temporary) => {
        await this.writeModel(temporary, progress);
        await writeFileAtomic(join(temporary, "trainer_state.json"), trainerState(path));
      },
      optimizer: save_only_model ? null : this.#trainee.optimizer,
      progress,
      work: data.identity,
      startedAt,
    });
    const best = progress.best === null ? undefined : this.checkpointOf(progress.best);
    if (save_total_limit !== null) await pruneCheckpoints(output_dir, save_total_limit, { best });
    return path;
  }
}
