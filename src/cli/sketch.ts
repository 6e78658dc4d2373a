import { smooth } from "../runs/smooth.js";

export interface CurvePoint {
  readonly step: number;
  readonly loss: number;
}

/**
 * The smoothed loss over the steps as text, `width` × `height` characters in all: braille (2 × 4 dots in a character) or, without
 * Unicode, one `*` a column. Values that are not finite are left out; fewer than two points give an empty string.
 */
export function sketchLoss(
  points: readonly CurvePoint[],
  { width, height, unicode }: { width: number; height: number; unicode: boolean },
): string {
  const finite = points.filter(({ loss }) => Number.isFinite(loss));
  if (finite.length < 2) return "";
  const losses = smooth(finite.map(({ loss }) => loss));
  const low = losses.reduce((a, b) => Math.min(a, b));
  const high = losses.reduce((a, b) => Math.max(a, b));
  const label = (value: number) => value.toPrecision(3);
  const margin = Math.max(label(low).length, label(high).length) + 1;
  const columns = width - margin - 1;
  const rows = height - 1; // the last line has the steps
  if (columns < 8 || rows < 2) return "";

  const [perColumn, perRow] = unicode ? [2, 4] : [1, 1];
  const [dotColumns, dotRows] = [columns * perColumn, rows * perRow];
  const first = finite[0]!.step;
  const last = finite.at(-1)!.step;
  const dots = new Set<number>();
  let previousY: number | undefined;
  for (let x = 0; x < dotColumns; x++) {
    const loss = lossAt(finite, losses, first + ((last - first) * x) / (dotColumns - 1));
    const y = high > low ? Math.round(((high - loss) / (high - low)) * (dotRows - 1)) : dotRows - 1;
    // A steep curve is joined by dots between this column's height and the last one's.
    const step = Math.sign((previousY ?? y) - y);
    for (let joined = y; joined !== (previousY ?? y); joined += step) dots.add(joined * dotColumns + x);
    dots.add(y * dotColumns + x);
    previousY = y;
  }

  const isSet = (x: number, y: number) => dots.has(y * dotColumns + x);
  const character = unicode ? brailleAt : (column: number, row: number) => (isSet(column, row) ? "*" : " ");
  const axis = unicode ? "┤" : "|";
  const lines = Array.from({ length: rows }, (_, row) => {
    const value = row === rows - 1 ? label(low) : row === 0 && high > low ? label(high) : "";
    const curve = Array.from({ length: columns }, (_, column) => character(column, row)).join("");
    return `${value.padStart(margin - 1)} ${value === "" && unicode ? "│" : axis}${curve.trimEnd()}`;
  });
  const steps = `step ${first}`;
  lines.push(" ".repeat(margin + 1) + steps + String(last).padStart(columns - steps.length));
  return lines.join("\n");

  function brailleAt(column: number, row: number): string {
    // Bits of U+2800 count down the left column, then the right one; the fourth row came later to Unicode.
    const bits = [0x01, 0x08, 0x02, 0x10, 0x04, 0x20, 0x40, 0x80];
    const code = bits.reduce((sum, bit, i) => sum + (isSet(2 * column + (i % 2), 4 * row + Math.floor(i / 2)) ? bit : 0), 0);
    return code === 0 ? " " : String.fromCharCode(0x2800 + code);
  }
}

/** The smoothed loss at a step, linear between two points. */
function lossAt(points: readonly CurvePoint[], losses: readonly number[], step: number): number {
  let [from, to] = [0, points.length - 1];
  while (to - from > 1) {
    const middle = (from + to) >> 1;
    if (points[middle]!.step <= step) from = middle;
    else to = middle;
  }
  const [a, b] = [points[from]!.step, points[to]!.step];
  const share = b > a ? (step - a) / (b - a) : 0;
  return losses[from]! + (losses[to]! - losses[from]!) * share;
}
