import { HeatMap } from "./heat_map.js";
import { meanGate, meanOfLayers, percent, topShares } from "./routing.js";
import { markExpert, showTokens } from "./tokens.js";

/** One system's answer: its text while it streams, then its tokens and their routing. */
export class Answer {
  constructor(title) {
    const template = document.getElementById("answer-template");
    this.element = template.content.firstElementChild.cloneNode(true);
    this.#part("h2").textContent = title;
    this.element.setAttribute("aria-label", `Answer by ${title}`);
  }

  setState(text) {
    this.#part(".state").textContent = text;
  }

  showProblem(text) {
    this.#part(".problem").textContent = text;
    this.#part(".problem").hidden = false;
  }

  append(text) {
    this.#part(".text").append(text);
  }

  /** routing: the API's `mixse_routing` object with layers. */
  showRouting({ experts, num_layers: numLayers, choices: [choice] }) {
    const { prompt_tokens: start, tokens, gates, layers } = choice;
    const heatMap = new HeatMap(this.#part(".layers"), experts, numLayers);
    const inspect = (index) => {
      const [from, to] = index === null ? [start, tokens.length] : [index, index + 1];
      const of = index === null ? "mean over the answer" : `token ${JSON.stringify(tokens[index])}`;
      this.#part(".gate-title").textContent = `Gate: ${of}`;
      this.#showGate(meanGate(gates.slice(from, to), experts.length), experts);
      this.#part(".layers-title").textContent = `Gate by layer: ${of}`;
      heatMap.show(meanOfLayers(layers, from, to, experts.length));
    };
    const show = (list, from, to, label) =>
      showTokens(list, {
        tokens: tokens.slice(from, to),
        gates: gates.slice(from, to),
        experts,
        label,
        onInspect: (index) => inspect(index === null ? null : from + index),
      });
    show(this.#part(".text"), start, tokens.length, "Tokens of the answer");
    show(this.#part(".prompt"), 0, start, "Tokens of the prompt");
    this.#showLegend(topShares(gates.slice(start), experts.length), experts);
    inspect(null);
    this.#part(".routing").hidden = false;
  }

  #part(selector) {
    return this.element.querySelector(selector);
  }

  #showLegend(shares, experts) {
    const items = experts.map((name, expert) => {
      const item = document.createElement("li");
      const mark = document.createElement("span");
      mark.textContent = name;
      markExpert(mark, expert, 1);
      item.append(mark, ` ${percent(shares[expert])}`);
      return item;
    });
    this.#part(".legend").replaceChildren(...items);
  }

  #showGate(gate, experts) {
    const items = experts.map((name, expert) => {
      const [item, label, bar, value] = ["li", "span", "span", "span"].map((tag) => document.createElement(tag));
      label.textContent = name;
      bar.className = `bar colour-${expert % 8}`;
      bar.style.setProperty("--share", Math.min(gate[expert], 1));
      value.className = "number";
      value.textContent = gate[expert].toFixed(2);
      item.append(label, bar, value);
      return item;
    });
    this.#part(".gate").replaceChildren(...items);
  }
}
