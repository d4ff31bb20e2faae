// One answer of a team: text, reasoning, handoffs, tool calls, approvals and how the turn ended. It takes events of the
// event feed, live or stored, and renders them.

import { colourClass } from "./agents.js";
import { formatDuration, h, mayBecomeDemoNotice, showInvisible, withoutDemoNotice } from "./dom.js";
import { icon } from "./icons.js";
import { StreamingMarkdown } from "./markdown.js";

const CLOCK_INTERVAL = 100;
const PREVIEW_LENGTH = 120;
/** @type {Record<string, string>} */
export const COMPACTIONS = {
  shortened: "Older tool results were shortened",
  summarised: "Older messages were summarised",
  dropped: "Older messages were left out",
};

/** Pretty-print JSON; return other text as it is. @param {string} text */
function prettyPrint(text) {
  try {
    const value = JSON.parse(text);
    return showInvisible(typeof value === "string" ? value : JSON.stringify(value, null, 2));
  } catch {
    return showInvisible(text);
  }
}

/** Return JSON arguments or a result in one line. @param {string | undefined} text */
function preview(text) {
  let line = text ?? "";
  try {
    const value = JSON.parse(line);
    if (value && typeof value === "object" && !Array.isArray(value)) {
      line = Object.entries(value)
        .map(([name, one]) => `${name}: ${typeof one === "string" ? one : JSON.stringify(one)}`)
        .join(", ");
    } else line = typeof value === "string" ? value : JSON.stringify(value);
  } catch {
    // Not JSON: shown as it is.
  }
  line = showInvisible(line.slice(0, 2 * PREVIEW_LENGTH)).replace(/\s+/g, " ").trim();
  return line.length > PREVIEW_LENGTH ? `${line.slice(0, PREVIEW_LENGTH)}…` : line;
}

/** @param {string} type @param {string} agent @param {any} data */
function lineOfDelegate(type, agent, data) {
  if (type === "tool.started") return `${agent} calls ${data.name}`;
  if (type === "tool.failed") return `${data.name} fails`;
  if (type === "handoff") return `${data.from} hands off to ${data.to}`;
  if (type === "context.compacted") return COMPACTIONS[data.method] ?? "";
  if (type === "delegate.event") return lineOfDelegate(data.event.type, data.event.agent, data.event.data);
  return "";
}

/** Replace the buttons of an approval by its outcome. @param {Element} card @param {string} decision a decision or a status */
export function settleApproval(card, decision) {
  const labels = { approve: "Approved", approved: "Approved", refuse: "Refused", refused: "Refused" };
  const label = /** @type {Record<string, string>} */ (labels)[decision] ?? "Expired";
  card.querySelector(".buttons")?.replaceWith(h("p", { class: "outcome" }, label));
}

export class TurnView {
  /** @param {{decide: (id: string, decision: "approve" | "refuse", card: HTMLElement) => void}} actions */
  constructor({ decide }) {
    this.content = h("div", { class: "blocks" });
    this.progress = h("progress", { max: "100", "aria-label": "Progress of the team", hidden: true });
    this.element = h("div", { class: "answer" }, this.progress, this.content);
    this.agent = "";
    this.text = "";
    /** The beginning of the text, as long as it may be the notice of the demonstration. */
    this.held = "";
    this.isOver = false;
    /** Whether tools run now, so that clocks count. */
    this.isLive = false;
    /** @type {((agent: string) => void) | null} */
    this.onagent = null;
    this.decide = decide;
    this.shownAgent = "";
    /** @type {StreamingMarkdown | null} */
    this.markdown = null;
    /** @type {HTMLElement | null} */
    this.reasoning = null;
    this.pending = h("p", { class: "pending", role: "status" }, h("span", { class: "dots", "aria-hidden": "true" }), h("span", { class: "label" }, "Thinking"));
    this.connection = h("p", { class: "connection", role: "status", hidden: true }, icon("warning"), "Connection lost. Reconnecting…");
    /** @type {Map<string, any>} */
    this.tools = new Map();
    /** @type {any} */
    this.group = null;
    /** @type {Map<string, HTMLElement>} */
    this.approvals = new Map();
    this.clock = 0;
  }

  /** Show that an answer is pending. */
  begin() {
    this.isLive = true;
    this.content.append(this.pending, this.connection);
  }

  /** @param {boolean} isConnected */
  setConnection(isConnected) {
    this.connection.hidden = isConnected;
    this.element.classList.toggle("offline", !isConnected);
  }

  /** @param {any} event */
  add(event) {
    // A tool call can be of an agent inside of the active one.
    if (event.agent && event.type !== "handoff" && !event.type.startsWith("tool.")) this.setAgent(event.agent);
    if (typeof event.progress === "number") this.showProgress(event.progress);
    switch (event.type) {
      case "text.delta":
      case "refusal.delta":
        this.addText(event.text);
        break;
      case "reasoning.delta":
        this.addReasoning(event.text);
        break;
      case "handoff":
        this.addHandoff(event);
        break;
      case "tool.started":
        this.startTool(event);
        break;
      case "delegate.event":
        this.addDelegateEvent(event.call_id, event.event);
        break;
      case "member.event":
        this.addMemberEvent(event.event);
        break;
      case "context.compacted":
        this.addNote(COMPACTIONS[event.method] ?? "The context was shortened");
        break;
      case "tool.completed":
      case "tool.failed":
        this.finishTool(event);
        break;
      case "approval.requested":
        this.addApproval(event);
        break;
      case "approval.decided":
        this.setDecision(event.approval_id, event.decision);
        break;
      case "turn.completed":
      case "turn.cancelled":
      case "turn.failed":
        this.end(event);
        break;
    }
  }

  /** @param {string} agent */
  setAgent(agent) {
    if (this.agent === agent) return;
    this.agent = agent;
    this.onagent?.(agent);
  }

  /** Teams without steps report no progress. @param {number} percent */
  showProgress(percent) {
    this.progress.hidden = this.isOver || !this.isLive;
    this.progress.value = percent;
  }

  /** @param {Node} block */
  append(block) {
    this.closeText();
    this.group = null;
    this.content.append(block);
    if (this.isLive && !this.isOver) this.content.append(this.pending, this.connection);
  }

  closeText() {
    const { held } = this;
    this.held = "";
    if (held) this.showText(held);
    this.markdown?.element.classList.remove("writing");
    this.markdown?.finish();
    this.markdown = null;
    this.reasoning = null;
  }

  /** @param {string} text */
  addText(text) {
    if (!this.text) {
      text = this.held + text;
      this.held = "";
      if (text && mayBecomeDemoNotice(text)) {
        this.held = text;
        return;
      }
      text = withoutDemoNotice(text);
    }
    this.showText(text);
  }

  /** @param {string} text */
  showText(text) {
    this.text += text;
    if (!this.markdown) {
      if (!text.trim()) return;
      const body = h("div", { class: "md writing" });
      const isNew = this.agent !== this.shownAgent;
      this.shownAgent = this.agent;
      const colour = this.agent ? colourClass(this.agent) : "";
      this.append(
        h("div", { class: `message ${colour}` }, isNew && this.agent && h("div", { class: "agent-name" }, this.agent), body),
      );
      this.markdown = new StreamingMarkdown(body);
      text = text.trimStart();
    }
    this.pending.remove();
    this.markdown.add(text);
  }

  /** @param {string} text */
  addReasoning(text) {
    if (!this.reasoning) {
      const inside = h("div", { class: "inside" });
      this.append(h("details", { class: "reasoning" }, h("summary", {}, icon("chevronRight"), "Reasoning"), inside));
      this.reasoning = inside;
    }
    this.reasoning.append(text);
  }

  /** @param {any} event */
  addHandoff({ from, to, reason }) {
    this.append(
      h(
        "div",
        { class: `handoff ${colourClass(to)}` },
        h("span", { class: "badge", "aria-hidden": "true" }, icon("handoff")),
        h(
          "div",
          {},
          h("p", { class: "route" }, h("span", { class: "hidden" }, "Handoff: "), h("b", { class: colourClass(from) }, from), h("span", { "aria-hidden": "true" }, "→"), h("span", { class: "hidden" }, "to"), h("b", {}, to)),
          reason && h("p", { class: "reason" }, reason),
        ),
      ),
    );
    this.setAgent(to);
  }

  /** @param {string} text */
  addNote(text) {
    this.append(h("p", { class: "note", role: "note" }, text));
  }

  /** @param {any} event */
  startTool({ call_id: id, name, arguments: sent }) {
    if (!this.group?.tools.some((/** @type {any} */ tool) => tool.isRunning)) {
      const rows = h("div", { class: "rows" });
      const label = h("span", { class: "label" });
      const time = h("span", { class: "time" });
      const element = h("details", { class: "tools", open: true }, h("summary", { hidden: true }, icon("chevronRight"), label, time), rows);
      this.append(element);
      this.group = { element, rows, label, time, tools: [], started: performance.now() };
    }
    const state = h("span", { class: "state", "aria-hidden": "true" }, h("span", { class: "spinner" }));
    const status = h("span", { class: "hidden" }, "running: ");
    const time = h("span", { class: "time" });
    const result = h("span", { class: "result" });
    const inside = h("div", { class: "inside" });
    const hasArguments = sent && sent !== "{}";
    if (hasArguments) inside.append(h("p", { class: "part" }, "Arguments"), h("pre", { tabindex: "0" }, prettyPrint(sent)));
    const row = h(
      "details",
      { class: "tool running" },
      h(
        "summary",
        {},
        state,
        h("span", { class: "call" }, status, h("code", {}, name), hasArguments && h("span", { class: "arguments" }, preview(sent)), result),
        time,
      ),
      inside,
    );
    const tool = { row, state, status, time, result, inside, group: this.group, started: performance.now(), isRunning: true };
    this.tools.set(id, tool);
    this.group.tools.push(tool);
    this.group.rows.append(row);
    this.updateGroup(this.group);
    if (this.isLive) this.clock ||= window.setInterval(() => this.tick(), CLOCK_INTERVAL);
  }

  /**
   * Show what a delegate does inside of the call that started it. @param {string} id @param {any} event
   */
  addDelegateEvent(id, { type, agent, data }) {
    const tool = this.tools.get(id);
    if (!tool) return;
    const line = lineOfDelegate(type, agent, data);
    if (line) {
      tool.inside.append(h("p", { class: "part" }, line));
      tool.said = null;
    } else if (type === "text.delta" || type === "refusal.delta") {
      if (!tool.said) {
        tool.said = h("pre", { tabindex: "0" });
        tool.inside.append(h("p", { class: "part" }, `${agent} writes`), tool.said);
      }
      tool.said.append(data.text);
    }
  }

  /**
   * Show what happens in a team that is the active agent: calls as those of the answer, the rest as lines. Its text and its
   * approvals are those of the answer.
   * @param {any} event
   */
  addMemberEvent({ type, agent, data }) {
    if (type === "tool.started") this.startTool({ ...data, name: `${agent}: ${data.name}` });
    else if (type === "tool.completed" || type === "tool.failed") this.finishTool({ ...data, type });
    else if (type === "delegate.event") this.addDelegateEvent(data.call_id, data.event);
    else if (type === "member.event") this.addMemberEvent(data.event);
    else {
      const line = lineOfDelegate(type, agent, data);
      if (line) this.addNote(line);
    }
  }

  /** Advance the clocks of the calls that run. */
  tick() {
    const running = [...this.tools.values()].filter((tool) => tool.isRunning);
    for (const tool of running) tool.time.textContent = `${((performance.now() - tool.started) / 1000).toFixed(1)} s`;
    if (running.length && !this.isOver && this.element.isConnected) return;
    clearInterval(this.clock);
    this.clock = 0;
  }

  /** @param {any} event */
  finishTool({ type, call_id: id, result, error, seconds }) {
    const tool = this.tools.get(id);
    if (!tool) return;
    const isGood = type === "tool.completed";
    tool.isRunning = false;
    tool.row.className = `tool ${isGood ? "done" : "failed"}`;
    tool.state.replaceChildren(icon(isGood ? "check" : "close"));
    tool.status.textContent = isGood ? "completed: " : "failed: ";
    tool.time.textContent = formatDuration(seconds);
    tool.seconds = seconds ?? 0;
    const text = result ?? error;
    if (text) {
      tool.result.textContent = preview(text);
      tool.inside.append(h("p", { class: "part" }, isGood ? "Result" : "Error"), h("pre", { tabindex: "0" }, prettyPrint(text)));
    }
    this.updateGroup(tool.group);
  }

  /** Calls that run in parallel are one block, folded when the last of several is done. @param {any} group */
  updateGroup(group) {
    const { tools } = group;
    const finished = tools.filter((/** @type {any} */ tool) => !tool.isRunning).length;
    group.element.querySelector("summary").hidden = tools.length < 2;
    const failed = tools.filter((/** @type {any} */ tool) => tool.row.classList.contains("failed")).length;
    group.label.textContent =
      finished < tools.length ? `${finished} of ${tools.length} tool calls completed` : `${tools.length} tool calls${failed ? `, ${failed} failed` : ""}`;
    if (finished < tools.length) return;
    group.time.textContent = formatDuration(Math.max(...tools.map((/** @type {any} */ tool) => tool.seconds)));
    if (tools.length > 3) group.element.open = false;
  }

  /**
   * Remove the question that the server writes for clients without cards: it begins with the reference of the approval.
   * @param {string} id
   */
  removeQuestion(id) {
    const start = this.text.indexOf(`Approval ${id.replace(/^appr_/, "").slice(0, 6)}:`);
    if (start < 0 || !this.markdown) return;
    this.markdown.truncate(this.text.length - start);
    this.text = this.text.slice(0, start).trimEnd();
    if (this.markdown.text) return;
    this.markdown.element.parentElement?.remove();
    this.markdown = null;
    this.shownAgent = "";
  }

  /** @param {any} event */
  addApproval({ approval_id: id, name, arguments: sent }) {
    this.removeQuestion(id);
    const card = h(
      "div",
      { class: "approval", role: "group", "aria-label": `Approval of ${name}`, "data-approval": id },
      h("p", {}, h("b", {}, this.agent || "The agent"), " requests approval to run ", h("code", {}, name)),
      sent && h("pre", { tabindex: "0" }, prettyPrint(sent)),
    );
    const choose = (/** @type {"approve" | "refuse"} */ decision) => () => this.decide(id, decision, card);
    card.append(
      h(
        "div",
        { class: "buttons" },
        h("button", { type: "button", class: "primary", onclick: choose("approve") }, "Approve"),
        h("button", { type: "button", class: "danger", onclick: choose("refuse") }, "Refuse"),
      ),
    );
    this.approvals.set(id, card);
    this.append(card);
  }

  /** @param {string} id @param {string} decision */
  setDecision(id, decision) {
    const card = this.approvals.get(id);
    if (card) settleApproval(card, decision);
    else {
      const label = decision === "approve" ? "Approved" : "Refused";
      this.append(h("p", { class: "note", "data-decided": id }, icon(decision === "approve" ? "check" : "close"), label));
    }
  }

  close() {
    this.isOver = true;
    this.progress.hidden = true;
    this.pending.remove();
    this.connection.remove();
    this.closeText();
    for (const tool of this.tools.values()) {
      if (!tool.isRunning) continue;
      tool.isRunning = false;
      tool.row.classList.remove("running");
      tool.state.replaceChildren(icon("stop"));
      tool.status.textContent = "not completed: ";
    }
  }

  /** @param {any} event */
  end({ type, finish_reason: reason, message }) {
    this.close();
    const note = (/** @type {string} */ text) => this.append(h("p", { class: "note" }, text));
    if (type === "turn.cancelled") note("Response stopped.");
    else if (type === "turn.failed") this.fail(message ?? "The turn failed.");
    else if (reason === "length") note("Response truncated: token limit reached.");
    else if (reason === "content_filter") note("Response stopped by the provider's content filter.");
  }

  /** @param {string} message @param {...HTMLElement} buttons */
  fail(message, ...buttons) {
    this.close();
    const box = h("div", { class: "problem", role: "alert" }, icon("warning"), h("p", {}, message));
    if (buttons.length) box.append(h("div", { class: "buttons" }, ...buttons));
    this.content.append(box);
  }
}
