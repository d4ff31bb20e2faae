// The start panel: the team, three messages to try, and the set-up: model, connection and API key.

import { colourClass } from "./agents.js";
import { ApiError, requestJson } from "./api.js";
import { field, openDialog } from "./dialogs.js";
import { byId, copyButton, fill, formatDuration, h } from "./dom.js";
import { icon } from "./icons.js";
import { markOverflow } from "./markdown.js";
import { apiKey } from "./storage.js";

const MAX_EXAMPLES = 3;

/** Base URL and an example of a model by provider. */
const PROVIDERS = {
  OpenAI: { url: "https://api.openai.com/v1", model: "gpt-5-mini", needsKey: true },
  OpenRouter: { url: "https://openrouter.ai/api/v1", model: "openai/gpt-5-mini", needsKey: true },
  Ollama: { url: "http://127.0.0.1:11434/v1", model: "qwen3:8b", needsKey: false },
  "LM Studio": { url: "http://127.0.0.1:1234/v1", model: "your-model", needsKey: false },
  "vLLM or another server": { url: "http://127.0.0.1:8001/v1", model: "your-model", needsKey: false },
};

/**
 * @param {any} team the chosen model of `/v1/models`
 * @param {{examples: string[], submit: (text: string) => unknown, changeKey: () => unknown}} options
 */
export function showWelcome(team, { examples, submit, changeKey }) {
  const facts = team?.handoff ?? {};
  fill(
    byId("welcome"),
    h("h1", {}, team ? team.name || team.id : "handoff-proxy"),
    h("p", { class: "lead" }, facts.description || "Send a message to start a conversation."),
    h("div", { class: "agents" }, ...(facts.agents ?? []).map((/** @type {string} */ name) => h("span", { class: `agent-name ${colourClass(name)}` }, name))),
    examples.length > 0 &&
      h(
        "section",
        { class: "examples", "aria-label": "Messages to try" },
        ...examples.slice(0, MAX_EXAMPLES).map((text) => h("button", { type: "button", onclick: () => submit(text) }, h("span", {}, text), icon("arrowUp"))),
      ),
    team && setup(team, Boolean(facts.demo), changeKey),
  );
}

/** @param {any} team @param {boolean} isDemo @param {() => unknown} changeKey */
function setup(team, isDemo, changeKey) {
  const hasKey = Boolean(apiKey.get());
  return h(
    "section",
    { class: "setup", "aria-label": "Set-up" },
    h(
      "ul",
      {},
      isDemo
        ? row("warning", "Demonstration", "Scripts answer in place of a language model.", h("button", { type: "button", onclick: () => showModelSetup(team) }, "Use a model"))
        : connectionRow(team),
      row(hasKey ? "check" : "key", hasKey ? "API key set" : "No API key required", hasKey ? "This page sends it to this server only." : "Everyone who reaches this server can use it.", h("button", { type: "button", class: "quiet", onclick: changeKey }, hasKey ? "Change" : "Set a key")),
    ),
  );
}

/** @param {any} name of the icon @param {string} title @param {any} detail @param {HTMLElement} action */
function row(name, title, detail, action) {
  return h("li", { class: name === "check" ? "good" : name === "warning" ? "warn" : "" }, icon(name), h("div", {}, h("b", {}, title), h("span", { class: "hint", role: "status" }, detail)), action);
}

/** @param {any} team @param {any} [name] of the icon @param {string} [title] */
function connectionRow(team, name = "check", title = "Language model configured") {
  const item = row(name, title, "Check whether the model answers. This sends one short message.", h("button", { type: "button", onclick: () => check(team, item) }, "Check connection"));
  return item;
}

/** Check the models of a team and show the result in a row. @param {any} team @param {HTMLElement} item */
async function check(team, item) {
  const button = /** @type {HTMLButtonElement} */ (item.querySelector("button"));
  const detail = /** @type {HTMLElement} */ (item.querySelector(".hint"));
  const show = (/** @type {any} */ name, /** @type {string} */ state, /** @type {string[]} */ lines) => {
    item.className = state;
    item.querySelector(".icon")?.replaceWith(icon(name));
    detail.replaceChildren(...lines.map((line) => h("span", { class: "line" }, line)));
  };
  button.disabled = true;
  show("clock", "", ["Waiting for the model…"]);
  try {
    const { demo, status, data } = await requestJson("/v1/connection_checks", { method: "POST", body: { model: team.id } });
    if (demo) show("warning", "warn", ["The demonstration answers. No language model is configured."]);
    else show(status === "ok" ? "check" : "warning", status === "ok" ? "good" : "bad", data.map(resultLine));
  } catch (error) {
    show("warning", "bad", [error instanceof ApiError ? error.message : "The check failed."]);
  }
  button.disabled = false;
  button.textContent = "Check again";
}

/** @param {any} result of one model */
function resultLine({ model, status, seconds, answered_by: fallback, error }) {
  if (status !== "ok") return `${model}: ${error.message}`;
  return fallback ? `${model} failed; its fallback ${fallback} answered in ${formatDuration(seconds)}.` : `${model} answered in ${formatDuration(seconds)}.`;
}

/** Show the settings for a model. The page cannot change settings of the server. @param {any} team */
export function showModelSetup(team) {
  const provider = h("select", {}, ...Object.keys(PROVIDERS).map((name) => h("option", {}, name)));
  const url = h("input", { type: "url", autocomplete: "off", spellcheck: "false" });
  const model = h("input", { autocomplete: "off", spellcheck: "false" });
  const code = h("code");
  const showSettings = () => {
    const { needsKey } = PROVIDERS[/** @type {keyof typeof PROVIDERS} */ (provider.value)];
    code.textContent = [needsKey && "OPENAI_API_KEY=sk-your-key", `OPENAI_BASE_URL=${quoted(url.value)}`, `OPENAI_MODEL=${quoted(model.value)}`].filter(Boolean).join("\n");
  };
  const choose = () => {
    const chosen = PROVIDERS[/** @type {keyof typeof PROVIDERS} */ (provider.value)];
    url.value = chosen.url;
    model.value = chosen.model;
    showSettings();
  };
  provider.addEventListener("change", choose);
  for (const input of [url, model]) input.addEventListener("input", showSettings);
  choose();
  const item = connectionRow(team, "clock", "Connection");
  return openDialog(
    "Use a language model",
    [
      field("Provider", provider),
      h("div", { class: "pair" }, field("Base URL", url), field("Model", model)),
      h("ol", { class: "steps" }, h("li", {}, "Put these lines into the file ", h("code", {}, ".env"), " in the directory where the server starts, with your key."), h("li", {}, "Restart the server."), h("li", {}, "Reload this page and check the connection.")),
      h("div", { class: "code" }, h("div", { class: "bar" }, h("span", {}, ".env"), copyButton("Copy settings", () => code.textContent ?? "")), markOverflow(h("pre", { tabindex: "0" }, code))),
      h("ul", { class: "setup" }, item),
      h("p", { class: "hint" }, "The page does not change settings of the server, and it never needs the key of your provider."),
    ],
    { wide: true },
  );
}

/** Quote a value of `.env` that has other characters than an address or a name. @param {string} value */
function quoted(value) {
  return /^[\w./:@+-]*$/.test(value) ? value : `'${value.replaceAll("'", "")}'`;
}
