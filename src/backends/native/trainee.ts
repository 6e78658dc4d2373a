import type { Device } from "../../core/device.js";
import { Rng } from "../../core/rng.js";
import type { LanguageModel } from "../../models/language-model.js";
import { loadModel } from "../../models/load.js";
import type { Parameter } from "../../nn/module.js";
import { AdamW } from "../../optim/adamw.js";
import { weightDecays } from "../../optim/weight-decay.js";
import type { Parts } from "../../train/assemble.js";
import { trainModules } from "../../tuners/train-whole.js";
import { loadTuned } from "../../tuners/tuned-files.js";
import type { Start } from "../../tuners/tuner.js";

/** The model that trains, with its optimizer. */
export interface Trainee {
  readonly model: LanguageModel;
  /** What trains, by name. */
  readonly parameters: ReadonlyMap<string, Parameter>;
  readonly optimizer: AdamW;
  dispose(): void;
}

interface Beginning {
  /** The folder of the adapter or checkpoint whose weights training goes on from; null to begin anew. */
  readonly weightsFrom: string | null;
  readonly start: Start;
  /** Whether the files lack the head that the config describes: its weights are drawn. */
  readonly hasNewHead: boolean;
  /** Called with the base before anything sits on it. */
  readonly onBase: (model: LanguageModel) => void;
}

/** Reads the base, puts the method on it and makes the optimizer. Throws ModelError, ConfigError, EngineError; nothing then stays in memory. */
export async function loadTrainee(
  device: Device,
  parts: Parts,
  { weightsFrom, start, hasNewHead, onBase }: Beginning,
): Promise<Trainee> {
  const { files, tuning, seed, gradientCheckpointing, disableDropout, onNotice = () => {} } = parts;
  const model = await loadModel(device, files, hasNewHead ? Rng.for(seed, "head") : undefined, (unread) =>
    tuning.storing?.(unread, onNotice),
  );
  try {
    if (disableDropout) model.disableDropout();
    onBase(model);
    model.gradientCheckpointing = gradientCheckpointing;
    tuning.apply(model, Rng.for(seed, "tuner"));
    trainModules(model, model.headModules);
    if (weightsFrom !== null) await loadTuned(weightsFrom, model, tuning);
    else tuning.initialize?.(model, start);
    const parameters = model.trainableParameters();
    const { weightDecay, ...options } = parts.optimizer;
    const optimizer = new AdamW(parameters, { ...options, weightDecay: weightDecays(model, weightDecay) });
    return {
      model,
      parameters,
      optimizer,
      dispose() {
        optimizer.dispose();
        model.dispose();
      },
    };
  } catch (error) {
    model.dispose();
    throw error;
  }
}
