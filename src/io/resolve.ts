import { stat } from "node:fs/promises";
import { ConfigError, ModelError } from "../errors.js";
import { fetchFromHub, type HubOptions, parseHubName } from "./hub/hub.js";
import type { ModelFiles } from "./model-files.js";
import { openModel } from "./open-model.js";

/**
 * Opens the model that a recipe names: a local folder or GGUF file if there is one of that name, else a repository of a
 * hub (`owner/name`, `owner/name@revision`, `owner/name/file.gguf`), downloaded into the cache that Python shares.
 * `revision`, where it is not "main", is that of a name without one.
 * Throws ConfigError for two different revisions, ModelUnavailableError if a hub is needed and cannot be reached, ModelError if there is no such model, NoSpaceError.
 */
export async function resolveModel(
  nameOrPath: string,
  { revision = "main", ...options }: HubOptions & { readonly revision?: string } = {},
): Promise<ModelFiles> {
  const isLocal = await stat(nameOrPath).then(
    () => true,
    () => false,
  );
  if (isLocal) {
    if (revision !== "main") options.onNotice?.(`model_revision ${revision} changes nothing: ${nameOrPath} is on this machine`);
    return await openModel(nameOrPath);
  }
  if (revision !== "main" && nameOrPath.includes("@") && !nameOrPath.endsWith(`@${revision}`))
    throw new ConfigError(`model_revision: ${revision} differs from the revision in the name ${nameOrPath}; remove one`);
  const wanted = revision === "main" || nameOrPath.includes("@") ? nameOrPath : `${nameOrPath}@${revision}`;
  const name = parseHubName(wanted);
  if (name === undefined) {
    throw new ModelError(`${wanted}: no such file or folder, and not a name on a model hub, which looks like owner/name.`);
  }
  return await openModel(await fetchFromHub(name, options));
}
