// Dialogs: API key, title, confirmation, agents, comparison of versions, and settings.

import { ApiError, request, requestJson } from "./api.js";
import { byId, h, iconButton } from "./dom.js";
import { icon } from "./icons.js";
import { apiKey, removeConversationData } from "./storage.js";

/**
 * Show a dialog and wait for its result.
 * @param {string} title
 * @param {any[]} body
 * @param {{action?: string, danger?: boolean, submit?: () => any, wide?: boolean, extra?: any[]}} [options] errors of `submit` are shown in the dialog
 * @returns {Promise<any>} the result of `submit`, or undefined if the dialog was closed
 */
export function openDialog(title, body, { action, danger = false, submit, wide = false, extra = [] } = {}) {
  const dialog = byId("dialog");
  const error = h("div", { role: "alert" });
  return new Promise((resolve) => {
    /** @type {any} */
    let result;
    const form = h(
      "form",
      {
        onsubmit: async (/** @type {Event} */ event) => {
          event.preventDefault();
          try {
            result = await submit?.();
            // Not when "close" is fired: what the user does before that must find the result.
            resolve(result);
            dialog.close();
          } catch (problem) {
            error.className = "problem";
            error.replaceChildren(icon("warning"), h("p", {}, problem instanceof ApiError ? problem.message : "An unexpected error occurred."));
            error.scrollIntoView({ block: "nearest" });
          }
        },
      },
      h("header", {}, h("h2", { id: "dialog-title" }, title), iconButton("close", "Close dialog", () => dialog.close())),
      h("div", { class: "dialog-body" }, ...body, error),
      h(
        "footer",
        { class: "buttons" },
        ...extra,
        action && h("button", { type: "button", onclick: () => dialog.close() }, "Cancel"),
        action && h("button", { type: "submit", class: danger ? "danger" : "primary" }, action),
      ),
    );
    dialog.classList.toggle("wide", wide);
    dialog.replaceChildren(form);
    // The browser fires "close" in a later task. An event of the previous dialog must not resolve this one.
    const onclose = () => {
      if (dialog.open && dialog.contains(form)) return;
      dialog.removeEventListener("close", onclose);
      resolve(result);
    };
    dialog.addEventListener("close", onclose);
    if (!dialog.open) dialog.showModal();
    form.querySelector("input, textarea, select")?.focus();
  });
}

/** @param {string} label @param {HTMLElement} input @param {string} [hint] */
export const field = (label, input, hint) =>
  h("label", { class: "field" }, h("span", { class: "label" }, label), hint && h("span", { class: "hint" }, hint), input);

/** Ask for the API key and check it. @param {string} [reason] @returns {Promise<boolean>} whether a key was set */
export async function askForKey(reason) {
  const input = h("input", { type: "password", autocomplete: "off", spellcheck: "false" });
  const persists = h("input", { type: "checkbox" });
  const previous = apiKey.get();
  const wasPersistent = apiKey.isPersistent();
  input.value = previous;
  persists.checked = wasPersistent;
  const body = [
    reason && h("p", { class: "lead" }, reason),
    field("API key", input),
    h("label", { class: "choice" }, persists, h("span", {}, "Remember in this browser after the tab is closed")),
    h("p", { class: "hint" }, "The key is sent to this server only, in the Authorization header."),
  ];
  const submit = async () => {
    apiKey.set(input.value.trim(), persists.checked);
    try {
      await request("/v1/models");
    } catch (error) {
      apiKey.set(previous, wasPersistent);
      throw error;
    }
    if (previous && previous !== input.value.trim()) removeConversationData();
    return true;
  };
  const remove = () => {
    apiKey.set("", false);
    removeConversationData();
    // What the page shows belongs to the removed key.
    history.replaceState(null, "", location.pathname);
    location.reload();
  };
  const extra = previous ? [h("button", { type: "button", onclick: remove }, "Remove key")] : [];
  return Boolean(await openDialog("API key", body, { action: "Save", submit, extra }));
}

/**
 * @param {string} title
 * @param {() => Promise<string>} suggest returns a title from a model
 * @returns {Promise<string | undefined>}
 */
export function askForTitle(title, suggest) {
  const input = h("input", { maxlength: "200", autocomplete: "off" });
  input.value = title;
  const submit = () => {
    if (!input.value.trim()) throw new ApiError("Enter a title.");
    return input.value.trim();
  };
  const error = h("p", { class: "hint", role: "alert" });
  const button = h(
    "button",
    {
      type: "button",
      onclick: async () => {
        button.disabled = true;
        error.textContent = "";
        try {
          input.value = (await suggest()) || input.value;
        } catch (problem) {
          error.textContent = problem instanceof ApiError ? problem.message : "The title could not be generated.";
        }
        button.disabled = false;
      },
    },
    "Suggest a title",
  );
  return openDialog("Rename conversation", [field("Title", input), h("div", {}, button, error)], { action: "Rename", submit });
}

/** @param {string} title @param {string} text @returns {Promise<boolean | undefined>} */
export function confirmDeletion(title, text) {
  return openDialog(title, [h("p", {}, text)], { action: "Delete", danger: true, submit: () => true });
}

/**
 * List the caller's agents.
 * @param {any} listed the body of `GET /v1/agents`
 * @param {string[]} taken model ids, which a new agent cannot have as its name
 * @returns {Promise<{name?: string, isDeleted?: boolean} | undefined>} what changed
 */
export async function manageAgents({ options, data }, taken) {
  const own = data.filter((/** @type {any} */ one) => one.is_editable);
  if (!own.length) return editAgent(options, [], null, taken);
  /** @type {any} */
  let chosen;
  const close = () => byId("dialog").close();
  const choose = (/** @type {any} */ value) => () => {
    chosen = value;
    close();
  };
  const rows = own.map((/** @type {any} */ agent) =>
    h(
      "li",
      {},
      h("div", {}, h("b", {}, agent.name), h("span", { class: "hint" }, agent.description || agent.model)),
      iconButton("edit", `Edit ${agent.name}`, choose({ edit: agent })),
      iconButton("trash", `Delete ${agent.name}`, choose({ remove: agent })),
    ),
  );
  const create = h("button", { type: "button", class: "primary", onclick: choose({ edit: null }) }, icon("plus"), "New agent");
  await openDialog("Agents", [h("ul", { class: "agent-list" }, ...rows)], { extra: [create] });
  if (!chosen) return undefined;
  if (chosen.remove) {
    const { name } = chosen.remove;
    if (!(await confirmDeletion(`Delete agent ${name}?`, "The agent and all its versions are deleted. This cannot be undone."))) return undefined;
    await request(`/v1/agents/${encodeURIComponent(name)}`, { method: "DELETE" });
    return { name, isDeleted: true };
  }
  const known = own.map((/** @type {any} */ one) => one.name).filter((/** @type {string} */ name) => name !== chosen.edit?.name);
  return editAgent(options, known, chosen.edit, taken);
}

/**
 * The form of an agent. Its limits are those of the API (`PUT`-like: every save is a new version).
 * @param {any} options what the server offers @param {string[]} known possible handoff targets @param {any} agent null for a new one
 * @param {string[]} taken names that a new agent cannot have
 */
function editAgent(options, known, agent, taken) {
  const name = h("input", { required: true, maxlength: "64", pattern: "[A-Za-z0-9][A-Za-z0-9_.\\-]{0,63}", autocomplete: "off", title: "Letters, digits, '_', '.' and '-', beginning with a letter or digit", disabled: Boolean(agent) });
  const description = h("input", { maxlength: "500", autocomplete: "off" });
  const instructions = h("textarea", { required: true, rows: "6", maxlength: "32768" });
  const models = agent && !options.models.includes(agent.model) ? [agent.model, ...options.models] : options.models;
  const model = h("select", {}, ...models.map((/** @type {string} */ one) => h("option", {}, one)));
  const parallel = h("input", { type: "number", min: "1", max: "64", required: true });
  const seconds = h("input", { type: "number", min: "1", max: "600", step: "any", required: true });
  name.value = agent?.name ?? "";
  name.addEventListener("input", () => name.setCustomValidity(taken.includes(name.value.trim()) ? "This name is taken." : ""));
  description.value = agent?.description ?? "";
  instructions.value = agent?.instructions ?? "";
  if (agent) model.value = agent.model;
  parallel.value = String(agent?.max_parallel_tools ?? 8);
  seconds.value = String(agent?.tool_call_timeout ?? 30);
  const tools = options.tools.map((/** @type {any} */ tool) => choice(tool.name, tool.description, agent?.tools.includes(tool.name)));
  /** @type {Map<string, any>} */
  const present = new Map((agent?.handoffs ?? []).map((/** @type {any} */ one) => [one.to, one]));
  const handoffs = [...new Set([...known, ...present.keys()])].map((target) => choice(target, present.get(target)?.when ?? "", present.has(target)));
  const chosen = (/** @type {any[]} */ all) => all.filter(({ box }) => box.checked).map(({ value }) => value);
  const body = [
    field("Name", name, agent ? "" : "Letters, digits, _ . and -"),
    field("Description", description),
    field("Instructions", instructions, "System prompt of the agent"),
    field("Model", model),
    tools.length > 0 && h("fieldset", {}, h("legend", {}, "Tools"), ...tools.map((/** @type {any} */ one) => one.label)),
    handoffs.length > 0 && h("fieldset", {}, h("legend", {}, "Handoff targets"), ...handoffs.map((one) => one.label)),
    h("div", { class: "pair" }, field("Maximum parallel tool calls", parallel), field("Timeout (seconds)", seconds, "per tool call")),
  ];
  const submit = () =>
    requestJson(agent ? `/v1/agents/${encodeURIComponent(agent.name)}` : "/v1/agents", {
      method: "POST",
      body: {
        name: name.value.trim(),
        description: description.value.trim(),
        instructions: instructions.value,
        model: model.value,
        tools: chosen(tools),
        // What the dialog does not show is not changed.
        handoffs: chosen(handoffs).map((to) => present.get(to) ?? { to }),
        ...(agent?.delegates?.length ? { delegates: agent.delegates } : {}),
        ...(agent?.display_name ? { display_name: agent.display_name } : {}),
        max_parallel_tools: Number(parallel.value),
        tool_call_timeout: Number(seconds.value),
        ...(agent?.limits && Object.keys(agent.limits).length ? { limits: agent.limits } : {}),
      },
    });
  return openDialog(agent ? `Edit agent ${agent.name}` : "New agent", body, { action: agent ? "Save" : "Create", submit });
}

/** @param {string} value @param {string} text @param {boolean} [isChecked] */
function choice(value, text, isChecked = false) {
  const box = h("input", { type: "checkbox" });
  box.checked = isChecked;
  // Tool descriptions are written for models; the first sentence is enough here.
  const [summary] = text.split(/(?<=[.!?])\s/);
  const label = h("label", { class: "choice" }, box, h("span", {}, value, summary && h("span", { class: "hint" }, summary)));
  return { value, box, label };
}
