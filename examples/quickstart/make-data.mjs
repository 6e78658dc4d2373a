/**
 * Writes the quickstart's data: `node make-data.mjs [FOLDER]` makes train.jsonl and heldout.jsonl in FOLDER (default: beside this file).
 *
 * The task: a customer's message to a café → strict JSON with name, count, size, item and pick-up time.
 * Number words become digits; all else is copied as it was said.
 * Every held-out message uses wording that no training message uses, and most have a name or an item that training never shows.
 * The same seed gives the same bytes.
 */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const system = "Extract the order as JSON with name, count, size, item, time.";
const trainRows = 440;
const heldOutRows = 50;

/** The items of a list that is written as one text. */
const list = (text) => text.trim().split(/\s*\|\s*/);
const words = (text) => text.trim().split(/\s+/);

// {o} is what is ordered, {n} the customer's name, {t} the time. Openings and closings may be empty, and often are.
const wording = {
  train: {
    openings: list(
      " |  |  | Hi, | Hi there, | Hello! | Hey, | Good morning, | Hi team, | hello, | Quick order: | Hey folks, | Morning! | Hi again, | Howdy, | Hiya! | Good afternoon, | Hello everyone, | Excuse me, | Dear café,",
    ),
    requests: [
      "can I get {o} for {t}? Name is {n}.",
      "could I have {o} at {t}, under {n}?",
      "I'd like {o}, pick-up at {t}. It's {n}.",
      "I would like to order {o} for {n}, ready by {t}.",
      "{n} here, {o} for {t} please.",
      "{n} here. Please make me {o}, I'll come at {t}.",
      "this is {n}, I need {o} by {t}.",
      "this is {n}. Can you have {o} ready at {t}?",
      "please put me down for {o} at {t}, name {n}.",
      "please prepare {o} for {n}, collecting at {t}.",
      "{o} please, for {n}, around {t}.",
      "{o} at {t} for {n}.",
      "{o} for {t}, {n}.",
      "at {t} I'll pick up {o}, the name's {n}.",
      "at {t} please: {o} for {n}.",
      "for {n}: {o} at {t}.",
      "order for {n}, {o}, {t}.",
      "my name is {n} and I want {o} at {t}.",
      "my name's {n}, could you do {o} for {t}?",
      "we need {o} at {t}. Ask for {n}.",
      "I'm coming in at {t} and I'd love {o}. {n}.",
      "just {o} today, {t}, {n}.",
      "would it be possible to get {o} by {t}? Under {n} please.",
      "{n} would like {o} at {t}.",
      "{n} wants {o}, and will be there at {t}.",
      "{n} is picking up {o} at {t}.",
      "save {o} for {n}, will you? Coming at {t}.",
      "I'll have {o}. Pick-up {t}, name {n}.",
      "I'll take {o} please, it's for {n} at {t}.",
      "let me get {o} for {n}. I'm there at {t}.",
      "can you set aside {o} for {n} until {t}?",
      "get {o} ready for {n} by {t} please.",
      "it's {n} again, the usual: {o} at {t}.",
      "I'm {n}. {o}, to go, {t}.",
      "to go: {o}, {t}, for {n}.",
      "{t} pick-up for {n}: {o}.",
      "{t}, {o}, {n}. That's all.",
      "by {t} please have {o} ready for {n}.",
      "{t} suits me best. {o}, name {n}.",
      "at {t} {n} comes for {o}.",
      "tomorrow at {t}: {o}, {n}.",
      "I finish work at {t} and then I want {o}, {n}.",
      "do you have {o}? If so keep it for {n}, {t}.",
    ],
    closings: list(
      " |  |  |  | Thanks! | thx | Thank you. | See you! | Cheers | Many thanks | I pay by card. | No rush. | To take away. | pls",
    ),
  },
  heldOut: {
    openings: list(" |  | Greetings, | Good evening, | Hi all, | Good day! | Dear team, | Heya,"),
    requests: [
      "any chance of {o} at {t}? Put it under {n}.",
      "I was hoping for {o}, ready around {t}, name of {n}.",
      "{n} speaking. I'd take {o} at {t} if you can.",
      "reserve {o} for {n} please, I'll swing by at {t}.",
      "mind making {o} for {t}? The order is for {n}.",
      "I'd be grateful for {o} by {t}. Yours, {n}.",
      "{o}, that's for {n}, who arrives at {t}.",
      "around {t} {n} will fetch {o}.",
      "we'd love {o} for {n} at about {t}.",
      "be so kind and have {o} waiting at {t}. My name: {n}.",
      "please add {o} to today's list, {t}, {n}.",
      "will you make {o} for {n}? I'm passing at {t}.",
      "kindly note: {n}, {o}, ready {t}.",
      "I am {n} and need {o} before {t}.",
    ],
    closings: list(" |  |  | Bye! | Much appreciated. | Have a good one. | Cash is fine. | Best wishes"),
  },
};

const allNames = words(`
  Mia Liam Noah Emma Olivia Ava Lucas Sofia Ethan Chloe Jack Grace Henry Lily Oscar Ruby Leo Zoe Max Ella Ben Nina Sam
  Anna Tom Kate Paul Laura David Sarah Peter Julia Mark Alice Simon Clara Felix Maria Hugo Elena Ivan Priya Ravi Mei
  Chen Yuki Kenji Aisha Omar Fatima Ali Layla Diego Carmen Pablo Lucia Marco Giulia Pierre Camille Lars Ingrid Sven
  Astrid Piotr Ewa Dmitri Olga Kofi Ama Thabo Zanele Kim Jin Linh Adam Beth Carl Daisy Edward Fiona George Helen
  Isaac Jasmine Kevin Leila Martin Nadia Owen Paula Rachel Stefan Tina Umar Vera Walter Xavier Yvonne Zack Bianca Caleb
  Denise Elias Farah Gustav Hilda Imran Joanna Klaus Lorena Milan Naomi Otto Petra Rafael Selma Tariq Valerie Wei Yara
  Andrei Brenda Colin Dora Esther Frank Greta Harry Irene Jorge Tara Bruno Freya Idris Noor Stella Victor Wanda Quentin
  Yasmin Gabriel Hannah Mateo Ursula Dylan Penny Rosa Jonas Keira Ahmed
`);
const allItems = list(`
  latte | mocha | espresso | cappuccino | flat white | hot chocolate | green tea | black tea | lemonade | iced tea |
  orange juice | smoothie | bagel | muffin | croissant | brownie | cookie | scone | pretzel | waffle | cheese toast |
  ham sandwich | veggie wrap | fruit salad | tomato soup | pizza slice | apple pie | lemon tart | carrot cake |
  rice bowl | macchiato | cold brew | mint tea | apple juice | root beer | soda | cupcake | pancake | cheesecake |
  tuna wrap | turkey sandwich | onion soup | pasta bowl | cherry pie | almond cake | honey bun | popcorn bag | burger |
  taco | vanilla shake | coconut water | peach nectar | cranberry juice | mango lassi | herbal tea | cortado |
  ristretto | pecan pie | poppy roll | raisin bun | walnut bread | avocado toast | chicken panini | falafel wrap |
  lentil soup | mushroom quiche | potato salad | noodle box | sushi tray | yogurt cup | granola bar | sherbet cone |
  caramel flan | eclair | macaron | strudel | baguette | burrito | samosa | dumpling | pickle jar | matcha | americano |
  ginger tea | milkshake | donut | cinnamon roll | egg sandwich | pumpkin soup | berry tart | banana cake
`);
const numberWords = ["no", "one", "two", "three", "four", "five", "six"];
const sizes = ["small", "medium", "large"];

/** Mulberry32: a small generator of numbers in [0, 1) that is the same everywhere. */
function makeRandom(seed) {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

const random = makeRandom(2025);
const chance = (p) => random() < p;
const below = (n) => Math.floor(random() * n);
const pick = (choices) => choices[below(choices.length)];

/** Deals a list into two without looking: what training may use, and what only held-out messages use. */
function deal(values, heldOutCount) {
  const shuffled = [...values];
  for (let i = shuffled.length - 1; i > 0; i--) {
    const j = below(i + 1);
    [shuffled[i], shuffled[j]] = [shuffled[j], shuffled[i]];
  }
  return { train: shuffled.slice(heldOutCount), heldOut: shuffled.slice(0, heldOutCount) };
}

/** What is ordered: how it is said, and its parts. */
function makeOrder(name) {
  const count = chance(0.4) ? 1 : 2 + below(5);
  const size = pick(sizes);
  if (chance(0.12)) return { said: joinWords(`${count}x`, size, name), count, size, item: name };
  const item = count === 1 ? name : `${name}${/(ch|x)$/.test(name) ? "es" : "s"}`;
  return { said: joinWords(numeral(count), size, item), count, size, item };
}

function numeral(count) {
  if (count === 1) return chance(0.7) ? "a" : "one";
  if (count === 2 && chance(0.1)) return "a couple of";
  return chance(0.6) ? numberWords[count] : String(count);
}

function joinWords(...parts) {
  return parts.filter((word) => word !== "").join(" ");
}

function makeTime() {
  const hour = 7 + below(13);
  const minutes = chance(0.5) ? "" : `:${pick(["15", "30", "45"])}`;
  if (chance(0.2)) return `${hour}${minutes || ":00"}`;
  return `${hour > 12 ? hour - 12 : hour}${minutes}${chance(0.5) ? " " : ""}${hour < 12 ? "am" : "pm"}`;
}

/** Swaps or drops a letter inside one long word of the wording; values stay as they are. */
function misspell(text) {
  const parts = text.split(" ");
  const longParts = parts.flatMap((word, i) => (/^[a-z]{5,}$/.test(word) ? [i] : []));
  if (longParts.length === 0) return text;
  const i = pick(longParts);
  const at = 1 + below(parts[i].length - 3);
  const [a, b] = parts[i].slice(at, at + 2);
  parts[i] = parts[i].slice(0, at) + (chance(0.5) ? b + a : b) + parts[i].slice(at + 2);
  return parts.join(" ");
}

function makeRow({ openings, requests, closings }, names, items) {
  const name = pick(names);
  const order = makeOrder(pick(items));
  const time = makeTime();
  const opening = pick(openings);
  const template = pick(requests);

  let request = chance(0.1) ? misspell(template) : template;
  request = request.replace("{o}", order.said).replace("{n}", name).replace("{t}", time);
  if (opening === "" || /[.!:]$/.test(opening)) request = request[0].toUpperCase() + request.slice(1);
  let message = joinWords(opening, request, pick(closings));
  if (chance(0.1)) message = message.replaceAll(/[,.!?]+$/g, "");

  const answer = { name, count: order.count, size: order.size, item: order.item, time };
  const messages = [
    { role: "system", content: system },
    { role: "user", content: message },
    { role: "assistant", content: JSON.stringify(answer) },
  ];
  return { messages };
}

/** Rows with different messages. */
function makeRows(count, makeOne) {
  const rows = new Map();
  while (rows.size < count) {
    const row = makeOne();
    rows.set(row.messages[1].content, row);
  }
  return [...rows.values()];
}

const names = deal(allNames, 24);
const items = deal(allItems, 16);
const training = makeRows(trainRows, () => makeRow(wording.train, names.train, items.train));
const heldOutSet = makeRows(heldOutRows, () => {
  const side = (chanceOfNew) => (chance(chanceOfNew) ? "heldOut" : "train");
  return makeRow(wording.heldOut, names[side(0.6)], items[side(0.4)]);
});

const folder = process.argv[2] ?? fileURLToPath(new URL(".", import.meta.url));
const toLines = (rows) => rows.map((row) => `${JSON.stringify(row)}\n`).join("");
writeFileSync(join(folder, "train.jsonl"), toLines(training));
writeFileSync(join(folder, "heldout.jsonl"), toLines(heldOutSet));
