// Request options of a conversation: temperature and reasoning effort. They are stored in this browser.

import { field, openDialog } from "./dialogs.js";
import { h } from "./dom.js";
import { persistent } from "./storage.js";
import { hasAutomaticTitles, setAutomaticTitles } from "./titles.js";

/** @param {string | null} conversation */
const settingsName = (conversation) => `handoff.settings.${conversation ?? "new"}`;

/** @param {string | null} conversation @returns {{temperature?: number, reasoning_effort?: string}} */
export function requestOptions(conversation) {
  // A conversation starts with the settings that were chosen before its first message.
  const stored = persistent.get(settingsName(conversation)) ?? persistent.get(settingsName(null));
  if (conversation && stored && !persistent.get(settingsName(conversation))) {
    persistent.set(settingsName(conversation), stored);
    persistent.set(settingsName(null), null);
  }
  try {
    return JSON.parse(stored ?? "{}");
  } catch {
    return {};
  }
}

/** @param {string | null} conversation */
export async function showSettings(conversation) {
  const current = conversation ? read(settingsName(conversation)) : read(settingsName(null));
  const temperature = h("input", { type: "number", min: "0", max: "2", step: "0.1", placeholder: "Default" });
  const effort = h("select", {}, ...["", "minimal", "low", "medium", "high"].map((value) => h("option", { value }, value || "Default")));
  temperature.value = String(current.temperature ?? "");
  effort.value = current.reasoning_effort ?? "";
  const titles = h("input", { type: "checkbox" });
  titles.checked = hasAutomaticTitles();
  const submit = () => {
    setAutomaticTitles(titles.checked);
    const options = {
      ...(temperature.value === "" ? {} : { temperature: Number(temperature.value) }),
      ...(effort.value ? { reasoning_effort: effort.value } : {}),
    };
    persistent.set(settingsName(conversation), Object.keys(options).length ? JSON.stringify(options) : conversation ? "{}" : null);
    return true;
  };
  await openDialog(
    "Conversation settings",
    [
      field("Temperature", temperature, "0 to 2; the team's own value if empty"),
      field("Reasoning effort", effort, "for models that support it"),
      h("label", { class: "choice" }, titles, h("span", {}, "Write titles", h("span", { class: "hint" }, "For all conversations: the side model of the team writes one after the first answer."))),
    ],
    { action: "Save", submit },
  );
}

/** @param {string} name @returns {{temperature?: number, reasoning_effort?: string}} */
function read(name) {
  try {
    return JSON.parse(persistent.get(name) ?? "{}");
  } catch {
    return {};
  }
}
