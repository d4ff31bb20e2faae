// Who worked when: the events of a turn that is over, as bars on one scale.

import { colourOf } from "./agents.js";
import { ask, framesOf } from "./api.js";
import { h } from "./dom.js";
import { duration } from "./turnview.js";

const TYPES = "turn.started,handoff,tool.started,tool.completed,tool.failed,usage,turn.completed,turn.failed,turn.cancelled";

/** @param {string} turn @returns {Promise<HTMLElement>} */
export async function timelineOf(turn) {
  const events = [];
  const answer = await ask(`/v1/turns/${encodeURIComponent(turn)}/events?types=${TYPES}`);
  for await (const frame of framesOf(answer)) events.push(JSON.parse(frame.data));
  return shown(events);
}

/** @param {any[]} events */
function shown(events) {
  const began = events[0]?.time ?? 0;
  const ended = events[events.length - 1]?.time ?? began;
  const whole = Math.max(ended - began, 0.001);
  const rows = h("tbody");
  for (const { name, kind, agent, from, to } of lanes(events, ended)) {
    const bar = h("div", { class: "bar" });
    bar.style.left = `${((from - began) / whole) * 100}%`;
    bar.style.width = `${(Math.max(to - from, 0) / whole) * 100}%`;
    rows.append(
      h(
        "tr",
        { class: `${kind} ${colourOf(agent)}` },
        h("th", { scope: "row", title: name }, name),
        h("td", {}, h("div", { class: "lane" }, bar)),
        h("td", { class: "time" }, duration(to - from)),
      ),
    );
  }
  const usage = events[events.length - 1]?.data?.usage;
  return h(
    "div",
    {},
    h("table", { class: "timeline", "aria-label": "Timeline of the turn" }, rows),
    h("p", { class: "sums" }, [duration(ended - began), usage && `${usage.prompt_tokens} tokens read, ${usage.completion_tokens} written`].filter(Boolean).join(" · ")),
  );
}

/** @param {any[]} events @param {number} ended */
function lanes(events, ended) {
  const found = [];
  let floor = null;
  const open = new Map();
  for (const { type, time, agent, data } of events) {
    if (type === "turn.started") found.push((floor = { name: agent, kind: "agent", agent, from: time, to: ended }));
    else if (type === "handoff") {
      if (floor) floor.to = time;
      found.push((floor = { name: data.to, kind: "agent", agent: data.to, from: time, to: ended }));
    } else if (type === "tool.started") {
      const lane = { name: data.name, kind: "tool", agent, from: time, to: ended };
      open.set(data.call_id, lane);
      found.push(lane);
    } else if (open.has(data?.call_id)) open.get(data.call_id).to = time;
  }
  return found;
}
