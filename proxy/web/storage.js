// Browser storage of the page: API key, drafts and preferences. If storage is disabled, values last until the page is closed.

const fallback = new Map();

/** @param {() => Storage} area */
function safe(area) {
  return {
    /** @param {string} name @returns {string | null} */
    get(name) {
      try {
        return area().getItem(name);
      } catch {
        return fallback.get(name) ?? null;
      }
    },
    /** @param {string} name @param {string | null} value null and "" remove the entry */
    set(name, value) {
      try {
        if (value) area().setItem(name, value);
        else area().removeItem(name);
      } catch {
        if (value) fallback.set(name, value);
        else fallback.delete(name);
      }
    },
  };
}

export const persistent = safe(() => localStorage);
export const session = safe(() => sessionStorage);

/** Remove the drafts and settings of conversations, which belong to the user of one API key. */
export function removeConversationData() {
  const names = [...fallback.keys()];
  try {
    names.push(...Object.keys(localStorage));
  } catch {
    // Storage is disabled.
  }
  for (const name of names) if (/^handoff\.(draft|settings)\./.test(name)) persistent.set(name, null);
}

const KEY = "handoff.key";

export const apiKey = {
  get: () => session.get(KEY) ?? persistent.get(KEY) ?? "",
  isPersistent: () => Boolean(persistent.get(KEY)),
  /** @param {string} value @param {boolean} isPersistent whether it outlives this tab */
  set(value, isPersistent) {
    session.set(KEY, isPersistent ? null : value);
    persistent.set(KEY, isPersistent ? value : null);
  },
};

/** @param {string | null} conversation */
const draftName = (conversation) => `handoff.draft.${conversation ?? "new"}`;

export const drafts = {
  get: (/** @type {string | null} */ conversation) => persistent.get(draftName(conversation)) ?? "",
  set: (/** @type {string | null} */ conversation, /** @type {string | null} */ text) =>
    persistent.set(draftName(conversation), text),
};
