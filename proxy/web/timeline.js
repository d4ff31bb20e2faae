// The timeline of a turn: who worked when, as bars on one scale, and a slider that shows what the active agent had in its
// context and did at each step.

import { colourClass } from "./agents.js";
import { formatDuration, formatUsage, h, withoutDemoNotice } from "./dom.js";
import { icon } from "./icons.js";
import { COMPACTIONS } from "./turn-view.js";

const MAX_ENTRY = 400;

/**
 * `branch` starts a branch behind an event of the turn; without a position, another message replaces that of the turn.
 * @param {any} turn with its events
 * @param {{path: any[], branch: (text: string, position: number | null) => unknown}} options `path` ends with the turn
 * @returns {HTMLElement}
 */
export function timeline(turn, { path, branch }) {
  const { events } = turn;
  const began = events[0]?.time ?? 0;
  const ended = events[events.length - 1]?.time ?? began;
  const total = Math.max(ended - began, 0.001);
  const steps = stepsOf(events);
  const cursor = h("div", { class: "cursor", "aria-hidden": "true" });
  const lanes = h("div", { class: "lanes" }, cursor);
  for (const lane of lanesOf(events, ended)) {
    const bar = h("span", { class: "bar" });
    bar.style.left = `${((lane.from - began) / total) * 100}%`;
    bar.style.width = `${(Math.max(lane.to - lane.from, 0) / total) * 100}%`;
    lanes.append(
      h(
        "div",
        { class: `lane ${lane.kind} ${colourClass(lane.agent)}`, role: "listitem" },
        h("span", { class: "name", title: lane.name }, lane.name),
        h("span", { class: "track" }, bar),
        h("span", { class: "time" }, formatDuration(lane.to - lane.from)),
      ),
    );
  }
  lanes.setAttribute("role", "list");
  const detail = h("div", { class: "step" });
  const slider = h("input", { type: "range", min: "0", max: String(steps.length - 1), "aria-label": "Step of the turn" });
  const previous = h("button", { type: "button", class: "icon-button", "aria-label": "Previous step", onclick: () => move(-1) }, icon("chevronLeft"));
  const next = h("button", { type: "button", class: "icon-button", "aria-label": "Next step", onclick: () => move(1) }, icon("chevronRight"));
  slider.value = String(steps.length - 1);
  const move = (/** @type {number} */ by) => {
    slider.value = String(Number(slider.value) + by);
    show();
  };
  const show = () => {
    const at = Number(slider.value);
    const step = steps[at];
    slider.setAttribute("aria-valuetext", `Step ${at + 1} of ${steps.length}: ${step.title}`);
    previous.disabled = at === 0;
    next.disabled = at === steps.length - 1;
    cursor.style.setProperty("--at", String((step.time - began) / total));
    detail.replaceChildren(stepDetail(step, at, steps, path, branch));
  };
  slider.addEventListener("input", show);
  show();
  const usage = events[events.length - 1]?.data?.usage;
  return h(
    "section",
    { class: "timeline", "aria-label": "Timeline" },
    lanes,
    h("p", { class: "totals" }, [formatDuration(ended - began), usage && formatUsage(usage)].filter(Boolean).join(" · ")),
    h("div", { class: "scrubber" }, previous, slider, next),
    detail,
  );
}

/** @param {any[]} events @param {number} ended */
function lanesOf(events, ended) {
  /** @type {any[]} */
  const found = [];
  /** @type {any} */
  let agentLane = null;
  const open = new Map();
  const start = (/** @type {string} */ agent, /** @type {number} */ time) => {
    if (agentLane) agentLane.to = time;
    agentLane = { name: agent, kind: "agent", agent, from: time, to: ended };
    found.push(agentLane);
  };
  for (const event of events) {
    const { time } = event;
    // What a team that is the active agent does is shown as work of that agent.
    const isInner = event.type === "member.event" && event.data.event.type.startsWith("tool.");
    const { type, agent, data } = isInner ? event.data.event : event;
    if (type === "turn.started") start(agent, time);
    else if (type === "handoff") start(data.to, time);
    else if (type === "tool.started") {
      const lane = { name: data.name, kind: "tool", agent, from: time, to: ended };
      open.set(data.call_id, lane);
      found.push(lane);
    } else if (open.has(data?.call_id)) open.get(data.call_id).to = time;
  }
  return found;
}

/**
 * Steps to stop at: text deltas in a row are one, and `usage` adds to the step that follows.
 * @param {any[]} events
 */
function stepsOf(events) {
  /** @type {any[]} */
  const steps = [];
  const usage = { prompt_tokens: 0, completion_tokens: 0 };
  const names = new Map();
  const add = (/** @type {any} */ event, /** @type {string} */ title, /** @type {string} */ text, kind = event.type) =>
    steps.push({ kind, title, text, agent: event.agent, time: event.time, position: event.position, usage: { ...usage } });
  // What happens in a team that is the active agent, or in a team inside of that.
  const addInner = (/** @type {any} */ event, /** @type {any} */ inner) => {
    const { type, agent, data } = inner;
    if (type === "tool.started") names.set(data.call_id, data.name);
    if (type === "tool.started") add(event, `${agent} calls ${data.name}`, data.arguments ?? "", type);
    else if (type === "tool.completed") add(event, `${names.get(data.call_id) ?? "Tool"} returns a result`, data.result ?? "", type);
    else if (type === "tool.failed") add(event, `${names.get(data.call_id) ?? "Tool"} fails`, data.error ?? "", type);
    else if (type === "handoff") add(event, `${data.from} hands off to ${data.to}`, data.reason ?? "", type);
    else if (type === "context.compacted") add(event, COMPACTIONS[data.method] ?? "The context is shortened", "", type);
    else if (type === "member.event" || type === "delegate.event") addInner(event, data.event);
  };
  for (const event of events) {
    const { type, agent, data } = event;
    const last = steps[steps.length - 1];
    if (type === "usage") {
      usage.prompt_tokens += data.usage?.prompt_tokens ?? 0;
      usage.completion_tokens += data.usage?.completion_tokens ?? 0;
      if (last) last.usage = { ...usage };
    } else if (type === "turn.started") add(event, `${agent} receives the message`, "");
    else if (type === "text.delta" || type === "refusal.delta" || type === "reasoning.delta") {
      const kind = type === "reasoning.delta" ? "reasoning" : "text";
      if (last?.kind === kind && last.agent === agent) last.text += data.text;
      else add(event, kind === "text" ? `${agent} writes the answer` : `${agent} reasons`, data.text, kind);
    } else if (type === "tool.started") {
      names.set(data.call_id, data.name);
      add(event, `${agent} calls ${data.name}`, data.arguments ?? "");
    } else if (type === "tool.completed") add(event, `${names.get(data.call_id) ?? "Tool"} returns a result`, data.result ?? "");
    else if (type === "tool.failed") add(event, `${names.get(data.call_id) ?? "Tool"} fails`, data.error ?? "");
    else if (type === "handoff") add({ ...event, agent: data.to }, `${data.from} hands off to ${data.to}`, data.reason ?? "");
    else if (type === "approval.requested") add(event, `${agent} requests approval of ${data.name}`, data.arguments ?? "");
    else if (type === "delegate.event" && data.event.type === "tool.started") add(event, `${data.event.agent} calls ${data.event.data.name}`, data.event.data.arguments ?? "");
    else if (type === "member.event") addInner(event, data.event);
    else if (type === "context.compacted") add(event, COMPACTIONS[data.method] ?? "The context is shortened", `${data.tokens_before} → ${data.tokens_after} tokens`);
    else if (type === "turn.failed") add(event, "The turn fails", data.message ?? "");
    else if (type === "turn.cancelled") add(event, "The turn is cancelled", "");
    else if (type === "turn.completed") add(event, "The turn is complete", "");
  }
  return steps;
}

/**
 * Return the events up to the end of the model call that contains an event: its deltas, tool calls and handoff. The server
 * ends a branch at the same place.
 * @param {any[]} events @param {number} position
 */
export function eventsBefore(events, position) {
  const ofModelCall = new Set(["agent.speaking", "reasoning.delta", "text.delta", "refusal.delta", "client_tool.requested", "client_tool.arguments", "usage"]);
  let ended = 0;
  const calls = events.map(({ type }) => {
    const number = ofModelCall.has(type) ? ended + 1 : ended;
    if (type === "usage") ended += 1;
    return number;
  });
  const last = calls[events.findIndex((event) => event.position === position)] ?? ended;
  return events.filter(({ type }, at) => calls[at] <= last && !/^turn\.(completed|failed|cancelled)$/.test(type));
}

/**
 * @param {any} step @param {number} at @param {any[]} steps @param {any[]} path
 * @param {(text: string, position: number | null) => unknown} branch
 */
function stepDetail(step, at, steps, path, branch) {
  const turn = path[path.length - 1];
  const messages = path.flatMap((one) => [
    ...one.input.filter((/** @type {any} */ message) => message.role === "user").map((/** @type {any} */ message) => ["User", contentText(message.content)]),
    ...(one === turn ? [] : one.answer.map((/** @type {any} */ message) => [message.agent ?? "Assistant", contentText(message.content)])),
  ]);
  const earlier = steps.slice(0, at).filter((one) => one.text && one.kind !== "reasoning").map((one) => [one.title, withoutDemoNotice(one.text)]);
  const context = [...messages, ...earlier];
  // At the first step nothing was done yet: a branch there is another message in place of the user's.
  const isFirst = at === 0;
  const input = h("textarea", { "aria-label": "Message of the branch", rows: "2", placeholder: `Send another message to ${step.agent}` });
  if (isFirst) input.value = messages.filter(([role]) => role === "User").pop()?.[1] ?? "";
  const form = h(
    "form",
    {
      class: "branch-form",
      hidden: true,
      onsubmit: (/** @type {Event} */ event) => {
        event.preventDefault();
        if (input.value.trim()) branch(input.value, isFirst ? null : step.position);
      },
    },
    h("p", { class: "hint" }, isFirst ? "Replaces the message of this turn. Both versions remain." : `The history ends behind this step, and ${step.agent} continues. Both versions remain.`),
    input,
    h("button", { type: "submit", class: "primary" }, "Start branch"),
  );
  const open = h(
    "button",
    {
      type: "button",
      class: "quiet",
      "data-edits": true,
      "aria-expanded": "false",
      onclick: () => {
        form.hidden = !form.hidden;
        open.setAttribute("aria-expanded", String(!form.hidden));
        if (!form.hidden) input.focus();
      },
    },
    icon("branch"),
    "Branch from here",
  );
  return h(
    "div",
    { class: colourClass(step.agent) },
    h("div", { class: "head" }, h("p", { class: "step-title" }, h("span", { class: "agent-name" }, `${at + 1}/${steps.length}`), step.title), open),
    form,
    step.text && h("pre", { tabindex: "0" }, withoutDemoNotice(step.text)),
    h(
      "details",
      { class: "context" },
      h("summary", {}, icon("chevronRight"), `Context of ${step.agent}: ${context.length} ${context.length === 1 ? "item" : "items"}`),
      h("ol", {}, ...context.map(([role, text]) => h("li", {}, h("b", {}, role), h("span", {}, text.length > MAX_ENTRY ? `${text.slice(0, MAX_ENTRY)}…` : text)))),
    ),
    h("p", { class: "totals" }, `So far: ${formatUsage(step.usage)}`),
  );
}

/** @param {any} content */
function contentText(content) {
  if (typeof content === "string") return withoutDemoNotice(content);
  return (Array.isArray(content) ? content : []).map((part) => part.text ?? `[${part.type}]`).join("\n");
}
