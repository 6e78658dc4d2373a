import type { ExportOptions, ExportReport } from "../export/export.js";
import type { Chat, ChatOptions } from "../generate/chat.js";
import type { Classifier, ClassifierOptions } from "../generate/classifier.js";
import type { DataPreview, PreviewOptions } from "../objectives/preview.js";
import type { Work } from "../recipe/pipeline.js";
import type { RewardScorer, RewardScorerOptions } from "../rewards/scorer.js";
import type { RunEvent } from "../runs/events.js";
import type { RunOptions } from "../runs/run.js";

/** The work behind the commands. Each part is loaded when a command needs it, so that `attune --help` does not wait for the engine. */
export interface Parts {
  runWork(work: Work, options: RunOptions): AsyncIterable<RunEvent>;
  openChat(
    options: ChatOptions,
  ): Promise<Pick<Chat, "reply" | "close" | "adapter" | "adapters" | "useAdapter" | "facts" | "thoughts">>;
  openClassifier(options: ClassifierOptions): Promise<Pick<Classifier, "classify" | "close">>;
  openScorer(options: RewardScorerOptions): Promise<Pick<RewardScorer, "score" | "close">>;
  exportModel(options: ExportOptions): Promise<ExportReport>;
  previewData(options: PreviewOptions): Promise<DataPreview>;
  systemPromptOf(dataset: readonly string[], datasetDir: string): Promise<string | undefined>;
}

export const parts: Parts = {
  async *runWork(work, options) {
    const { runWork } = await import("../backends/index.js");
    yield* runWork(work, options);
  },
  async openChat(options) {
    const { Chat } = await import("../generate/chat.js");
    return await Chat.open(options);
  },
  async openClassifier(options) {
    const { Classifier } = await import("../generate/classifier.js");
    return await Classifier.open(options);
  },
  async openScorer(options) {
    const { RewardScorer } = await import("../rewards/scorer.js");
    return await RewardScorer.open(options);
  },
  async exportModel(options) {
    const { exportModel } = await import("../export/export.js");
    return await exportModel(options);
  },
  async previewData(options) {
    const { previewData } = await import("../objectives/preview.js");
    return await previewData(options);
  },
  async systemPromptOf(dataset, datasetDir) {
    const { systemPromptOf } = await import("../data/system-prompt.js");
    return await systemPromptOf(dataset, datasetDir);
  },
};
