// Export of the conversation that is shown, as Markdown or JSON.

import { openDialog } from "./dialogs.js";
import { byId, h } from "./dom.js";
import { icon } from "./icons.js";

/** @param {any[]} path @param {string} title */
export function showExport(path, title) {
  const name = (title || "conversation").replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 60) || "conversation";
  const save = (/** @type {string} */ type, /** @type {string} */ extension, /** @type {string} */ text) => () => {
    const link = h("a", { download: `${name}.${extension}`, href: URL.createObjectURL(new Blob([text], { type })) });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
    byId("dialog").close();
  };
  return openDialog("Export conversation", [
    h("p", {}, "The branch that is shown, with handoffs and tool calls."),
    h(
      "div",
      { class: "choices" },
      h("button", { type: "button", onclick: save("text/markdown", "md", markdownOf(path, title)) }, icon("download"), "Markdown"),
      h("button", { type: "button", onclick: save("application/json", "json", JSON.stringify({ title, turns: path }, null, 2)) }, icon("download"), "JSON"),
    ),
  ]);
}

/** @param {any[]} path @param {string} title */
export function markdownOf(path, title) {
  const parts = [`# ${title || "Conversation"}`];
  const text = (/** @type {any} */ content) => (typeof content === "string" ? content : (content ?? []).map((/** @type {any} */ part) => part.text ?? `[${part.type}]`).join("\n"));
  for (const turn of path) {
    for (const message of turn.input) if (message.role === "user") parts.push(`## User\n\n${text(message.content)}`);
    for (const { type, agent, data } of turn.events) {
      if (type === "handoff") parts.push(`> Handoff: ${data.from} → ${data.to}${data.reason ? `: ${data.reason.replaceAll("\n", " ")}` : ""}`);
      else if (type === "tool.started") parts.push(`> ${agent} calls \`${data.name}\` ${data.arguments ?? ""}`);
    }
    for (const message of turn.answer) parts.push(`## ${message.agent ?? "Assistant"}\n\n${text(message.content)}`);
  }
  return `${parts.join("\n\n")}\n`;
}
