// What the browser remembers for this page: the key, what was being written, the colours. Where storage is switched
// off, it is remembered until the page is left.

const lost = new Map();

/** @param {() => Storage} area */
function safe(area) {
  return {
    /** @param {string} name */
    get(name) {
      try {
        return area().getItem(name);
      } catch {
        return lost.get(name) ?? null;
      }
    },
    /** @param {string} name @param {string | null} value null and "" forget it */
    set(name, value) {
      try {
        if (value) area().setItem(name, value);
        else area().removeItem(name);
      } catch {
        if (value) lost.set(name, value);
        else lost.delete(name);
      }
    },
  };
}

export const forGood = safe(() => localStorage);
export const forNow = safe(() => sessionStorage);

const KEY = "handoff.key";

export const key = {
  get: () => forNow.get(KEY) ?? forGood.get(KEY) ?? "",
  isKept: () => Boolean(forGood.get(KEY)),
  /** @param {string} value @param {boolean} stays whether it outlives this tab */
  set(value, stays) {
    forNow.set(KEY, stays ? null : value);
    forGood.set(KEY, stays ? value : null);
  },
};

/** @param {string | null} conversation */
const draftOf = (conversation) => `handoff.draft.${conversation ?? "new"}`;

export const draft = {
  get: (/** @type {string | null} */ conversation) => forGood.get(draftOf(conversation)) ?? "",
  set: (/** @type {string | null} */ conversation, /** @type {string} */ words) =>
    forGood.set(draftOf(conversation), words),
};
