// One answer of a team as it grows: what agents say, handoffs, tools, approvals, and how it ended. It is given events in
// the words of the event feed, live or kept, and makes elements of them.

import { colourOf } from "./agents.js";
import { h } from "./dom.js";
import { Growing } from "./markdown.js";

/** @param {number | undefined} seconds */
export function duration(seconds) {
  if (seconds === undefined || seconds === null) return "";
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  return seconds < 60 ? `${seconds.toFixed(1)} s` : `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
}

/** JSON as people like to read it; other text as it is. @param {string} text */
function readable(text) {
  try {
    const value = JSON.parse(text);
    return typeof value === "string" ? value : JSON.stringify(value, null, 2);
  } catch {
    return text;
  }
}

/** Take the buttons from the card of an approval. @param {Element} card @param {string} decision a decision, or a status */
export function settleApproval(card, decision) {
  const words = { approve: "Approved", approved: "Approved", refuse: "Refused", refused: "Refused" };
  const word = /** @type {Record<string, string>} */ (words)[decision] ?? "No longer open";
  card.querySelector(".buttons")?.replaceWith(h("div", { class: "note" }, word));
}

export class TurnView {
  /** @param {{decide: (id: string, decision: "approve" | "refuse", card: HTMLElement) => void}} actions */
  constructor({ decide }) {
    this.element = h("div", { class: "answer" });
    this.agent = "";
    this.text = "";
    this.isOver = false;
    /** @type {((agent: string) => void) | null} */
    this.onfloor = null;
    this.decide = decide;
    this.shownAgent = "";
    /** @type {Growing | null} */
    this.words = null;
    /** @type {HTMLElement | null} */
    this.thought = null;
    this.waiting = h("p", { class: "waiting" }, "Thinking");
    /** @type {Map<string, any>} */
    this.tools = new Map();
    /** @type {Map<string, HTMLElement>} */
    this.approvals = new Map();
  }

  /** Show that something is awaited. */
  begin() {
    this.element.append(this.waiting);
  }

  /** @param {any} event */
  add(event) {
    if (event.agent && event.type !== "handoff") this.hasFloor(event.agent);
    switch (event.type) {
      case "text.delta":
      case "refusal.delta":
        this.say(event.text);
        break;
      case "reasoning.delta":
        this.think(event.text);
        break;
      case "handoff":
        this.handOver(event);
        break;
      case "tool.started":
        this.startTool(event);
        break;
      case "tool.completed":
      case "tool.failed":
        this.endTool(event);
        break;
      case "approval.requested":
        this.wantApproval(event);
        break;
      case "approval.decided":
        this.decided(event.approval_id, event.decision);
        break;
      case "turn.completed":
      case "turn.cancelled":
      case "turn.failed":
        this.end(event);
        break;
    }
  }

  /** @param {string} agent */
  hasFloor(agent) {
    if (this.agent === agent) return;
    this.agent = agent;
    this.onfloor?.(agent);
  }

  /** @param {Node} block */
  append(block) {
    this.closeWords();
    this.element.append(block);
    if (!this.isOver) this.element.append(this.waiting);
  }

  closeWords() {
    this.words?.element.classList.remove("writes");
    this.words?.show();
    this.words = null;
    this.thought = null;
  }

  /** @param {string} text */
  say(text) {
    this.text += text;
    if (!this.words) {
      if (!text.trim()) return;
      const words = h("div", { class: "md writes" });
      const isNew = this.agent !== this.shownAgent;
      this.shownAgent = this.agent;
      const colour = this.agent ? colourOf(this.agent) : "";
      this.append(
        h("div", { class: `said ${colour}` }, isNew && this.agent && h("div", { class: "who" }, this.agent), words),
      );
      this.words = new Growing(words);
      text = text.trimStart();
    }
    this.waiting.remove();
    this.words.add(text);
  }

  /** @param {string} text */
  think(text) {
    if (!this.thought) {
      const inside = h("div", { class: "inside" });
      this.append(
        h("details", { class: "card thought" }, h("summary", {}, h("span", { class: "state" }, "…"), "Thoughts"), inside),
      );
      this.thought = inside;
    }
    this.thought.append(text);
  }

  /** @param {any} event */
  handOver({ from, to, reason }) {
    const line = h("span", {}, h("b", {}, from), " hands over to ", h("b", {}, to));
    const mark = h("span", { class: `who ${colourOf(to)}`, "aria-hidden": "true" });
    this.append(
      reason
        ? h(
            "details",
            { class: "card handoff" },
            h("summary", {}, mark, line),
            h("div", { class: "inside" }, h("h4", {}, "Why"), h("div", { class: "plain" }, reason)),
          )
        : h("div", { class: "note handoff" }, mark, line),
    );
    this.hasFloor(to);
  }

  /** @param {any} event */
  startTool({ call_id: id, name, arguments: given }) {
    const state = h("span", { class: "state", "aria-hidden": "true" }, "◌");
    const word = h("span", { class: "hidden" }, "runs: ");
    const time = h("span", { class: "time" });
    const inside = h("div", { class: "inside" });
    if (given && given !== "{}") inside.append(h("h4", {}, "Arguments"), h("pre", { tabindex: "0" }, readable(given)));
    const card = h(
      "details",
      { class: "card tool runs" },
      h("summary", {}, state, word, h("code", {}, name), time),
      inside,
    );
    this.tools.set(id, { card, state, word, time, inside });
    this.append(card);
  }

  /** @param {any} event */
  endTool({ type, call_id: id, result, error, seconds }) {
    const tool = this.tools.get(id);
    if (!tool) return;
    const isGood = type === "tool.completed";
    tool.card.className = `card tool ${isGood ? "done" : "failed"}`;
    tool.state.textContent = isGood ? "✓" : "✕";
    tool.word.textContent = isGood ? "done: " : "failed: ";
    tool.time.textContent = duration(seconds);
    const text = result ?? error;
    if (text) tool.inside.append(h("h4", {}, isGood ? "Result" : "Error"), h("pre", { tabindex: "0" }, readable(text)));
  }

  /** @param {any} event */
  wantApproval({ approval_id: id, name, arguments: given }) {
    const card = h(
      "div",
      { class: "approval", role: "group", "aria-label": `Approval of ${name}`, "data-approval": id },
      h("div", {}, h("b", {}, this.agent || "The agent"), " wants to run ", h("code", {}, name)),
      given && h("pre", { tabindex: "0" }, readable(given)),
    );
    const choose = (/** @type {"approve" | "refuse"} */ decision) => () => this.decide(id, decision, card);
    card.append(
      h(
        "div",
        { class: "buttons" },
        h("button", { type: "button", class: "main", onclick: choose("approve") }, "Approve"),
        h("button", { type: "button", class: "danger", onclick: choose("refuse") }, "Refuse"),
      ),
    );
    this.approvals.set(id, card);
    this.append(card);
  }

  /** @param {string} id @param {string} decision */
  decided(id, decision) {
    const card = this.approvals.get(id);
    if (card) settleApproval(card, decision);
  }

  /** @param {any} event */
  end({ type, finish_reason: reason, message }) {
    this.isOver = true;
    this.waiting.remove();
    this.closeWords();
    if (type === "turn.cancelled") this.append(h("div", { class: "note" }, "Stopped."));
    else if (type === "turn.failed") this.fail(message ?? "The turn could not be finished.");
    else if (reason === "length") this.append(h("div", { class: "note" }, "The limit of length was reached here."));
    else if (reason === "content_filter") this.append(h("div", { class: "note" }, "The provider's filter ended this."));
    for (const tool of this.tools.values()) if (tool.card.classList.contains("runs")) tool.card.classList.remove("runs");
  }

  /** @param {string} words @param {...HTMLElement} buttons */
  fail(words, ...buttons) {
    this.isOver = true;
    this.waiting.remove();
    this.closeWords();
    const told = h("div", { class: "problem", role: "alert" }, words);
    if (buttons.length) told.append(h("div", { class: "buttons" }, ...buttons));
    this.element.append(told);
  }
}
