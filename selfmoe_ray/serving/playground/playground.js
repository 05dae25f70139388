import { Answer } from "./answer.js";
import { Api, Problem } from "./api.js";

const byId = (id) => document.getElementById(id);
const api = new Api();
/** What the server offers: {model, title, routed}, the mixture first. */
let systems = [];
/** Stops the answers on their way; null when there are none. */
let running = null;

async function loadSystems() {
  showProblem("");
  try {
    const [mixture, served] = await Promise.all([api.get("v1/mixse"), api.get("v1/models")]);
    const names = new Set(served.data.map(({ id }) => id));
    systems = [
      { model: mixture.model, title: "MiXSE", routed: true },
      { model: mixture.models.base, title: "base", routed: false },
      ...Object.entries(mixture.models.experts).map(([title, model]) => ({ model, title, routed: false })),
    ].filter(({ model }) => names.has(model));
    byId("about").textContent =
      `${mixture.model}: ${mixture.experts.length} experts in ${mixture.num_layers} layers, ` +
      `${mixture.num_experts_per_tok} of them a token`;
    showSystems();
  } catch (error) {
    showProblem(inWords(error));
  }
}

function showSystems() {
  const fieldset = byId("systems");
  const choices = systems.map(({ title, routed }, index) => {
    const label = document.createElement("label");
    const box = document.createElement("input");
    Object.assign(box, { type: "checkbox", name: "system", value: index, checked: routed });
    label.append(box, ` ${title}`);
    return label;
  });
  fieldset.replaceChildren(fieldset.querySelector("legend"), ...choices);
}

async function send() {
  const chosen = [...document.querySelectorAll("[name=system]:checked")].map(({ value }) => systems[value]);
  if (chosen.length === 0) {
    showProblem(systems.length ? "Choose at least one system under “Answers by”." : "The server's models are not known yet.");
    if (!systems.length) await loadSystems();
    return;
  }
  stop();
  const mine = (running = new AbortController());
  showProblem("");
  byId("stop").disabled = false;
  byId("state").textContent = "Answering …";
  const answers = chosen.map(({ title }) => new Answer(title));
  byId("answers").replaceChildren(...answers.map(({ element }) => element));
  const completed = await Promise.all(chosen.map((system, index) => ask(system, answers[index], mine.signal)));
  if (running !== mine) return;
  running = null;
  byId("stop").disabled = true;
  byId("state").textContent = summary(completed, mine.signal.aborted);
}

function stop() {
  running?.abort();
}

function summary(completed, stopped) {
  if (stopped) return "Stopped.";
  const count = completed.filter(Boolean).length;
  return count === completed.length ? "Done." : `Done: ${count} of ${completed.length} answers are complete.`;
}

/** Streams one system's answer into `answer`; true when it is complete. */
async function ask({ model, routed }, answer, signal) {
  answer.setState("waiting …");
  try {
    const { path, body } = request(model, routed);
    const onWait = (seconds) => answer.setState(`The server is busy; trying again in ${Math.ceil(seconds)} s …`);
    let ending = "";
    for await (const event of api.stream(path, body, { signal, onWait })) {
      const [choice] = event.choices ?? [];
      const text = choice?.delta?.content ?? choice?.text;
      if (text) {
        answer.setState("answering …");
        answer.append(text);
      }
      if (choice?.finish_reason) ending = choice.finish_reason === "length" ? "ended at the max tokens" : "complete";
      if (event.mixse_routing) answer.showRouting(event.mixse_routing);
    }
    answer.setState(ending);
    return true;
  } catch (error) {
    answer.setState(signal.aborted ? "stopped" : "");
    if (!signal.aborted) answer.showProblem(inWords(error));
    return false;
  }
}

function request(model, routed) {
  const prompt = byId("prompt").value;
  const isChat = new FormData(byId("ask")).get("form") === "chat";
  const body = {
    model,
    max_tokens: byId("max-tokens").valueAsNumber,
    temperature: byId("temperature").valueAsNumber,
    stream: true,
    ...(isChat ? { messages: [{ role: "user", content: prompt }] } : { prompt }),
    ...(routed ? { vllm_xargs: { mixse_routing: "layers" } } : {}),
  };
  return { path: isChat ? "v1/chat/completions" : "v1/completions", body };
}

function useKey() {
  const key = byId("key").value.trim();
  if (key === api.key) return;
  api.key = key;
  loadSystems();
}

function inWords(error) {
  if (error instanceof Problem) return error.message;
  console.error(error);
  return "The server's reply could not be read: is this page of the same version as the server?";
}

function showProblem(text) {
  byId("problem").textContent = text;
  byId("problem").hidden = !text;
}

byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
byId("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("ask").requestSubmit();
});
byId("stop").addEventListener("click", () => {
  stop();
  byId("prompt").focus();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") stop();
});
byId("key").addEventListener("change", useKey);
byId("key").addEventListener("keydown", (event) => {
  if (event.key !== "Enter") return;
  // It would send the prompt.
  event.preventDefault();
  useKey();
});
loadSystems();
