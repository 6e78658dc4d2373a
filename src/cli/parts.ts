import type { Recipe } from "../recipe/schema.js";
import type { Message } from "../text/chat-template.js";
import type { RunEvent } from "../train/events.js";

/** The work behind the commands. Each part is loaded when a command needs it, so that `attune --help` does not wait for all of them. */
export interface Parts {
  /** Runs a recipe. When the signal comes, the run ends after the step that is under way, and saves. */
  runRecipe(recipe: Recipe, options: { readonly signal: AbortSignal }): AsyncIterable<RunEvent>;
  openChat(options: ChatOptions): Promise<Chat>;
  previewData(options: PreviewOptions): AsyncIterable<PreviewRow>;
}

export interface ChatOptions {
  readonly model: string;
  readonly adapter?: string;
}

export interface ReplyOptions {
  readonly signal: AbortSignal;
  readonly maxNewTokens: number;
  readonly temperature: number;
  readonly topP: number;
}

export interface Chat {
  /** The assistant's answer, in parts as they come. Ends early, without an error, when the signal comes. */
  reply(messages: readonly Message[], options: ReplyOptions): AsyncIterable<string>;
  close(): void;
}

export interface PreviewOptions {
  readonly file: string;
  /** Whose tokenizer and chat template to use. */
  readonly model: string;
  readonly template?: string;
  readonly rows: number;
}

/** A row of a dataset as the model will see it. */
export interface PreviewRow {
  readonly where: string;
  readonly tokens: number;
  readonly supervisedTokens: number;
  readonly pieces: readonly { readonly text: string; readonly supervised: boolean }[];
}
