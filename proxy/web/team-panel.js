// The team next to the conversation: agents as nodes, handoffs as edges, the active agent, and what each agent used.

import { colourClass } from "./agents.js";
import { byId, fill, formatCost, formatDuration, formatUsage, h, iconButton } from "./dom.js";
import { icon } from "./icons.js";

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 304;
const NODE = { width: 138, height: 62 };
const GAP = { x: 20, y: 56 };
const MARGIN = 8;
const TRAVEL = 900;

export class TeamPanel {
  constructor() {
    this.element = byId("team-panel");
    this.graph = h("div", { class: "graph" });
    this.caption = h("p", { class: "caption", role: "status" });
    this.details = h("section", { class: "details", "aria-label": "Agent", hidden: true });
    byId("team-panel-body").replaceChildren(this.graph, this.caption, this.details);
    /** @type {any} */
    this.definition = null;
    /** @type {Map<string, HTMLElement>} */
    this.nodes = new Map();
    /** @type {Map<string, SVGPathElement>} */
    this.edges = new Map();
    this.active = "";
    /** @type {string | null} */
    this.open = null;
    /** @type {Map<string, any>} */
    this.stats = new Map();
  }

  /** @param {any} definition of the chosen team, or null */
  setTeam(definition) {
    if (definition === this.definition) return;
    this.definition = definition;
    this.open = null;
    this.draw();
  }

  draw() {
    this.nodes.clear();
    this.edges.clear();
    this.caption.replaceChildren();
    this.details.hidden = true;
    if (!this.definition) {
      this.graph.replaceChildren();
      return;
    }
    const places = layout(this.definition);
    const height = Math.max(...[...places.values()].map(({ y }) => y)) + NODE.height + MARGIN;
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("viewBox", `0 0 ${WIDTH} ${height}`);
    svg.setAttribute("aria-hidden", "true");
    svg.append(arrowHead());
    this.traveller = document.createElementNS(SVG, "circle");
    this.traveller.setAttribute("r", "5");
    this.traveller.setAttribute("class", "traveller");
    this.traveller.style.display = "none";
    for (const [name, agent] of Object.entries(this.definition.agents)) {
      for (const { to } of agent.handoffs ?? []) {
        const from = places.get(name);
        const target = places.get(to);
        if (!from || !target || from === target) continue;
        const hasReturn = (this.definition.agents[to].handoffs ?? []).some((/** @type {any} */ one) => one.to === name);
        const path = document.createElementNS(SVG, "path");
        path.setAttribute("d", edge(from, target, hasReturn));
        path.setAttribute("class", `edge ${colourClass(name)}`);
        path.setAttribute("marker-end", "url(#arrow)");
        svg.append(path);
        this.edges.set(`${name}>${to}`, path);
      }
    }
    svg.append(this.traveller);
    const list = h("ul", { "aria-label": "Agents of the team" });
    for (const [name, place] of places) {
      const usage = h("span", { class: "used" });
      const node = h(
        "button",
        { type: "button", class: `node ${colourClass(name)}`, "aria-expanded": "false", onclick: () => this.toggle(name) },
        h("span", { class: "name" }, ...breakable(name)),
        usage,
      );
      node.style.left = `${place.x}px`;
      node.style.top = `${place.y}px`;
      this.nodes.set(name, node);
      list.append(h("li", {}, node));
    }
    this.graph.style.height = `${height}px`;
    this.graph.replaceChildren(svg, list);
    this.showActive();
    this.showStats();
  }

  /** @param {string} agent */
  setActive(agent) {
    this.active = agent;
    this.showActive();
  }

  showActive() {
    for (const [name, node] of this.nodes) {
      node.classList.toggle("active", name === this.active);
      if (name === this.active) node.setAttribute("aria-current", "true");
      else node.removeAttribute("aria-current");
    }
  }

  /** A live event. @param {any} event */
  observe(event) {
    if (event.type === "handoff") this.travel(event);
    if (event.type === "tool.started") this.caption.replaceChildren(h("b", {}, event.agent), " runs ", h("code", {}, event.name));
    if (event.type.startsWith("turn.")) this.element.classList.remove("busy");
    else this.element.classList.add("busy");
  }

  /** @param {any} handoff */
  travel({ from, to, reason }) {
    this.caption.replaceChildren(h("b", {}, from), " → ", h("b", {}, to), reason ? `: ${reason}` : "");
    for (const path of this.edges.values()) path.classList.remove("used");
    const path = this.edges.get(`${from}>${to}`);
    const traveller = this.traveller;
    if (!path || !traveller) return;
    path.classList.add("used");
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) return;
    const length = path.getTotalLength();
    const started = performance.now();
    traveller.setAttribute("class", `traveller ${colourClass(to)}`);
    traveller.style.display = "";
    const step = (/** @type {number} */ now) => {
      const part = Math.max(0, Math.min((now - started) / TRAVEL, 1));
      const eased = part < 0.5 ? 2 * part * part : 1 - (2 - 2 * part) ** 2 / 2;
      const { x, y } = path.getPointAtLength(length * eased);
      traveller.setAttribute("cx", String(x));
      traveller.setAttribute("cy", String(y));
      if (part < 1) requestAnimationFrame(step);
      else traveller.style.display = "none";
    };
    requestAnimationFrame(step);
  }

  /** Sum up the turns that are shown. @param {any[]} turns */
  setTurns(turns) {
    this.stats = agentStats(turns);
    const handoffs = turns.flatMap((turn) => turn.events).filter((event) => event.type === "handoff");
    const last = handoffs[handoffs.length - 1]?.data;
    for (const [name, path] of this.edges) path.classList.toggle("used", Boolean(last) && name === `${last.from}>${last.to}`);
    this.caption.replaceChildren(...(last ? [h("b", {}, last.from), " → ", h("b", {}, last.to), last.reason ? `: ${last.reason}` : ""] : []));
    this.showStats();
  }

  showStats() {
    for (const [name, node] of this.nodes) {
      const stats = this.stats.get(name);
      const used = /** @type {HTMLElement} */ (node.querySelector(".used"));
      used.textContent = stats ? `${(stats.prompt_tokens + stats.completion_tokens).toLocaleString("en")} tokens` : "";
    }
    if (this.open) this.showDetails(this.open);
  }

  /** @param {string} name */
  toggle(name) {
    const isOpen = this.open === name;
    this.open = isOpen ? null : name;
    for (const [one, node] of this.nodes) node.setAttribute("aria-expanded", String(one === this.open));
    if (this.open) this.showDetails(name);
    else this.details.hidden = true;
  }

  /** @param {string} name */
  showDetails(name) {
    const agent = this.definition.agents[name];
    const stats = this.stats.get(name);
    /** @type {[string, any][]} */
    const facts = [
      ["Model", agent.model ?? [...(stats?.models ?? [])].join(", ")],
      ["Tools", (agent.tools ?? []).length && h("span", { class: "chips" }, ...agent.tools.map((/** @type {string} */ one) => h("code", {}, one)))],
      ["Handoffs", (agent.handoffs ?? []).length && h("ul", {}, ...agent.handoffs.map((/** @type {any} */ one) => h("li", {}, h("b", {}, one.to), one.when ? ` – ${one.when}` : "")))],
      ["Usage", stats ? `${formatUsage(stats)}, ${stats.calls} model ${stats.calls === 1 ? "call" : "calls"}` : "Not used in this conversation"],
      ["Cost", stats?.cost !== undefined && formatCost(stats.cost)],
      ["Time", stats && formatDuration(stats.seconds)],
    ];
    this.details.className = `details ${colourClass(name)}`;
    fill(
      this.details,
      h("header", {}, h("h3", {}, name), iconButton("close", "Close details", () => this.toggle(name))),
      agent.description && h("p", { class: "description" }, agent.description),
      h("dl", {}, ...facts.filter(([, value]) => value).flatMap(([label, value]) => [h("dt", {}, label), h("dd", {}, value)])),
      agent.instructions && h("details", { class: "instructions" }, h("summary", {}, icon("chevronRight"), "Instructions"), h("div", { class: "plain", tabindex: "0" }, agent.instructions)),
    );
    this.details.hidden = false;
  }
}

/**
 * Tokens, calls and time of each agent, from the `usage` and tool events of the turns.
 * @param {any[]} turns
 * @returns {Map<string, any>}
 */
export function agentStats(turns) {
  /** @type {Map<string, any>} */
  const all = new Map();
  const of = (/** @type {string} */ name) => {
    let found = all.get(name);
    if (!found) all.set(name, (found = { prompt_tokens: 0, completion_tokens: 0, calls: 0, seconds: 0, models: new Set() }));
    return found;
  };
  for (const turn of turns) {
    for (const { type, agent, data } of turn.events) {
      if (type === "usage") {
        const stats = of(agent);
        stats.prompt_tokens += data.usage?.prompt_tokens ?? 0;
        stats.completion_tokens += data.usage?.completion_tokens ?? 0;
        if (typeof data.cost === "number") stats.cost = (stats.cost ?? 0) + data.cost;
        stats.calls += 1;
        stats.seconds += data.seconds ?? 0;
        stats.models.add(data.model);
      } else if (type === "tool.completed" || type === "tool.failed") of(agent).seconds += data.seconds ?? 0;
    }
  }
  return all;
}

/** Rows by distance from the entry agent, two agents a row. @param {any} definition */
function layout({ entry, agents }) {
  const names = Object.keys(agents);
  /** @type {Map<string, number>} */
  const depth = new Map(entry in agents ? [[entry, 0]] : []);
  for (const queue = [...depth.keys()]; queue.length; ) {
    const name = /** @type {string} */ (queue.shift());
    for (const { to } of agents[name].handoffs ?? []) {
      if (!(to in agents) || depth.has(to)) continue;
      depth.set(to, /** @type {number} */ (depth.get(name)) + 1);
      queue.push(to);
    }
  }
  const last = Math.max(0, ...depth.values());
  for (const name of names) if (!depth.has(name)) depth.set(name, last + 1);
  /** @type {Map<string, {x: number, y: number}>} */
  const places = new Map();
  let y = MARGIN;
  for (let level = 0; level <= last + 1; level++) {
    const row = names.filter((name) => depth.get(name) === level);
    for (let first = 0; first < row.length; first += 2) {
      const pair = row.slice(first, first + 2);
      const width = pair.length * NODE.width + (pair.length - 1) * GAP.x;
      pair.forEach((name, index) => places.set(name, { x: (WIDTH - width) / 2 + index * (NODE.width + GAP.x), y }));
      y += NODE.height + GAP.y;
    }
  }
  return places;
}

/** A curve between two nodes, offset from the edge in the other direction. @param {{x: number, y: number}} from @param {{x: number, y: number}} to @param {boolean} hasReturn */
function edge(from, to, hasReturn) {
  const centre = (/** @type {{x: number, y: number}} */ { x, y }) => ({ x: x + NODE.width / 2, y: y + NODE.height / 2 });
  const a = centre(from);
  const b = centre(to);
  if (a.y === b.y) {
    const right = b.x > a.x;
    const shift = hasReturn ? (right ? -9 : 9) : 0;
    const start = { x: right ? from.x + NODE.width : from.x, y: a.y + shift };
    const end = { x: right ? to.x - 4 : to.x + NODE.width + 4, y: b.y + shift };
    return `M${start.x} ${start.y}L${end.x} ${end.y}`;
  }
  const down = b.y > a.y;
  if (Math.abs(b.y - a.y) > NODE.height + GAP.y && Math.abs(b.x - a.x) < NODE.width) {
    // Around the nodes between them.
    const side = down ? 0 : NODE.width;
    const out = (down ? -1 : 1) * 40;
    return `M${from.x + side} ${a.y}C${from.x + side + out} ${a.y} ${to.x + side + out} ${b.y} ${to.x + side + Math.sign(out) * 4} ${b.y}`;
  }
  const shift = hasReturn ? (down ? -11 : 11) : 0;
  const start = { x: a.x + shift + (b.x - a.x) * 0.16, y: down ? from.y + NODE.height : from.y };
  const end = { x: b.x + shift + (a.x - b.x) * 0.16, y: down ? to.y - 4 : to.y + NODE.height + 4 };
  const bend = (end.y - start.y) / 2;
  return `M${start.x} ${start.y}C${start.x} ${start.y + bend} ${end.x} ${end.y - bend} ${end.x} ${end.y}`;
}

function arrowHead() {
  const marker = document.createElementNS(SVG, "marker");
  const attributes = { id: "arrow", viewBox: "0 0 8 8", refX: "5", refY: "4", markerWidth: "6", markerHeight: "6", orient: "auto" };
  for (const [name, value] of Object.entries(attributes)) marker.setAttribute(name, value);
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", "M1 1L6 4L1 7");
  marker.append(path);
  const definitions = document.createElementNS(SVG, "defs");
  definitions.append(marker);
  return definitions;
}

/** Let a name break where a word begins. @param {string} name */
function breakable(name) {
  return name.split(/(?<=[a-z0-9_.-])(?=[A-Z])|(?<=[_.-])/).flatMap((part, index) => (index ? [document.createElement("wbr"), part] : [part]));
}
