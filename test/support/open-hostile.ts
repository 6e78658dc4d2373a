/** Opens and builds the model at a path as a process of its own, and tells what came of it, how long it took and how much memory. */
import { SymbolicDevice } from "../../src/core/symbolic.js";
import { AttuneError } from "../../src/errors.js";
import { openModel } from "../../src/io/open-model.js";
import { buildModel, placeWeights, settleTying } from "../../src/models/load.js";
import { loadTokenizer } from "../../src/text/load-tokenizer.js";
import { tuners } from "../../src/tuners/index.js";
import { openAdapter } from "../../src/tuners/tuned-files.js";

const [path = "", adapter] = process.argv.slice(2);
const startedMs = performance.now();
const [code, message] = await (async () => {
  if (adapter !== undefined) await openAdapter(adapter, tuners);
  const files = await settleTying(await openModel(path));
  placeWeights(buildModel(new SymbolicDevice(), files.config, path), files);
  await loadTokenizer(files);
  return ["", "opened"];
})().catch((error: unknown) => (error instanceof AttuneError ? [error.code, error.message] : ["BUG", String(error)]));
const [ms, peakBytes] = [performance.now() - startedMs, process.resourceUsage().maxRSS * 1024];
process.stdout.write(JSON.stringify({ code, message, ms, peakBytes }));
