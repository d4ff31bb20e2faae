// The teams of the server and the picker in the header.

import { setTeamAgents } from "./agents.js";
import { requestJson } from "./api.js";
import { byId, h } from "./dom.js";
import { persistent } from "./storage.js";

const CHOSEN = "handoff.team";

export class Teams {
  constructor() {
    this.select = byId("team");
    /** @type {any[]} */
    this.models = [];
    /** @type {Map<string, Promise<any>>} */
    this.definitions = new Map();
    this.select.addEventListener("change", () => {
      persistent.set(CHOSEN, this.select.value);
      this.updateColours();
    });
  }

  async load() {
    // Passthrough models have no conversations, so the page does not offer them.
    const listed = (await requestJson("/v1/models", { headers: { "X-Handoff-Events": "all" } })).data;
    this.models = listed.filter((/** @type {any} */ one) => one.handoff);
    this.definitions.clear();
    const wanted = this.select.value || persistent.get(CHOSEN);
    const teams = this.models.filter((one) => !one.id.includes("/"));
    const groups = [h("optgroup", { label: "Teams" }, ...teams.map(option))];
    for (const team of teams) {
      const agents = this.models.filter((one) => one.id.startsWith(`${team.id}/`));
      if (agents.length > 1) groups.push(h("optgroup", { label: `Agents of ${team.id}` }, ...agents.map(option)));
    }
    this.select.replaceChildren(...groups);
    if (wanted && this.find(wanted)) this.select.value = wanted;
    this.updateColours();
  }

  /** @param {string} id */
  find(id) {
    return this.models.find((one) => one.id === id);
  }

  updateColours() {
    const id = this.select.value;
    const whole = this.find(id.split("/")[0]) ?? this.chosen;
    setTeamAgents(whole?.handoff?.agents ?? []);
  }

  get chosen() {
    return this.find(this.select.value);
  }

  /** @param {string} id */
  choose(id) {
    if (this.find(id)) this.select.value = id;
    this.updateColours();
  }

  get examples() {
    return /** @type {string[]} */ (this.chosen?.handoff?.examples ?? []);
  }

  /** Agents, handoffs and tools of a team. @param {any} model @returns {Promise<any>} */
  definition(model) {
    let found = this.definitions.get(model.id);
    if (!found) {
      found = loadDefinition(model);
      this.definitions.set(model.id, found);
    }
    return found;
  }
}

/** @param {any} model @returns {Promise<{entry: string, agents: Record<string, any>}>} */
async function loadDefinition(model) {
  const [id, only] = model.id.split("/");
  const names = /** @type {string[]} */ (model.handoff.agents);
  const team = await requestJson(`/v1/teams/${encodeURIComponent(id)}`).catch(() => null);
  /** @type {Record<string, any>} */
  let agents = team?.agents ?? {};
  if (!team) {
    // An agent of the caller, with the agents that it hands over to.
    const found = await Promise.all(names.map((name) => requestJson(`/v1/agents/${encodeURIComponent(name)}`).catch(() => ({}))));
    agents = Object.fromEntries(names.map((name, index) => [name, found[index]]));
  }
  if (only) agents = { [only]: { ...agents[only], handoffs: [] } };
  for (const name of names) agents[name] ??= {};
  return { entry: model.handoff.entry, agents };
}

/** @param {any} model */
function option(model) {
  return h("option", { value: model.id }, model.name || model.id);
}
