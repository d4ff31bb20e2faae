// Titles of conversations, written by the side model of the team.

import { requestJson } from "./api.js";
import { withoutDemoNotice } from "./dom.js";
import { persistent } from "./storage.js";

const SETTING = "handoff.titles";
const MAX_TURNS = 3;
const MAX_TEXT = 600;
const MAX_TITLE = 80;

/** Whether a title is written after the first turn of a conversation. A title costs one short model call. */
export const hasAutomaticTitles = () => persistent.get(SETTING) !== "off";

/** @param {boolean} isOn */
export const setAutomaticTitles = (isOn) => persistent.set(SETTING, isOn ? null : "off");

/** @param {any} conversation of the list @returns {Promise<string>} */
export async function suggestTitle(conversation) {
  const page = await requestJson(`/v1/conversations/${encodeURIComponent(conversation.id)}/turns`);
  const excerpt = page.data
    .slice(0, MAX_TURNS)
    .flatMap((/** @type {any} */ turn) => [...turn.input, ...turn.answer])
    .map((/** @type {any} */ message) => `${message.role}: ${withoutDemoNotice(plainText(message.content)).slice(0, MAX_TEXT)}`)
    .join("\n");
  const completion = await requestJson("/v1/chat/completions", {
    method: "POST",
    headers: { "X-Task": "title" },
    body: {
      model: `${conversation.handoff.team}/side`,
      messages: [{ role: "user", content: `Write a title of at most six words for this conversation. Reply with the title only.\n\n${excerpt}` }],
    },
  });
  return cleanTitle(completion.choices[0].message.content ?? "");
}

/** Return the first line without Markdown, quotes and a full stop. @param {string} text */
function cleanTitle(text) {
  const line = text.trim().split("\n")[0].replace(/^(?:#+|title:)\s*/i, "").replace(/\*\*/g, "");
  return line.trim().replace(/^["'“]+|["'”.]+$/g, "").slice(0, MAX_TITLE);
}

/** @param {any} content @returns {string} */
function plainText(content) {
  return typeof content === "string" ? content : (content ?? []).map((/** @type {any} */ part) => part.text ?? "").join(" ");
}
