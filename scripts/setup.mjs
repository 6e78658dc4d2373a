/**
 * Makes a fresh clone ready, and leaves a ready one alone: packages, engine, TypeScript. `npm run quickstart`, `npm test` and
 * `npm run bench` all run it first. Node's own modules only, because nothing else is there yet. `--clean` compiles the TypeScript anew, so that
 * dist/ holds nothing of sources that are gone: what is packed must be what is here.
 */
import { spawn } from "node:child_process";
import { readFileSync, rmSync } from "node:fs";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));
const oldestNode = [20, 19];

checkNode();
if (!packagesAreInstalled()) await stage("packages", npmCi(), adviseNetwork);
await stage("engine", [process.execPath, "scripts/build-engine.mjs"], adviseCompiler);
if (process.argv.includes("--clean")) rmSync(`${root}/dist`, { recursive: true, force: true });
await stage("typescript", [process.execPath, "node_modules/typescript/bin/tsc", "-b"], adviseSource);

function checkNode() {
  const [major, minor] = process.versions.node.split(".").map(Number);
  if (major > oldestNode[0] || (major === oldestNode[0] && minor >= oldestNode[1])) return;
  fail(`attune needs Node ${oldestNode.join(".")} or newer, and this is ${process.versions.node} (${process.execPath}).`, [
    "Install a newer one from nodejs.org or with your version manager, for instance: nvm install 24",
  ]);
}

/** Compares the lock file with the one that npm leaves in node_modules at the end of an installation. */
function packagesAreInstalled() {
  const wanted = readPackages("package-lock.json");
  const installed = readPackages("node_modules/.package-lock.json");
  if (wanted === undefined || installed === undefined) return false;
  const hasPackage = ([path, entry]) => path === "" || entry.optional === true || installed[path]?.version === entry.version;
  return Object.entries(wanted).every(hasPackage);
}

function readPackages(path) {
  try {
    return JSON.parse(readFileSync(`${root}/${path}`, "utf8")).packages;
  } catch {
    return undefined;
  }
}

function npmCi() {
  const npm = process.env.npm_execpath; // the npm that started this script, as a JavaScript file
  const command = npm?.endsWith("npm-cli.js") ? [process.execPath, npm] : ["npm"];
  return [...command, "ci", "--include=dev"];
}

/** Runs one command in silence and prints one line about it; its whole output is shown only when it fails. */
async function stage(name, [command, ...args], advise) {
  const label = name.padEnd(12);
  const isLive = process.stdout.isTTY;
  if (isLive) process.stdout.write(`${label}…`);
  const started = performance.now();

  const shell = command === "npm" && process.platform === "win32"; // there npm is a batch file
  const child = spawn(command, args, { cwd: root, stdio: ["ignore", "pipe", "pipe"], shell });
  let output = "";
  const collect = (data) => {
    output += data;
  };
  child.stdout.on("data", collect);
  child.stderr.on("data", collect);
  const code = await new Promise((resolve) => {
    child.on("error", (error) => {
      collect(error.message);
      resolve(1);
    });
    child.on("close", resolve);
  });

  if (isLive) process.stdout.write("\r\x1b[K");
  const seconds = `${((performance.now() - started) / 1000).toFixed(1)} s`;
  if (code !== 0) {
    process.stderr.write(`${output.trimEnd()}\n\n`);
    fail(`${label}failed after ${seconds}: ${[command, ...args].join(" ")}`, advise());
  }
  console.log(`${label}ready in ${seconds}`);
}

function adviseNetwork() {
  return [
    "npm could not install the packages of package-lock.json: its own words are above. If the registry cannot be reached, check the",
    "network, or the proxy or mirror in `npm config list`, then run the same command again.",
  ];
}

function adviseCompiler() {
  return ["The engine is compiled on this machine, with GCC 9, Clang 11 or newer; the messages above say what is wrong."];
}

function adviseSource() {
  return ["The TypeScript sources do not compile: see the messages above. On an unchanged clone, remove dist/ and try again."];
}

function fail(message, advice) {
  console.error([message, ...advice.map((line) => `  ${line}`)].join("\n"));
  process.exit(1);
}
