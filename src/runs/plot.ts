import { createRequire } from "node:module";
import type { TopLevelSpec } from "vega-lite";
import { smooth } from "./smooth.js";

/** One number of a run over its steps. */
export interface Curve {
  readonly title: string;
  /** One line under the title. */
  readonly subtitle?: string;
  /** What is drawn: `loss`. */
  readonly quantity: string;
  readonly train: readonly Point[];
  readonly evaluation: readonly Point[];
}

export interface Point {
  readonly step: number;
  readonly value: number;
}

/**
 * Draws a number as measured, smoothed, and on held-out rows over the steps, as PNG. Values that are not finite are left out.
 * The libraries take half a second to load, so they are loaded here and not when the program starts.
 */
export async function plotCurve(curve: Curve): Promise<Uint8Array> {
  const [vega, vegaLite, { Resvg }] = await Promise.all([import("vega"), import("vega-lite"), import("@resvg/resvg-js")]);
  const { spec } = vegaLite.compile(chartOf(curve));
  const view = new vega.View(vega.parse(spec), { renderer: "none", logger: vega.logger(vega.Error) });
  const svg = await view.toSVG();
  view.finalize();

  const font = (name: string) => createRequire(import.meta.url).resolve(`dejavu-fonts-ttf/ttf/${name}.ttf`);
  const image = new Resvg(svg, {
    fitTo: { mode: "zoom", value: 2 },
    background: "white",
    font: { loadSystemFonts: false, fontFiles: [font("DejaVuSans"), font("DejaVuSans-Bold")], defaultFontFamily: "DejaVu Sans" },
  });
  return image.render().asPng();
}

function chartOf({ title, subtitle, quantity, train, evaluation }: Curve): TopLevelSpec {
  const isDrawn = ({ value }: Point) => Number.isFinite(value);
  const measured = train.filter(isDrawn);
  const smoothValues = smooth(measured.map(({ value }) => value));
  const smoothed = measured.map(({ step }, i) => ({ step, value: smoothValues[i]! }));
  const curves = [
    {
      name: "each step",
      points: measured,
      colour: "#b8cbe0",
      mark: { type: "line", strokeWidth: 1, point: measured.length === 1 },
    },
    { name: "smoothed", points: smoothed, colour: "#1f5a99", mark: { type: "line", strokeWidth: 2.5 } },
    {
      name: "held-out rows",
      points: evaluation.filter(isDrawn),
      colour: "#d1641c",
      mark: { type: "line", strokeWidth: 2, point: { size: 50 } },
    },
  ] as const;
  const drawn = curves.filter(({ points }) => points.length > 0);

  const x = {
    field: "step",
    type: "quantitative",
    title: "optimizer step",
    axis: { tickMinStep: 1 },
    scale: { nice: false },
  } as const;
  const y = { field: "value", type: "quantitative", title: quantity, scale: { zero: false } } as const;
  const color = {
    field: "name",
    type: "nominal",
    title: null,
    scale: { domain: drawn.map(({ name }) => name), range: drawn.map(({ colour }) => colour) },
    legend: { orient: "top", symbolType: "stroke", symbolStrokeWidth: 3 },
  } as const;
  const encoding = { x, y, color };
  return {
    width: 640,
    height: 360,
    padding: 16,
    title: {
      text: title,
      ...(subtitle ? { subtitle } : {}),
      anchor: "start",
      fontSize: 15,
      subtitleColor: "#555",
      subtitlePadding: 6,
    },
    layer: drawn.map(({ name, points, mark }) => ({
      data: { values: points.map((point) => ({ ...point, name })) },
      mark,
      encoding,
    })),
    config: { font: "DejaVu Sans", axis: { labelFontSize: 11, titleFontSize: 12, gridColor: "#e6e6e6" }, view: { stroke: null } },
  };
}
