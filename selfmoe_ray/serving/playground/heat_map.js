import { percent } from "./routing.js";

const LABELLED_LAYERS = 8;

/** A table of experts by layers whose cells are as dark as the expert's weight. */
export class HeatMap {
  #cells = [];

  constructor(table, experts, numLayers) {
    const every = Math.ceil(numLayers / LABELLED_LAYERS);
    const head = table.createTHead().insertRow();
    head.append(headerCell("layer", "col"));
    for (let layer = 0; layer < numLayers; layer++) {
      const cell = headerCell(layer % every === 0 ? String(layer) : "", "col");
      cell.setAttribute("aria-label", `layer ${layer}`);
      head.append(cell);
    }
    const body = table.createTBody();
    for (const expert of experts) {
      const row = body.insertRow();
      row.append(headerCell(expert, "row"));
      this.#cells.push(Array.from({ length: numLayers }, () => row.insertCell()));
    }
    this.experts = experts;
  }

  /** shares: [layers][experts]. */
  show(shares) {
    shares.forEach((ofLayer, layer) => {
      ofLayer.forEach((share, expert) => {
        const cell = this.#cells[expert][layer];
        cell.style.setProperty("--share", Math.min(share, 1));
        cell.textContent = percent(share);
        cell.title = `${this.experts[expert]}, layer ${layer}: ${percent(share)}`;
      });
    });
  }
}

function headerCell(text, scope) {
  const cell = document.createElement("th");
  cell.scope = scope;
  cell.textContent = text;
  return cell;
}
