// Makes the package that brings the engine compiled for this system and processor: build/packages/engine-PLATFORM-ARCH, ready for `npm publish`.
//   node scripts/make-platform-package.mjs [--engine FILE] [--glibc VERSION]
// --engine packs an engine that is there. Otherwise one is compiled; on Linux with the C++ library inside, so that it needs no more than a C library:
// the package says from which version on, and --glibc refuses one that asks for a newer. The tiers of the processor are chosen when it runs, so one
// file suits all.
import { execFileSync } from "node:child_process";
import { copyFileSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const { engine, glibc } = parseArgs({ options: { engine: { type: "string" }, glibc: { type: "string" } } }).values;
const { platform, arch } = process;
const { version, license, repository, homepage } = JSON.parse(readFileSync(join(root, "package.json"), "utf8"));

const name = `engine-${platform}-${arch}`;
const folder = join(root, "build", "packages", name);
rmSync(folder, { recursive: true, force: true });
mkdirSync(folder, { recursive: true });

if (engine !== undefined) {
  copyFileSync(engine, join(folder, "attune.node"));
} else {
  const whole = platform === "linux" ? "-static-libstdc++ -static-libgcc -s" : "";
  const env = { ...process.env, CXXFLAGS: `${process.env.CXXFLAGS ?? ""} ${whole}`.trim() };
  execFileSync(process.execPath, [join(root, "scripts", "build-engine.mjs"), "--into", folder], { env, stdio: "inherit" });
}
execFileSync(process.execPath, ["-e", `require(${JSON.stringify(join(folder, "attune.node"))})`], { stdio: "inherit" });

const needed = platform === "linux" ? glibcOf(readFileSync(join(folder, "attune.node"), "latin1")) : undefined;
if (glibc !== undefined && needed !== undefined && isNewer(needed, glibc))
  throw new Error(`the engine needs glibc ${needed}, and may need ${glibc} at most: compile it on an older system`);

const needs = needed === undefined ? "" : ` with glibc ${needed} or newer`;
const description = `attune's engine for ${platform} on ${arch}${needs}. It comes with attune; install that.`;
const libc = platform === "linux" ? { libc: ["glibc"] } : {};
const manifest = {
  ...{ name: `@attune/${name}`, version, description, license, repository, homepage },
  ...{ os: [platform], cpu: [arch], ...libc, main: "attune.node", files: ["attune.node"] },
};
writeFileSync(join(folder, "package.json"), `${JSON.stringify(manifest, null, 2)}\n`);
writeFileSync(join(folder, "README.md"), `# ${manifest.name}\n\n${description}\n`);
copyFileSync(join(root, "LICENSE"), join(folder, "LICENSE"));
console.log(folder);

/** The newest version of the C library whose functions a file asks for. */
function glibcOf(bytes) {
  const versions = [...bytes.matchAll(/\0GLIBC_(\d+\.\d+)/g)].map(([, version]) => version);
  return versions.reduce((newest, version) => (isNewer(version, newest) ? version : newest), "2.0");
}

function isNewer(version, other) {
  return Number(version.split(".")[1]) > Number(other.split(".")[1]); // 2.x all of them
}
