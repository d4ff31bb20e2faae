// Colours of agents. They follow the order of the team, so that an agent has the same colour after a reload.

const COLOURS = 8;
/** @type {Map<string, number>} */
let positions = new Map();

/** Set the team whose agents are shown. @param {string[]} names in the order of the team */
export function setTeamAgents(names) {
  positions = new Map(names.map((name, index) => [name, index % COLOURS]));
}

/** @param {string} name @returns {string} a class */
export function colourClass(name) {
  let position = positions.get(name);
  if (position === undefined) {
    // An agent that is no longer in the team: the colour depends on the name only.
    position = [...name].reduce((sum, character) => (sum * 31 + (character.codePointAt(0) ?? 0)) % 9973, 7) % COLOURS;
  }
  return `agent-${position}`;
}
