// Who speaks: every agent has a colour of its own, the same in a conversation for as long as the page is open.

const COLOURS = 8;
/** @type {Map<string, number>} */
const given = new Map();

/** Give the agents of a team their colours in its order. @param {string[]} names */
export function meet(names) {
  for (const name of names) if (!given.has(name)) given.set(name, given.size % COLOURS);
}

/** @param {string} name @returns {string} a class */
export function colourOf(name) {
  meet([name]);
  return `a${given.get(name)}`;
}
