// The teams to choose from, as the server lists its models.

import { meet } from "./agents.js";
import { call } from "./api.js";
import { byId, h } from "./dom.js";
import { forGood } from "./memory.js";

const CHOSEN = "handoff.team";

/** What people may say first to a team that comes with the server. */
const EXAMPLES = {
  "acme-support": [
    "My rocket-powered unicycle exploded. I want my money back.",
    "I want to catch a roadrunner. What do you have?",
  ],
  assistant: ["What's the weather in Tokyo and what's 15 + 27?", "What time is it in New York?"],
  "business-insights": ["Generate a monthly business report for our sales performance"],
};

export class Teams {
  constructor() {
    this.select = byId("team");
    /** @type {any[]} */
    this.models = [];
    this.select.addEventListener("change", () => forGood.set(CHOSEN, this.select.value));
  }

  async load() {
    // Models that are served straight through keep no conversations, so there would be nothing to show.
    const listed = (await call("/v1/models", { headers: { "X-Handoff-Events": "all" } })).data;
    this.models = listed.filter((/** @type {any} */ one) => one.handoff);
    const wanted = this.select.value || forGood.get(CHOSEN);
    const teams = this.models.filter((one) => !one.id.includes("/"));
    const groups = [h("optgroup", { label: "Teams" }, ...teams.map(option))];
    for (const team of teams) {
      const agents = this.models.filter((one) => one.id.startsWith(`${team.id}/`));
      if (agents.length > 1) groups.push(h("optgroup", { label: `Of ${team.id}, alone` }, ...agents.map(option)));
    }
    this.select.replaceChildren(...groups);
    if (wanted && this.models.some((one) => one.id === wanted)) this.select.value = wanted;
    this.meetAgents();
  }

  meetAgents() {
    meet(this.chosen?.handoff?.agents ?? []);
  }

  get chosen() {
    return this.models.find((one) => one.id === this.select.value);
  }

  /** @param {string} id */
  choose(id) {
    if (this.models.some((one) => one.id === id)) this.select.value = id;
    this.meetAgents();
  }

  get examples() {
    return /** @type {Record<string, string[]>} */ (EXAMPLES)[this.select.value] ?? [];
  }
}

/** @param {any} model */
function option(model) {
  return h("option", { value: model.id }, model.name || model.id);
}
