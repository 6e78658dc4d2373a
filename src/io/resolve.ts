import { stat } from "node:fs/promises";
import { ModelError } from "../errors.js";
import { fetchFromHub, type HubOptions, parseHubName } from "./hub/hub.js";
import type { ModelFiles } from "./model-files.js";
import { openModel } from "./open-model.js";

/**
 * Opens the model that a recipe names: a local folder or GGUF file if there is one of that name, else a repository of a
 * hub (`owner/name`, `owner/name@revision`, `owner/name/file.gguf`), downloaded into the cache that Python shares.
 * Throws ModelUnavailableError if a hub is needed and cannot be reached, ModelError if there is no such model, NoSpaceError.
 */
export async function resolveModel(nameOrPath: string, options: HubOptions = {}): Promise<ModelFiles> {
  const isLocal = await stat(nameOrPath).then(
    () => true,
    () => false,
  );
  if (isLocal) return await openModel(nameOrPath);
  const name = parseHubName(nameOrPath);
  if (name === undefined) {
    throw new ModelError(`${nameOrPath}: no such file or folder, and not a name on a model hub, which looks like owner/name.`);
  }
  return await openModel(await fetchFromHub(name, options));
}
