/**
 * Checks who imports whom: `node scripts/check-imports.mjs [ROOT]`.
 *
 * 1. A room under src/ imports only itself and the rooms above it in `rooms`.
 * 2. Outside src/, only test/ and bench/ may reach into rooms; examples/ use src/index.ts, as a user of the package would.
 * 3. Nobody imports what was built (dist/), except bin/, the door of the CLI.
 * 4. Before attune knows its command it loads the commands' own files and lists of choices for their help; everything else waits in `import()`.
 * 5. No file reaches itself through its imports. Imports of types alone leave no trace at run time and may form a circle.
 */
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { dirname, join, posix, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import ts from "typescript";

const rooms = [
  "errors",
  "engine",
  "core",
  "nn",
  "optim",
  "io",
  "text",
  "models",
  "data",
  "preference",
  "tuners",
  "generate",
  "rewards",
  "objectives",
  "evaluate",
  "recipe",
  "runs",
  "train",
  "advise",
  "backends",
  "export",
  "serve",
  "cli",
  "index", // src/index.ts, the public API
];
/** Where the CLI starts, and which files outside its room its help needs. */
const cli = { start: "src/cli/attune.ts", choices: ["src/errors.ts", "src/export/choices.ts", "src/text/tool-formats.ts"] };
const folders = ["src", "test", "bench", "examples", "scripts", "bin"];

const root = resolve(process.argv[2] ?? join(dirname(fileURLToPath(import.meta.url)), ".."));
const files = folders.filter((folder) => existsSync(join(root, folder))).flatMap(sourcesIn);
const imports = files.flatMap(importsOf);
const problems = [...files.flatMap(checkRoom), ...imports.flatMap(checkImport), ...checkStart(), ...findCycles()];

for (const problem of problems) console.error(problem);
console.log(`${files.length} files, ${imports.length} imports between them, ${problems.length} against the rules`);
process.exit(problems.length === 0 ? 0 : 1);

function sourcesIn(folder) {
  return readdirSync(join(root, folder), { recursive: true })
    .map((file) => `${folder}/${file.replaceAll("\\", "/")}`)
    .filter((file) => /\.(ts|mts|mjs|js)$/.test(file));
}

/** The imports of files of this repository: { from, line, to, typeOnly, lazy }, where `to` is the path of a source. */
function importsOf(from) {
  const source = ts.createSourceFile(from, readFileSync(join(root, from), "utf8"), ts.ScriptTarget.Latest);
  const found = [];
  const add = (node, specifier, typeOnly, lazy = false) => {
    const path = specifier === "attune" ? "src/index.ts" : specifier;
    if (!/^\.{0,2}\/|^src\//.test(path)) return; // a package or one of Node's modules
    const to = path.startsWith("src/") ? path : posix.join(posix.dirname(from), path);
    const line = source.getLineAndCharacterOfPosition(node.getStart(source)).line + 1;
    found.push({ from, line, to: to.replace(/\.js$/, existsSync(join(root, to)) ? ".js" : ".ts"), typeOnly, lazy });
  };
  const visit = (node) => {
    if (ts.isImportDeclaration(node)) add(node, node.moduleSpecifier.text, isTypeOnly(node.importClause));
    else if (ts.isExportDeclaration(node) && node.moduleSpecifier) add(node, node.moduleSpecifier.text, node.isTypeOnly);
    else if (
      ts.isCallExpression(node) &&
      node.expression.kind === ts.SyntaxKind.ImportKeyword &&
      ts.isStringLiteralLike(node.arguments[0])
    )
      add(node, node.arguments[0].text, false, true);
    else if (ts.isImportTypeNode(node) && ts.isLiteralTypeNode(node.argument)) add(node, node.argument.literal.text, true);
    ts.forEachChild(node, visit);
  };
  visit(source);
  return found;
}

function isTypeOnly(clause) {
  if (clause === undefined) return false; // import "./x.js" runs the file
  if (clause.phaseModifier === ts.SyntaxKind.TypeKeyword) return true;
  const names = clause.namedBindings;
  return (
    clause.name === undefined &&
    names !== undefined &&
    ts.isNamedImports(names) &&
    names.elements.every((name) => name.isTypeOnly)
  );
}

function roomOf(file) {
  const [folder, room] = file.split("/");
  return folder === "src" ? room.replace(/\.ts$/, "") : undefined;
}

function checkRoom(file) {
  const room = roomOf(file);
  if (room === undefined || rooms.includes(room)) return [];
  return [`${file}:1: "${room}" is not one of the rooms that scripts/check-imports.mjs lists`];
}

function checkImport({ from, line, to }) {
  const [fromFolder] = from.split("/");
  const problem = (why) => [`${from}:${line}: ${from} → ${to}: ${why}`];

  if (to.startsWith("dist/")) return fromFolder === "bin" ? [] : problem("what was built is not imported; import the source");
  if (fromFolder !== "src") {
    const mayReachIn = fromFolder === "test" || fromFolder === "bench" || !to.startsWith("src/") || to === "src/index.ts";
    return mayReachIn ? [] : problem("only test/ and bench/ reach into rooms; import src/index.ts");
  }
  if (!to.startsWith("src/")) return problem("src/ imports nothing outside itself");
  const [fromRoom, toRoom] = [roomOf(from), roomOf(to)];
  if (rooms.indexOf(toRoom) <= rooms.indexOf(fromRoom)) return [];
  return problem(`room ${fromRoom} may import only rooms above it, and ${toRoom} is below`);
}

/** Follows what the start of the CLI imports at once, up to the first file that should have waited. */
function checkStart() {
  const reached = new Set([cli.start]);
  const found = [];
  for (const file of reached) {
    for (const { line, to } of imports.filter(({ from, typeOnly, lazy }) => from === file && !typeOnly && !lazy)) {
      if (roomOf(to) !== "cli" && !cli.choices.includes(to))
        found.push(`${file}:${line}: ${file} → ${to}: every start of attune would load it; use import() where it is needed`);
      else reached.add(to);
    }
  }
  return found;
}

/** Depth-first over the imports that remain at run time; an edge back into the path that led here closes a cycle. */
function findCycles() {
  const edgesFrom = (file) => imports.filter((edge) => edge.from === file && !edge.typeOnly);
  const done = new Set();
  const path = [];
  const cycles = [];
  const visit = (file) => {
    path.push(file);
    for (const { line, to } of edgesFrom(file)) {
      if (done.has(to)) continue;
      const start = path.indexOf(to);
      if (start < 0) visit(to);
      else cycles.push(`${file}:${line}: a cycle of imports: ${[...path.slice(start), to].join(" → ")}`);
    }
    path.pop();
    done.add(file);
  };
  for (const file of files) if (!done.has(file)) visit(file);
  return cycles;
}
