import { resolveModel } from "../io/resolve.js";
import { loadTokenizer } from "../text/load-tokenizer.js";
import type { ChatFormat } from "../text/supervised.js";
import { chooseTemplate } from "../text/templates.js";
import { byteTokenizer } from "../text/tokenizer/byte-tokenizer.js";
import type { Tokenizer } from "../text/tokenizer/tokenizer.js";
import type { ToolFormatName } from "../text/tool-formats.js";
import { loadDataset, tokenizeDataset } from "./dataset.js";
import type { Example } from "./example.js";

export interface PreviewOptions {
  /** A folder, a GGUF file, or a repository name of the hub, whose tokenizer and chat template to use; default: ChatML, a token a byte. */
  readonly model?: string | undefined;
  /** Name of a chat template; default: the model's own. */
  readonly template?: string | undefined;
  readonly toolFormat?: ToolFormatName | undefined;
  /** Folder of dataset_info.json. */
  readonly datasetDir: string;
  /** Rows to show. */
  readonly count: number;
  /** Called with what the user should know of the model's tokenizer and template. */
  readonly onNotice?: (message: string) => void;
}

export interface DataPreview {
  /** At most `count`; a row that cannot be used is not among them, but in a notice. */
  readonly rows: readonly PreviewRow[];
  readonly rowsRead: number;
  /** What training would say of the data, of its first rows at least. */
  readonly notices: readonly string[];
}

/** A row as the model sees it: the pieces joined are the whole text, control tokens included. */
export interface PreviewRow {
  readonly where: string;
  readonly tokens: number;
  readonly supervisedTokens: number;
  readonly pieces: readonly PreviewPiece[];
}

export interface PreviewPiece {
  readonly text: string;
  readonly supervised: boolean;
}

const rowsLookedAt = 1000;

/** Reads a data set as training would, to look at it. Throws DataError for data that cannot be read, ConfigError for a name that is wrong. */
export async function previewData(file: string, options: PreviewOptions): Promise<DataPreview> {
  const { datasetDir, count } = options;
  const chat = await chatFormatOf(options);
  const { conversations, rowsRead, notices } = await loadDataset({ dataset: [file], datasetDir, onBadRow: "skip" });
  const looked = conversations.slice(0, Math.max(count, rowsLookedAt));
  const { examples, report } = await tokenizeDataset(looked, chat, { cutoffLen: Number.MAX_SAFE_INTEGER, onBadRow: "skip" });
  const rows = examples.slice(0, count).map((example) => previewRow(example, chat.tokenizer));
  return { rows, rowsRead, notices: [...notices, ...report.notices] };
}

async function chatFormatOf({ model, template: name, toolFormat, onNotice = () => {} }: PreviewOptions): Promise<ChatFormat> {
  if (model === undefined) return byteChat();
  const tokenizer = await loadTokenizer(await resolveModel(model, { onNotice }));
  const { template, notices } = chooseTemplate(tokenizer, { name, toolFormat });
  for (const notice of notices) onNotice(notice);
  return { tokenizer, template };
}

/** How one example looks to the model. The texts come from the data as they are: escape them for a terminal. */
export function previewRow({ ids, supervised, where }: Example, tokenizer: Tokenizer): PreviewRow {
  const pieces: PreviewPiece[] = [];
  for (let from = 0; from < ids.length; ) {
    const label = supervised[from]!;
    const other = supervised.indexOf(1 - label, from);
    const to = other < 0 ? ids.length : other;
    pieces.push({ text: tokenizer.decode(ids.subarray(from, to), { special: true }), supervised: label === 1 });
    from = to;
  }
  const supervisedTokens = supervised.reduce((total, label) => total + label, 0);
  return { where, tokens: ids.length, supervisedTokens, pieces };
}

/** For looking at data without a model: ChatML, one token for each byte. */
export function byteChat(): ChatFormat {
  const tokenizer = byteTokenizer();
  return { tokenizer, template: chooseTemplate(tokenizer).template };
}
