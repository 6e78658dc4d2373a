import { Rng } from "../src/core/rng.js";

/** What a model is asked, and the only answer that counts. */
export interface Asked {
  readonly question: string;
  readonly answer: string;
}

/** A small task: rows that train, rows that rates are chosen on, and rows that are reported. No row is in two of them. */
export interface Task {
  readonly name: string;
  readonly words: string;
  /** What the system says in every row. */
  readonly system: string;
  readonly train: readonly Asked[];
  readonly choose: readonly Asked[];
  readonly report: readonly Asked[];
}

const list = (text: string) => text.split("|").map((item) => item.trim());

/** Rows of a task are drawn from its own seed; held-out rows use words that training never shows. */
function taskOf(name: string, words: string, system: string, draw: (rng: Rng, part: "train" | "held", i: number) => Asked): Task {
  const rng = Rng.for(1, name);
  const seen = new Set<string>();
  const rows = (count: number, part: "train" | "held") => {
    const made: Asked[] = [];
    while (made.length < count) {
      const row = draw(rng, part, made.length);
      if (seen.has(row.question)) continue;
      seen.add(row.question);
      made.push(row);
    }
    return made;
  };
  return { name, words, system, train: rows(60, "train"), choose: rows(20, "held"), report: rows(20, "held") };
}

const oneOf = <T>(rng: Rng, items: readonly T[]): T => items[rng.below(items.length)]!;

/** Which desk of a newspaper a reader's line belongs to. */
const desks = {
  sport: {
    train: list(
      "the striker scored twice before half-time | our swimmers broke the relay record | the coach rested two injured defenders | the cup final went to penalties | the marathon was won by a newcomer | the goalkeeper signed for another club | the cyclists fought over the last climb | the tennis star lost in straight sets | fans booed the referee all evening | the rowing team trains before dawn",
    ),
    held: list(
      "the boxer won by knockout in round six | the basketball team missed every free throw | the skier fell on the second gate | the rugby captain retires after the season | the batsman was out for a duck | the gymnast landed a perfect vault | the hockey league begins in October | the golfer needed one putt to win",
    ),
  },
  money: {
    train: list(
      "shares of the bank fell by five percent | the central bank raised interest rates | rents in the city doubled in ten years | the factory cut three hundred jobs | inflation slowed for the third month | the airline reported a record profit | tax on small firms goes up in April | the pension fund sold its bonds | oil prices dropped after the meeting | the startup raised two million in loans",
    ),
    held: list(
      "the supermarket chain is up for sale | mortgage payments are hard to meet this year | the currency lost value against the dollar | wages rose faster than prices | the carmaker warned of lower earnings | investors bought gold again | the budget leaves a large deficit | the insurer will pay a dividend",
    ),
  },
  science: {
    train: list(
      "a probe landed on the far side of the moon | biologists found a frog thought extinct | the vaccine protects mice for a year | a new telescope saw the oldest galaxy | bees can count up to four, a study shows | chemists made plastic from seaweed | the glacier lost a metre of ice | neurons grow again after training | a fossil shows how wings began | the reactor held its plasma for a minute",
    ),
    held: list(
      "physicists measured the mass of a neutrino | the comet will pass close to the sun | a gene explains why some cats are orange | geologists drilled into an old volcano | whales change their songs each year | researchers grew a kidney in the lab | the particle detector found nothing new | ancient DNA tells where wheat came from",
    ),
  },
  culture: {
    train: list(
      "the novel won the autumn prize | a painting was returned to its owners | the orchestra plays Mahler tonight | the film opens the festival | the theatre needs a new roof and a new play | her songs are sung by children everywhere | the museum shows masks from Bali | the poet reads in the old library | the dancers moved without any music | the band cancelled its farewell concert",
    ),
    held: list(
      "the opera singer stopped after the second act | a sculpture of glass stands in the hall | the director filmed in black and white | the author signs books on Friday | the choir sang for the first time in years | the gallery sold its last Picasso | the comedy runs until spring | the violinist practised on a borrowed instrument",
    ),
  },
} as const;
const openings = {
  train: list("Dear editor, | I read that | Please print this: | Did you hear? | Reader's note: | My neighbour says"),
  held: list("Hello, | News for you: | They say | A line for tomorrow:"),
};

const classify = taskOf(
  "desk",
  "classification, English: which of four desks a reader's line belongs to",
  "Which desk?",
  (rng, part, i) => {
    const desk = (["sport", "money", "science", "culture"] as const)[i % 4]!;
    const line = oneOf(rng, desks[desk][part]);
    return { question: `${oneOf(rng, openings[part])} ${line}.`, answer: desk };
  },
);

const people = {
  train: list(
    "Maria Keller | John Osei | Anna Lind | Peter Novak | Rosa Diaz | Tom Becker | Ines Costa | Karl Meyer | Lucy Hart | Omar Saleh | Eva Horn | Paul Reid",
  ),
  held: list("Nina Vogel | Ahmed Khan | Clara Stone | Victor Hugo Lima | Dora Weiss | Sam Porter | Julia Frost | Ben Okoro"),
};
const titles = {
  train: list(
    "The Quiet Hill | Salt and Iron | A Year of Rain | Night Trains | The Glass Door | Paper Birds | Seven Bridges | The Last Orchard | Cold Harbour | Letters Home | The Blue Map | Stone Fruit",
  ),
  held: list(
    "Winter Bees | The Long Table | Red Lanterns | A Map of Dust | The Tin Boat | Small Hours | Green Water | The Ninth Key",
  ),
};
const months = list("May | June | July | August | March | October");
const loanWording = {
  train: [
    "{n} took “{b}” home on {d} and must bring it back by {e}.",
    "On {d}, “{b}” was lent to {n}; it is due on {e}.",
    "“{b}” went to {n} on {d}. Return date: {e}.",
    "Due {e}: “{b}”, borrowed on {d} by {n}.",
    "We lent {n} the book “{b}” on {d}, until {e}.",
  ],
  held: [
    "{n} has had “{b}” since {d}; we want it back on {e}.",
    "By {e} we expect “{b}” from {n}, who got it on {d}.",
    "Since {d} the book “{b}” has been with {n}. It comes back on {e}.",
  ],
};

const extract = taskOf("loans", "extraction, English: reader; title; date due", "Who; what; due when?", (rng, part) => {
  const [n, b] = [oneOf(rng, people[part]), oneOf(rng, titles[part])];
  const day = () => `${1 + rng.below(28)} ${oneOf(rng, months)}`;
  const [d, e] = [day(), day()];
  const text = oneOf(rng, loanWording[part]).replace("{n}", n).replace("{b}", b).replace("{d}", d).replace("{e}", e);
  return { question: text, answer: `${n}; ${b}; ${e}` };
});

const names = {
  train: list("王敏 | 李强 | 张丽 | 刘洋 | 陈静 | 杨帆 | 赵雪 | 黄磊 | 周杰 | 吴倩 | 徐涛 | 孙悦"),
  held: list("马超 | 朱琳 | 胡军 | 郭晨 | 林芳 | 何平 | 高远 | 罗兰"),
};
const cities = {
  train: list("上海 | 北京 | 广州 | 成都 | 西安 | 武汉 | 南京 | 杭州"),
  held: list("天津 | 苏州 | 青岛 | 长沙 | 大连 | 厦门"),
};
/** What is given, and what is said: the wording that is to be learned. */
const ways = [
  ["火车", "坐火车"],
  ["飞机", "坐飞机"],
  ["汽车", "开车"],
  ["自行车", "骑自行车"],
] as const;
const generate = taskOf("trips", "generation, Chinese: a sentence from its parts", "写一句话", (rng, part) => {
  const [name, city] = [oneOf(rng, names[part]), oneOf(rng, cities[part])];
  const [way, byWay] = oneOf(rng, ways);
  const day = `${1 + rng.below(12)}月${1 + rng.below(28)}日`;
  return { question: `${name}，${city}，${day}，${way}`, answer: `${name}${day}${byWay}去${city}。` };
});

/** Made here, so that nobody's data is copied; the same seed gives the same rows. */
export const tasks: readonly Task[] = [classify, extract, generate];
