import { existsSync } from "node:fs";
import { join } from "node:path";
import { writeRandomModel } from "attune";

/** A model to tune, and what follows from which one it is. */
export interface Choice {
  readonly model: string;
  /** Longest answer. */
  readonly answerTokens: number;
  /** All weights are trained, so that the result is a model and no adapter. */
  readonly trainsWhole: boolean;
  readonly overrides: readonly string[];
}

const config = {
  architectures: ["LlamaForCausalLM"],
  model_type: "llama",
  vocab_size: 259, // the bytes, and three control tokens
  hidden_size: 192,
  intermediate_size: 512,
  num_hidden_layers: 4,
  num_attention_heads: 6,
  num_key_value_heads: 2,
  max_position_embeddings: 1024,
  rms_norm_eps: 1e-5,
  rope_theta: 10000,
  tie_word_embeddings: true,
  bos_token_id: 257,
  eos_token_id: 258,
};

/** A Llama of 1.6 million weights that knows nothing, and the settings to train all of it for about a minute on two cores. */
export async function makeSmallModel(folder: string): Promise<Choice> {
  if (!existsSync(join(folder, "config.json"))) await writeRandomModel(folder, config, 1);
  return {
    model: folder,
    answerTokens: 128, // a token is one byte
    trainsWhole: true,
    overrides: [
      "finetuning_type=full",
      "learning_rate=2e-3",
      "num_train_epochs=6",
      "cutoff_len=1024",
      "per_device_train_batch_size=2",
      "lr_scheduler_type=cosine",
      "warmup_ratio=0.05",
    ],
  };
}
