// Element helpers. Text is always set as text; nothing here parses markup.

import { icon } from "./icons.js";

/**
 * Create an element. Properties that begin with "on" are listeners, others attributes; null, undefined and false are skipped.
 * @param {string} tag
 * @param {Record<string, any>} [properties]
 * @param {...(Node | string | null | undefined | false)} children
 * @returns {any}
 */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(.../** @type {any} */ (children.filter((child) => child !== null && child !== undefined && child !== false)));
  return element;
}

/** Replace the children of an element; null, undefined and false are skipped. @param {Element} element @param {...any} children */
export function fill(element, ...children) {
  element.replaceChildren(...children.filter((child) => child !== null && child !== undefined && child !== false));
}

/** @param {string} id @returns {any} */
export const byId = (id) => document.getElementById(id);

/** Announce a change to screen readers. @param {string} text */
export function announce(text) {
  byId("announcer").textContent = text;
}

/**
 * @param {any} name of the icon @param {string} label accessible name and tooltip @param {(event: Event) => void} onclick
 * @param {Record<string, any>} [properties]
 */
export function iconButton(name, label, onclick, properties = {}) {
  return h("button", { type: "button", class: "icon-button", "aria-label": label, title: label, onclick, ...properties }, icon(name));
}

/** A button that confirms for a moment that it copied. @param {string} label @param {() => string} text */
export function copyButton(label, text) {
  const state = h("span", { class: "hidden", role: "status" });
  const button = h("button", { type: "button", class: "icon-button", "aria-label": label, title: label }, icon("copy"), state);
  const show = (/** @type {any} */ name, /** @type {string} */ result) => {
    button.replaceChildren(icon(name), state);
    state.textContent = result;
  };
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text());
      show("check", "Copied");
    } catch {
      show("warning", "Could not copy");
    }
    setTimeout(() => show("copy", ""), 1500);
  });
  return button;
}

/**
 * Characters that hide or reorder text: control characters, bidirectional controls, zero-width and tag characters. Joiners
 * stay, because scripts and emoji need them.
 */
const INVISIBLE = /[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff\u{e0000}-\u{e007f}]/gu;

/** Replace invisible characters by their code points, so that text looks like what it is. @param {string} text */
export const showInvisible = (text) => text.replace(INVISIBLE, (character) => `\\u{${character.codePointAt(0)?.toString(16)}}`);

/** The demonstration begins its first answer with a notice; the page shows a banner instead. */
const DEMO_NOTICE = /^\(This is a demonstration[^)]*\)\s*/;

const DEMO_NOTICE_START = "(This is a demonstration";
const MAX_DEMO_NOTICE = 400;

/** Whether the beginning of an answer may be that of the notice, whose end is still to come. @param {string} text */
export const mayBecomeDemoNotice = (text) =>
  (DEMO_NOTICE_START.startsWith(text) || text.startsWith(DEMO_NOTICE_START)) && !text.includes(")") && text.length < MAX_DEMO_NOTICE;

/** @param {string} text of an answer */
export const withoutDemoNotice = (text) => text.replace(DEMO_NOTICE, "");

/** @param {number | undefined | null} seconds */
export function formatDuration(seconds) {
  if (seconds === undefined || seconds === null) return "";
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  return seconds < 60 ? `${seconds.toFixed(1)} s` : `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
}

/** A cost in the currency of the team file, which names none. @param {number} cost */
export const formatCost = (cost) => cost.toLocaleString("en", { minimumSignificantDigits: 1, maximumSignificantDigits: 3 });

/** @param {{prompt_tokens?: number, completion_tokens?: number} | null | undefined} usage */
export function formatUsage(usage) {
  if (!usage) return "";
  const number = (/** @type {number | undefined} */ count) => (count ?? 0).toLocaleString("en");
  return `${number(usage.prompt_tokens)} input tokens, ${number(usage.completion_tokens)} output tokens`;
}
