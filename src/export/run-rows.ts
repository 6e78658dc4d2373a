import { join } from "node:path";
import { everyMethod } from "../backends/index.js";
import { prepareData } from "../backends/native/run-data.js";
import { loadDataset, tokenizeDataset } from "../data/dataset.js";
import type { Example, Row } from "../data/example.js";
import { AttuneError } from "../errors.js";
import { namesIn } from "../io/disk.js";
import type { ModelFiles } from "../io/model-files.js";
import { objectives } from "../objectives/index.js";
import { parseRecipe, readRecipe } from "../recipe/parse.js";
import type { Recipe } from "../recipe/schema.js";
import type { ChatFormat } from "../text/supervised.js";

/** Rows that an export is checked with. */
export interface CheckRows {
  /** Rows that the run held out; rows that it trained on, as it held out none; or rows that the user gave. */
  readonly source: "held-out" | "training" | "given";
  /** The data sets or files. */
  readonly from: readonly string[];
  readonly rows: readonly Example[];
}

/** The recipe of the run that left a folder; undefined if it is no run's. Throws ConfigError. */
export async function recipeOfRun(folder: string | undefined): Promise<Recipe | undefined> {
  if (folder === undefined || !(await namesIn(folder)).includes("recipe.yaml")) return undefined;
  return parseRecipe(await readRecipe(join(folder, "recipe.yaml")), [], everyMethod).recipe;
}

/** Rows of a file, in any format that training reads. Throws DataError. */
export async function rowsGiven(
  data: string,
  chat: ChatFormat,
  files: ModelFiles,
  onNotice: (message: string) => void,
): Promise<CheckRows> {
  const loaded = await loadDataset({ dataset: [data] });
  const { examples, report } = await tokenizeDataset(loaded.conversations, chat, { cutoffLen: Math.min(2048, longestOf(files)) });
  for (const message of [...loaded.notices, ...report.notices]) onNotice(message);
  return { source: "given", from: [data], rows: examples };
}

/** The rows that a run held out, chosen again as the run chose them, else those that it trained on. Null, and a notice, if they can't be had. */
export async function rowsOfRun(
  recipe: Recipe,
  files: ModelFiles,
  onNotice: (message: string) => void,
): Promise<CheckRows | null> {
  const objective = objectives.find(({ name }) => name === recipe.stage);
  if (objective === undefined) return null;
  try {
    const request = { recipe, objective, files, maxTokens: longestOf(files), now: new Date(), warn: () => {} };
    const { trainRows, evalRows } = await prepareData(request);
    const isHeldOut = evalRows.length > 0;
    const rows = (isHeldOut ? evalRows : trainRows).filter(isExample);
    if (rows.length === 0) return null;
    return { source: isHeldOut ? "held-out" : "training", from: (isHeldOut && recipe.eval_dataset) || recipe.dataset, rows };
  } catch (error) {
    if (!(error instanceof AttuneError)) throw error;
    onNotice(
      `The run's rows cannot be read again, so the export is not checked with them; give some with --data. ${error.message}`,
    );
    return null;
  }
}

const isExample = (row: Row): row is Example => "ids" in row && "supervised" in row;

function longestOf({ config }: ModelFiles): number {
  return typeof config.max_position_embeddings === "number" ? config.max_position_embeddings : 2048;
}
