// Compiles engine/ into build/attune.node with the system's C++ compiler. Objects are cached by what went into them, so a second run is quick.
//   node scripts/build-engine.mjs [--into FOLDER] [--debug] [--sanitize] [--verbose]
// --into makes FOLDER/attune.node instead and keeps no objects: so an installed package compiles its engine, and two of them at once do no harm.
// CXX chooses the compiler; CXXFLAGS are added to every command. --sanitize makes another one, build/sanitized/attune.node, that ends the process
// at the first access to memory that is not its own and at undefined behaviour; it needs the sanitizer's library preloaded (GCC's: libasan.so).
import { execFile, execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from "node:fs";
import { availableParallelism } from "node:os";
import { dirname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import nodeApi from "node-api-headers";

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const engine = join(root, "engine");
const sanitize = process.argv.includes("--sanitize");
const into = process.argv.includes("--into") ? process.argv[process.argv.indexOf("--into") + 1] : undefined;
const folder = into ?? join(root, "build", ...(sanitize ? ["sanitized"] : []));
const cache = join(folder, into === undefined ? "objects" : `objects.${process.pid}`);
const output = join(folder, "attune.node");
const sanitizers = "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer";
const extraFlags = words(`${sanitize ? sanitizers : ""} ${process.env.CXXFLAGS ?? ""}`);
const debug = process.argv.includes("--debug");
const verbose = process.argv.includes("--verbose");
const isWindows = process.platform === "win32";

// Never -ffast-math: NaN must stay NaN, and a sum its order. -fno-math-errno only lets sqrtf be an instruction.
const flags = [
  ...words("-std=c++17 -g1 -Wall -Wextra -fvisibility=hidden -fopenmp-simd -ffp-contract=fast -fno-math-errno -DNAPI_VERSION=8"),
  ...words(isWindows ? "" : "-fPIC -pthread"),
  ...[debug ? "-Og" : sanitize ? "-O1" : "-O3", `-I${nodeApi.include_dir}`, ...extraFlags],
];

// Where another program's rounding is to be met bit by bit, on every machine.
const fusesNothing = /quantize_gguf\.cpp$/;

// Each tier's flags contain the lower tier's. A tier that the compiler does not know is left out.
const avx2 = words("-mavx2 -mfma -mf16c -mbmi2");
const avx512 = [...avx2, ...words("-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512cd -mprefer-vector-width=512")];
const avx512bf16 = [...avx512, "-mavx512bf16"];
const amx = [...avx512bf16, "-mamx-tile", "-mamx-bf16"];
const tierFlags = process.arch === "x64" ? { avx2, avx512, avx512bf16, amx } : {};

const compiler = findCompiler();
const tiers = Object.fromEntries(Object.entries(tierFlags).filter(([, extra]) => accepts(extra)));
const defines = Object.keys(tiers).map((tier) => `-DATTUNE_HAS_${tier.toUpperCase()}`);
const headers = filesIn(engine, /\.(h|inl)$/);
const common = hashOf([compiler.version, process.arch, ...headers.map((file) => readFileSync(file))]);

mkdirSync(cache, { recursive: true });
const jobs = filesIn(engine, /\.cpp$/).flatMap((source) => {
  const tier = /isa[\\/](\w+)\.cpp$/.exec(source)?.[1];
  if (tier && tier !== "portable" && !(tier in tiers)) return [];
  const own = [...flags, ...(tier ? (tiers[tier] ?? []) : defines), ...(fusesNothing.test(source) ? ["-ffp-contract=off"] : [])];
  const object = join(cache, `${hashOf([common, source, readFileSync(source), own.join(" ")])}.o`);
  return [{ source, object, own, weight: tier ? 1 : 0 }];
});

const stale = jobs.filter((job) => !existsSync(job.object)).sort((a, b) => b.weight - a.weight); // the longest first
const started = Date.now();
const isLive = process.stdout.isTTY;
let done = 0;
if (stale.length > 0 && !isLive)
  console.log(`engine: compiling ${stale.length} files for this machine, which takes a minute or two`);
try {
  await runAll(stale, Math.min(availableParallelism(), stale.length), compile);
} catch (error) {
  fail(error);
}
if (stale.length > 0 && isLive) process.stdout.write("\r\x1b[K");
const linked = hashOf(jobs.map((job) => job.object));
const stamp = join(cache, "linked");
if (!existsSync(output) || !existsSync(stamp) || readFileSync(stamp, "utf8") !== linked) {
  await link().catch(fail);
  writeFileSync(stamp, linked);
  const seconds = ((Date.now() - started) / 1000).toFixed(1);
  console.log(
    `engine: ${into === undefined ? relative(root, output) : output} (${["portable", ...Object.keys(tiers)].join(", ")}) built in ${seconds} s`,
  );
}
const dayAgo = Date.now() - 24 * 3600 * 1000; // newer objects may be of a build that runs beside this one
const live = new Set(jobs.map((job) => job.object));
for (const file of filesIn(cache, /\.o/)) if (!live.has(file) && statSync(file).mtimeMs < dayAgo) rmSync(file, { force: true });
if (into !== undefined) rmSync(cache, { recursive: true });

async function compile({ source, object, own }) {
  const unfinished = `${object}.${process.pid}`; // renamed when whole: an interrupted build leaves nothing that looks right
  if (isLive) process.stdout.write(`\rengine: compiling for this machine, ${done} of ${stale.length} files`);
  await run([...own, "-c", source, "-o", unfinished]);
  renameSync(unfinished, object);
  done++;
}

async function link() {
  const unfinished = `${output}.${process.pid}`;
  const shared = process.platform === "darwin" ? ["-bundle", "-undefined", "dynamic_lookup"] : ["-shared"];
  const libraries = isWindows ? ["-static", importLibrary()] : ["-pthread"];
  await run([...extraFlags, ...shared, ...jobs.map((job) => job.object), "-o", unfinished, ...libraries]);
  renameSync(unfinished, output);
}

/** Windows wants to know at link time where Node-API functions will come from. */
function importLibrary() {
  const library = join(cache, "libnode.a");
  const tool = process.env.DLLTOOL ?? "dlltool";
  execFileSync(tool, ["-d", nodeApi.def_paths.node_api_def, "-l", library], { stdio: "inherit" });
  return library;
}

async function run(args) {
  if (verbose) console.log([compiler.command, ...args].join(" "));
  const { stderr } = await promisify(execFile)(compiler.command, args, { maxBuffer: 1 << 28 });
  process.stderr.write(stderr);
}

/** Prints what the compiler said, and ends. */
function fail(error) {
  console.error(`${error.stderr ?? error}\nengine: ${compiler.command} failed; run again with --verbose to see the command`);
  if (into !== undefined) rmSync(cache, { recursive: true, force: true });
  process.exit(1);
}

async function runAll(items, width, work) {
  const queue = [...items];
  const worker = async () => {
    for (let item = queue.shift(); item; item = queue.shift()) await work(item);
  };
  await Promise.all(Array.from({ length: width }, worker));
}

function findCompiler() {
  const candidates = process.env.CXX ? [process.env.CXX] : ["c++", "g++", "clang++"];
  for (const command of candidates) {
    try {
      return {
        command,
        version: execFileSync(command, ["--version"], { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] }),
      };
    } catch {}
  }
  console.error(`engine: no C++ compiler found (tried ${candidates.join(", ")}). attune compiles its engine once, with GCC 9 or Clang 11 or newer:
  Debian, Ubuntu   sudo apt install g++
  Fedora, RHEL     sudo dnf install gcc-c++
  Alpine           apk add g++
  macOS            xcode-select --install
  Windows          winget install MartinStorsjo.LLVM-MinGW.UCRT
Then run again; CXX=/path/to/compiler chooses one.`);
  process.exit(1);
}

function accepts(extra) {
  try {
    execFileSync(compiler.command, [...extra, "-Werror", "-fsyntax-only", "-x", "c++", "-"], {
      input: "",
      stdio: ["pipe", "ignore", "ignore"],
    });
    return true;
  } catch {
    return false;
  }
}

function words(text) {
  return text.split(/\s+/).filter(Boolean);
}

function filesIn(folder, pattern) {
  return readdirSync(folder, { recursive: true })
    .map((name) => join(folder, String(name)))
    .filter((file) => pattern.test(file))
    .sort();
}

function hashOf(parts) {
  const hash = createHash("sha256");
  for (const part of parts) hash.update(part).update("\0");
  return hash.digest("hex").slice(0, 32);
}
