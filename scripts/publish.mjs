// Publishes the packages of the engines (build/packages, made by scripts/make-platform-package.mjs on each system) and then attune, which names them as
// optional dependencies of its own version.
//   node scripts/publish.mjs [--dry-run]
import { execFileSync } from "node:child_process";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const packages = join(root, "build", "packages");
const flags = ["--access", "public", ...process.argv.slice(2)];
const manifestPath = join(root, "package.json");
const written = readFileSync(manifestPath, "utf8");
const manifest = JSON.parse(written);

const engines = readdirSync(packages).map((folder) => {
  const engine = JSON.parse(readFileSync(join(packages, folder, "package.json"), "utf8"));
  if (engine.version !== manifest.version)
    throw new Error(`${engine.name} is version ${engine.version}, attune ${manifest.version}: make it again`);
  return { name: engine.name, folder: join(packages, folder) };
});
if (engines.length === 0) throw new Error(`${packages} is empty: run scripts/make-platform-package.mjs on each system first`);

for (const { folder } of engines) execFileSync("npm", ["publish", ...flags], { cwd: folder, stdio: "inherit" });
try {
  const optionalDependencies = Object.fromEntries(engines.map(({ name }) => [name, manifest.version]));
  writeFileSync(manifestPath, `${JSON.stringify({ ...manifest, optionalDependencies }, null, 2)}\n`);
  execFileSync("npm", ["publish", ...flags], { cwd: root, stdio: "inherit" });
} finally {
  writeFileSync(manifestPath, written); // a clone's own stays without them: `npm ci` would miss them in the lock file
}
