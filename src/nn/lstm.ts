import type { Device } from "../core/device.js";
import { activation } from "../core/ops/activation.js";
import { add } from "../core/ops/add.js";
import { splitColumns } from "../core/ops/columns.js";
import { dropout } from "../core/ops/dropout.js";
import { linear } from "../core/ops/linear.js";
import { mul } from "../core/ops/mul.js";
import { reshape } from "../core/ops/reshape.js";
import { gatherRows, mergeRows } from "../core/ops/rows.js";
import type { Rng } from "../core/rng.js";
import { Tensor } from "../core/tensor.js";
import { drawn } from "./init.js";
import { Module, type Parameter } from "./module.js";

export interface LstmShape {
  readonly inFeatures: number;
  /** Of each direction. */
  readonly hidden: number;
  readonly layers: number;
}

/** The weights of one layer in one direction; gates lie in PyTorch's order: input, forget, cell, output. */
interface Direction {
  readonly weight_ih: Parameter;
  readonly weight_hh: Parameter;
  readonly bias_ih: Parameter;
  readonly bias_hh: Parameter;
}

/**
 * A bidirectional LSTM over one sequence that trains.   c = σ(f) c + σ(i) tanh(g),   h = σ(o) tanh(c)
 *
 * Source: Hochreiter & Schmidhuber 1997; PyTorch's nn.LSTM, whose order of gates, two biases, names and start (all from U(−1/√hidden, 1/√hidden))
 * are kept. Each layer sees both directions of the one below it. x (T, in) → (T, 2 · hidden). Every step is a few small products, so it is for
 * short sequences.
 */
export class BidirectionalLstm extends Module {
  readonly #layers: readonly (readonly [forward: Direction, backward: Direction])[];
  readonly #hidden: number;
  readonly #dropout: number;

  /** `dropout` is the chance of zeroing what a layer gives to the next, in training only. */
  constructor(device: Device, { inFeatures, hidden, layers }: LstmShape, dropout: number, rng: Rng) {
    super();
    const bound = 1 / Math.sqrt(hidden);
    const draw = () => rng.uniform(-bound, bound);
    const direction = (width: number): Direction => ({
      weight_ih: drawn(device, [4 * hidden, width], draw),
      weight_hh: drawn(device, [4 * hidden, hidden], draw),
      bias_ih: drawn(device, [4 * hidden], draw),
      bias_hh: drawn(device, [4 * hidden], draw),
    });
    const widths = Array.from({ length: layers }, (_, layer) => (layer === 0 ? inFeatures : 2 * hidden));
    this.#layers = widths.map((width) => [direction(width), direction(width)]);
    this.#hidden = hidden;
    this.#dropout = dropout;
  }

  /** PyTorch's names: weight_ih_l0, weight_ih_l0_reverse … */
  override *namedChildren(): Generator<[name: string, child: Parameter]> {
    for (const [layer, directions] of this.#layers.entries())
      for (const [i, direction] of directions.entries())
        for (const [name, parameter] of Object.entries(direction))
          yield [`${name}_l${layer}${i === 0 ? "" : "_reverse"}`, parameter];
  }

  forward(x: Tensor): Tensor {
    return this.#layers.reduce((input, directions, layer) => {
      const length = input.rows;
      const given = layer === 0 ? input : dropout(input, this.#dropout);
      const steps = directions.flatMap((direction, i) =>
        this.#run(direction, given, i === 1).map((h, t) => ({ from: h, rows: null, at: Int32Array.of(2 * t + i) })),
      );
      return reshape(mergeRows(2 * length, steps), [length, 2 * this.#hidden]); // both directions of a token lie side by side
    }, x);
  }

  /** The hidden state of every token, (1, hidden) each, in the order of the tokens. */
  #run({ weight_ih, weight_hh, bias_ih, bias_hh }: Direction, x: Tensor, isReverse: boolean): Tensor[] {
    const hidden = this.#hidden;
    const projected = linear(x, weight_ih.value, bias_ih.value);
    const order = [...Array(x.rows).keys()];
    const states: Tensor[] = [];
    let h = Tensor.zeros(x.device, [1, hidden]);
    let c = Tensor.zeros(x.device, [1, hidden]);
    for (const t of isReverse ? order.reverse() : order) {
      const gates = add(gatherRows(projected, Int32Array.of(t)), linear(h, weight_hh.value, bias_hh.value));
      const [i, f, g, o] = splitColumns(gates, [hidden, hidden, hidden, hidden]) as [Tensor, Tensor, Tensor, Tensor];
      const kept = mul(activation(f, "sigmoid"), c);
      c = add(kept, mul(activation(i, "sigmoid"), activation(g, "tanh")));
      h = mul(activation(o, "sigmoid"), activation(c, "tanh"));
      states[t] = h;
    }
    return states;
  }
}
