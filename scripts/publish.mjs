// Publishes the packages of the engines (build/packages, made by scripts/make-platform-package.mjs on each system) and then attune, which names them as
// optional dependencies of its own version. What is published already is passed over, so a release that broke off is finished by a second run.
//   node scripts/publish.mjs [flags for npm publish, such as --dry-run]
import { execFileSync, spawnSync } from "node:child_process";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

/** As platformPackage() of src/engine/find.ts names them. */
const systems = ["linux-x64", "linux-arm64", "darwin-arm64", "darwin-x64", "win32-x64"];

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const manifestPath = join(root, "package.json");
const written = readFileSync(manifestPath, "utf8");
const manifest = JSON.parse(written);
const { version } = manifest;

const engines = systems.map((system) => {
  const folder = join(root, "build", "packages", `engine-${system}`);
  if (!existsSync(folder)) throw new Error(`${folder} is not there: run scripts/make-platform-package.mjs on ${system} first`);
  const engine = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
  if (engine.version !== version)
    throw new Error(`${engine.name} is version ${engine.version}, attune ${version}: make it again`);
  return { name: engine.name, folder };
});

for (const { name, folder } of engines) publish(name, folder);
try {
  const optionalDependencies = Object.fromEntries(engines.map(({ name }) => [name, version]));
  writeFileSync(manifestPath, `${JSON.stringify({ ...manifest, optionalDependencies }, null, 2)}\n`);
  publish(manifest.name, root);
} finally {
  writeFileSync(manifestPath, written); // a clone's own stays without them: `npm ci` would miss them in the lock file
}

function publish(name, cwd) {
  const seen = spawnSync("npm", ["view", `${name}@${version}`, "version"], { cwd, encoding: "utf8" });
  if (seen.status === 0 && seen.stdout.trim() === version) {
    console.log(`${name} ${version} is published already`);
    return;
  }
  execFileSync("npm", ["publish", "--access", "public", ...process.argv.slice(2)], { cwd, stdio: "inherit" });
}
