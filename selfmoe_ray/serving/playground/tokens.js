import { percent, topExpert } from "./routing.js";

/**
 * Fills `list` with one element a token, coloured by its top expert, as one stop of the tab order:
 * arrow keys, Home and End move between tokens. `onInspect(index)` is told the token under the
 * pointer or the focus, and null when there is neither.
 */
export function showTokens(list, { tokens, gates, experts, label, onInspect }) {
  list.replaceChildren(...tokens.map((text, index) => tokenElement(text, gates[index], experts)));
  list.classList.add("tokens");
  list.setAttribute("role", "listbox");
  list.setAttribute("aria-orientation", "horizontal");
  list.setAttribute("aria-label", label);
  const options = [...list.children];
  if (options.length === 0) return;
  options[0].tabIndex = 0;

  const focused = () => {
    const index = options.indexOf(document.activeElement);
    return index < 0 ? null : index;
  };
  list.addEventListener("pointerover", (event) => {
    const index = options.indexOf(event.target);
    if (index >= 0) onInspect(index);
  });
  list.addEventListener("pointerleave", () => onInspect(focused()));
  list.addEventListener("focusin", (event) => {
    for (const option of options) {
      option.tabIndex = option === event.target ? 0 : -1;
      option.setAttribute("aria-selected", String(option === event.target));
    }
    onInspect(options.indexOf(event.target));
  });
  list.addEventListener("focusout", (event) => {
    if (!list.contains(event.relatedTarget)) onInspect(null);
  });
  list.addEventListener("keydown", (event) => {
    const target = destination(event.key, focused() ?? 0, options.length);
    if (target === null) return;
    event.preventDefault();
    options[target].focus();
  });
}

/** Marks `element` with the colour and line of an expert; the line tells apart who see few colours. */
export function markExpert(element, expert, weight) {
  element.classList.add("expert", `colour-${expert % 8}`, `line-${(expert + Math.floor(expert / 8)) % 4}`);
  element.style.setProperty("--gate", Math.min(weight, 1));
}

/** A gate in words, heaviest expert first: "math 81%, coding 12%". */
export function gateInWords(gate, experts) {
  if (!gate) return "not routed: the model never read it";
  const used = gate.map((weight, expert) => ({ weight, name: experts[expert] })).filter(({ weight }) => weight > 0);
  used.sort((a, b) => b.weight - a.weight);
  return used.map(({ weight, name }) => `${name} ${percent(weight)}`).join(", ") || "no expert";
}

function tokenElement(text, gate, experts) {
  const element = document.createElement("span");
  element.setAttribute("role", "option");
  element.setAttribute("aria-selected", "false");
  element.setAttribute("aria-label", `${text.trim() ? text : JSON.stringify(text)}: ${gateInWords(gate, experts)}`);
  element.tabIndex = -1;
  element.textContent = text;
  element.classList.toggle("break", text.includes("\n") && !text.trim());
  const expert = topExpert(gate);
  if (expert >= 0) markExpert(element, expert, gate[expert]);
  return element;
}

function destination(key, from, count) {
  switch (key) {
    case "ArrowRight":
    case "ArrowDown":
      return Math.min(from + 1, count - 1);
    case "ArrowLeft":
    case "ArrowUp":
      return Math.max(from - 1, 0);
    case "Home":
      return 0;
    case "End":
      return count - 1;
    default:
      return null;
  }
}
