import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { parse } from "yaml";
import { namesIn, writeFileAtomic } from "./disk.js";
import type { ModelFiles } from "./model-files.js";

/** README.md of a model or an adapter, as the hub reads it: YAML between dashes, then Markdown. */
export interface ModelCard {
  /** Names of the hub alone: a path of this machine means nothing there. */
  readonly baseModel: string | null;
  /** The hub's word for the library that loads it. */
  readonly library: string;
  readonly pipeline: string;
  readonly tags: readonly string[];
  /** The base's, if its files say one. */
  readonly license: string | null;
  readonly datasets: readonly string[];
  readonly body: string;
}

const cardName = "README.md";
/** Where a card goes if the user has a README.md of their own. */
const otherName = "MODEL_CARD.md";
const mark = /^<!-- written by attune, sha256 of the rest ([0-9a-f]{64}): a card that was changed is left alone -->\n/m;

/**
 * Writes the card of a folder as README.md. One that attune wrote before is replaced; one that somebody wrote or changed stays, and the card goes to
 * MODEL_CARD.md: then what the user should know is returned.
 */
export async function writeModelCard(folder: string, card: ModelCard): Promise<string | null> {
  const isFree = !(await namesIn(folder)).includes(cardName) || isOurs(await readFile(join(folder, cardName), "utf8"));
  await writeFileAtomic(join(folder, isFree ? cardName : otherName), marked(textOf(card)));
  return isFree
    ? null
    : `${join(folder, cardName)} is not attune's, or was changed, and stays; the model card is in ${otherName}`;
}

function textOf({ baseModel, library, pipeline, tags, license, datasets, body }: ModelCard): string {
  const yaml = {
    ...(baseModel !== null && { base_model: baseModel }),
    library_name: library,
    pipeline_tag: pipeline,
    tags,
    ...(license !== null && { license }),
    ...(datasets.length > 0 && { datasets }),
  };
  const lines = Object.entries(yaml).map(([key, value]) => `${key}: ${JSON.stringify(value)}`); // JSON is YAML
  return `---\n${lines.join("\n")}\n---\n\n${body}`;
}

/** The hub wants the dashes first, so the mark stands below them. */
function marked(text: string): string {
  const at = text.indexOf("\n---\n") + 5;
  return `${text.slice(0, at)}<!-- written by attune, sha256 of the rest ${hashOf(text)}: a card that was changed is left alone -->\n${text.slice(at)}`;
}

function isOurs(text: string): boolean {
  const hash = mark.exec(text)?.[1];
  return hash !== undefined && hash === hashOf(text.replace(mark, ""));
}

const hashOf = (text: string) => createHash("sha256").update(text).digest("hex");

/** A name of the hub, `owner/name`; null for anything else, such as a path. */
export function hubName(name: string): string | null {
  return /^[A-Za-z0-9][\w.-]*\/[A-Za-z0-9][\w.-]*$/.test(name) && !/\.(?:gguf|jsonl?|csv|parquet|txt)$/.test(name) ? name : null;
}

/** The licence that a model's files name: in the card of its folder, or in a GGUF file. Null if they name none. */
export async function licenseOf({ path, format, ggufMetadata }: ModelFiles): Promise<string | null> {
  const said = format === "gguf" ? ggufMetadata?.["general.license"] : await licenseInCard(path);
  return typeof said === "string" && /^[\w.+-]{1,60}$/.test(said) ? said : null;
}

async function licenseInCard(folder: string): Promise<unknown> {
  if (!(await namesIn(folder)).includes(cardName)) return undefined;
  const front = /^---\n([\s\S]*?)\n---\n/.exec(await readFile(join(folder, cardName), "utf8"))?.[1];
  if (front === undefined) return undefined;
  try {
    return (parse(front, { maxAliasCount: 0 }) as Record<string, unknown> | null)?.license;
  } catch {
    return undefined; // somebody else's YAML: no licence can be read from it
  }
}
