// Export of the conversation that is shown, as Markdown or JSON.

import { openDialog } from "./dialogs.js";
import { byId, h, withoutDemoNotice } from "./dom.js";
import { icon } from "./icons.js";

/** @param {any[]} path @param {string} title */
export function showExport(path, title) {
  // The list of conversations, which has the title, may still be loading.
  title ||= plainText(path[0]?.input.find((/** @type {any} */ message) => message.role === "user")?.content).split("\n")[0].slice(0, 80);
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
      // On narrow screens the header has no room for another button.
      h("button", { type: "button", class: "narrow-only", onclick: () => (byId("dialog").close(), byId("share").click()) }, icon("share"), "Share a link"),
    ),
  ]);
}

/** @param {any[]} path @param {string} title */
export function markdownOf(path, title) {
  const parts = [`# ${oneLine(title) || "Conversation"}`];
  for (const turn of path) {
    for (const message of turn.input) if (message.role === "user") parts.push(`## User\n\n${plainText(message.content)}`);
    for (const { type, agent, data } of turn.events) {
      if (type === "handoff") parts.push(`> Handoff: ${data.from} → ${data.to}${data.reason ? `: ${oneLine(data.reason)}` : ""}`);
      else if (type === "tool.started") parts.push(`> ${agent} calls \`${data.name}\` ${data.arguments ? inlineCode(data.arguments) : ""}`.trimEnd());
    }
    for (const message of turn.answer) parts.push(`## ${message.agent ?? "Assistant"}\n\n${withoutDemoNotice(plainText(message.content))}`);
  }
  return `${parts.join("\n\n")}\n`;
}

/** @param {string} text */
const oneLine = (text) => text.replace(/\s+/g, " ").trim();

/** Markdown code that no character of the text can end. @param {string} text */
function inlineCode(text) {
  const line = oneLine(text);
  const runs = line.match(/`+/g) ?? [];
  const fence = "`".repeat(1 + Math.max(0, ...runs.map((run) => run.length)));
  return runs.length ? `${fence} ${line} ${fence}` : `${fence}${line}${fence}`;
}

/** @param {any} content @returns {string} */
function plainText(content) {
  return typeof content === "string" ? content : (content ?? []).map((/** @type {any} */ part) => part.text ?? `[${part.type}]`).join("\n");
}
