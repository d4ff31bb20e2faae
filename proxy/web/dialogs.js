// Questions to the person: the key, a name, a confirmation, a new agent.

import { Trouble, call } from "./api.js";
import { byId, h } from "./dom.js";
import { key } from "./memory.js";

/**
 * Show a dialog and wait for what becomes of it.
 * @param {string} title
 * @param {Node[]} body
 * @param {{action: string, danger?: boolean, submit: () => any}} options `submit` may raise what is to be told
 * @returns {Promise<any>} what `submit` gave, or undefined
 */
function open(title, body, { action, danger = false, submit }) {
  const dialog = byId("dialog");
  const wrong = h("div", { role: "alert" });
  return new Promise((resolve) => {
    /** @type {any} */
    let result;
    const form = h(
      "form",
      {
        onsubmit: async (/** @type {Event} */ event) => {
          event.preventDefault();
          try {
            result = await submit();
            dialog.close();
          } catch (error) {
            wrong.className = "problem";
            wrong.textContent = error instanceof Trouble ? error.message : "That did not work.";
          }
        },
      },
      h("h2", { id: "dialog-title" }, title),
      ...body,
      wrong,
      h(
        "div",
        { class: "buttons" },
        h("button", { type: "button", onclick: () => dialog.close() }, "Cancel"),
        h("button", { type: "submit", class: danger ? "danger" : "main" }, action),
      ),
    );
    dialog.replaceChildren(form);
    dialog.addEventListener("close", () => resolve(result), { once: true });
    if (!dialog.open) dialog.showModal();
  });
}

/** @param {string} label @param {HTMLElement} input @param {string} [hint] */
const field = (label, input, hint) =>
  h("label", { class: "field" }, label, hint && h("span", { class: "hint" }, ` ${hint}`), input);

/** Ask for the key. @returns {Promise<boolean>} whether there is a new one */
export async function askForKey() {
  const input = h("input", { type: "password", autocomplete: "off", spellcheck: "false" });
  const stays = h("input", { type: "checkbox" });
  input.value = key.get();
  stays.checked = key.isKept();
  const body = [
    field("API key", input),
    h("fieldset", {}, h("label", {}, stays, "Remember it in this browser, also when this tab is closed")),
    h("p", { class: "hint" }, "It is sent to this server only, and never becomes part of an address."),
  ];
  const submit = () => {
    key.set(input.value.trim(), stays.checked);
    return true;
  };
  return Boolean(await open("API key", body, { action: "Use this key", submit }));
}

/** @param {string} title @returns {Promise<string | undefined>} */
export function askForTitle(title) {
  const input = h("input", { maxlength: "200", autocomplete: "off" });
  input.value = title;
  const submit = () => {
    if (!input.value.trim()) throw new Trouble("A conversation needs a name.");
    return input.value.trim();
  };
  return open("Rename the conversation", [field("Name", input)], { action: "Rename", submit });
}

/** @param {string} title @returns {Promise<boolean | undefined>} */
export function confirmDeletion(title) {
  const words = h("p", {}, "“", h("b", {}, title), "” and everything in it will be deleted. This cannot be undone.");
  return open("Delete the conversation?", [words], { action: "Delete", danger: true, submit: () => true });
}

/** The form that makes an agent. @param {any} options what may be chosen @param {string[]} known agents to hand over to */
export function makeAgent(options, known) {
  const name = h("input", { required: true, maxlength: "64", pattern: "[A-Za-z0-9][A-Za-z0-9_.\\-]{0,63}", autocomplete: "off" });
  const description = h("input", { maxlength: "500", autocomplete: "off" });
  const instructions = h("textarea", { required: true, rows: "6" });
  const model = h("select", {}, ...options.models.map((/** @type {string} */ one) => h("option", {}, one)));
  const parallel = h("input", { type: "number", min: "1", max: "64", value: "8" });
  const seconds = h("input", { type: "number", min: "1", max: "3600", value: "30" });
  const tools = options.tools.map((/** @type {any} */ tool) => choice(tool.name, tool.description));
  const handoffs = known.map((agent) => choice(agent, ""));
  const chosen = (/** @type {any[]} */ all) => all.filter(({ box }) => box.checked).map(({ value }) => value);
  const body = [
    field("Name", name, "letters, digits, _ . and -"),
    field("What it is for", description),
    field("Instructions", instructions, "what the agent is told before every conversation"),
    field("Model", model),
    options.tools.length && h("fieldset", {}, h("legend", {}, "Tools"), ...tools.map((/** @type {any} */ one) => one.label)),
    known.length && h("fieldset", {}, h("legend", {}, "May hand over to"), ...handoffs.map((one) => one.label)),
    h("div", { class: "pair" }, field("Tools at once", parallel), field("Seconds for a tool", seconds)),
  ].filter(Boolean);
  const submit = () =>
    call("/v1/agents", {
      method: "POST",
      body: {
        name: name.value.trim(),
        description: description.value.trim(),
        instructions: instructions.value,
        model: model.value,
        tools: chosen(tools),
        handoffs: chosen(handoffs).map((to) => ({ to, when: "" })),
        max_parallel_tools: Number(parallel.value),
        tool_call_timeout: Number(seconds.value),
      },
    });
  return open("New agent", /** @type {Node[]} */ (body), { action: "Create", submit });
}

/** @param {string} value @param {string} words */
function choice(value, words) {
  const box = h("input", { type: "checkbox" });
  // Descriptions are written for models, and go on for long; their first sentence says what a tool is for.
  [words] = words.split(/(?<=[.!?])\s/);
  const label = h("label", {}, box, h("span", {}, value, words && h("span", { class: "hint" }, ` ${words}`)));
  return { value, box, label };
}
