/** Points (x, y) in the order of x. */
export interface Curve {
  readonly name: string;
  readonly points: readonly (readonly [x: number, y: number])[];
}

const [width, height, margin] = [640, 360, 56];
const colours = ["#1a6b3c", "#b3541e"];

/** Two curves over the same x as an SVG picture: the first read on the left, the second on the right. */
export function drawCurves(xName: string, curves: readonly [Curve, Curve]): string {
  const right = Math.max(...curves.flatMap(({ points }) => points.map(([x]) => x)), 1e-9);
  const xAt = (x: number) => margin + (x / right) * (width - 2 * margin);
  const drawn = curves.map(({ name, points }, i) => {
    const ys = points.map(([, y]) => y);
    const [low, high] = [Math.min(...ys), Math.max(...ys)];
    const yAt = (y: number) => height - margin - ((y - low) / (high - low || 1)) * (height - 2 * margin);
    const path = points.map(([x, y]) => `${xAt(x).toFixed(1)},${yAt(y).toFixed(1)}`);
    const [side, anchor] = i === 0 ? [margin - 8, "end"] : [width - margin + 8, "start"];
    const tick = (y: number) => `<text x="${side}" y="${yAt(y).toFixed(1)}" text-anchor="${anchor}">${y.toFixed(2)}</text>`;
    return `<g fill="${colours[i]}"><text x="${margin}" y="${20 + 16 * i}">${name}</text>${tick(low)}${tick(high)}
<polyline points="${path.join(" ")}" fill="none" stroke="${colours[i]}" stroke-width="2"/>
${path.map((at) => `<circle cx="${at.replace(",", '" cy="')}" r="3"/>`).join("")}</g>`;
  });
  const axis = height - margin;
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" font-family="sans-serif" font-size="12">
<rect width="100%" height="100%" fill="white"/>
<path d="M${margin},${margin} V${axis} H${width - margin} V${margin}" fill="none" stroke="#888"/>
<text x="${margin}" y="${axis + 18}">0</text><text x="${width - margin}" y="${axis + 18}" text-anchor="end">${right.toFixed(2)}</text>
<text x="${width / 2}" y="${height - 12}" text-anchor="middle">${xName}</text>
${drawn.join("\n")}
</svg>
`;
}
