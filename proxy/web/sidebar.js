// The list of conversations: search, date groups, pins, rename and delete.

import { ApiError, request, requestJson } from "./api.js";
import { askForTitle, confirmDeletion, openDialog } from "./dialogs.js";
import { announce, byId, h, iconButton } from "./dom.js";
import { icon } from "./icons.js";
import { hasAutomaticTitles, suggestTitle } from "./titles.js";

const PAGE_SIZE = 40;
const DAY = 86_400_000;
const relativeTime = new Intl.RelativeTimeFormat("en", { numeric: "auto" });

export class Sidebar {
  /** @param {{onopen: (id: string) => void, ondeleted: (id: string) => void, onerror: (error: unknown) => void}} actions */
  constructor(actions) {
    this.actions = actions;
    this.list = byId("conversations");
    /** @type {any[]} */
    this.known = [];
    this.current = /** @type {string | null} */ (null);
    /** The id of the last conversation of the newest page. */
    this.last = "";
    this.requests = 0;
    /** The search text of the list. */
    this.searched = "";
    this.loading = Promise.resolve();
    byId("more").addEventListener("click", () => this.load(true));
    byId("search").addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => this.searchKey(event));
    this.list.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => this.listKey(event));
    let timer = 0;
    byId("search").addEventListener("input", () => {
      clearTimeout(timer);
      timer = window.setTimeout(() => this.load(), 200);
    });
  }

  /** Load the list; `loading` is the newest request. @param {boolean} [isNextPage] whether to append to the list */
  load(isNextPage = false) {
    return (this.loading = this.loadPage(isNextPage));
  }

  /** @param {boolean} isNextPage */
  async loadPage(isNextPage) {
    const number = ++this.requests;
    const query = new URLSearchParams({ limit: String(PAGE_SIZE), sort: "updated_at" });
    const text = byId("search").value.trim();
    if (text) query.set("search", text);
    if (isNextPage && this.last) query.set("after", this.last);
    const pinsQuery = new URLSearchParams({ limit: "100", sort: "updated_at", "metadata[pinned]": "true" });
    let page;
    let pinned;
    try {
      // Pinned conversations are shown first, however old they are.
      [page, pinned] = await Promise.all([requestJson(`/v1/conversations?${query}`), isNextPage || text ? null : requestJson(`/v1/conversations?${pinsQuery}`)]);
    } catch (error) {
      this.actions.onerror(error);
      return;
    }
    // A response to an older request arrived after a newer request was sent.
    if (number !== this.requests) return;
    if (page.data.length) this.last = page.data[page.data.length - 1].id;
    const known = new Map(isNextPage ? this.known.map((one) => [one.id, one]) : []);
    for (const one of [...(pinned?.data ?? []), ...page.data]) if (one.handoff.turns || one.metadata.title) known.set(one.id, one);
    this.known = [...known.values()];
    this.searched = text;
    byId("more").hidden = !page.has_more;
    this.show();
    if (text) announce(`${this.known.length} conversations found`);
  }

  /** Enter opens the first result, the down arrow moves to it, and Escape shows all conversations. @param {KeyboardEvent} event */
  searchKey(event) {
    const first = /** @type {HTMLElement | null} */ (this.list.querySelector("a"));
    if (event.key === "ArrowDown") first?.focus();
    else if (event.key === "Enter" && byId("search").value) {
      // The list may be that of an earlier text.
      this.load().then(() => /** @type {HTMLElement | null} */ (this.list.querySelector("a"))?.click());
    } else if (event.key === "Escape" && byId("search").value) {
      byId("search").value = "";
      this.load();
    } else return;
    event.preventDefault();
    event.stopPropagation();
  }

  /** Arrow keys move between conversations. @param {KeyboardEvent} event */
  listKey(event) {
    if (event.key !== "ArrowDown" && event.key !== "ArrowUp") return;
    const links = [...this.list.querySelectorAll("a")];
    const at = links.indexOf(/** @type {any} */ (document.activeElement?.closest("[data-id]")?.querySelector("a")));
    const next = at + (event.key === "ArrowDown" ? 1 : -1);
    event.preventDefault();
    (next < 0 ? byId("search") : links[Math.min(next, links.length - 1)])?.focus();
  }

  /** @param {string | null} id */
  mark(id) {
    this.current = id;
    this.show();
  }

  titleOf(/** @type {string | null} */ id) {
    return this.known.find((one) => one.id === id)?.handoff.title ?? "";
  }

  show() {
    const isSearch = Boolean(byId("search").value);
    /** @type {HTMLElement[]} */
    const rows = [];
    let group = "";
    const sorted = [...this.known].sort((a, b) => (isSearch ? 0 : Number(isPinned(b)) - Number(isPinned(a))) || b.handoff.updated_at - a.handoff.updated_at);
    for (const one of sorted) {
      const name = isSearch ? "" : isPinned(one) ? "Pinned" : dateGroup(one.handoff.updated_at * 1000);
      if (name && name !== group) rows.push(h("li", { class: "group" }, name));
      group = name;
      rows.push(this.row(one));
    }
    const focused = this.focusedControl();
    this.list.replaceChildren(...(rows.length ? rows : [h("li", { class: "empty" }, isSearch ? "No results." : "No conversations yet.")]));
    if (focused) this.controls(focused.id)[focused.index]?.focus({ preventScroll: true });
  }

  /** @param {string} id of a conversation @returns {HTMLElement[]} the link and the buttons of its row */
  controls(id) {
    return [...this.list.querySelectorAll(`[data-id="${CSS.escape(id)}"] :is(a, button)`)];
  }

  /** The control in the list that has the focus, which a new list would lose. @returns {{id: string, index: number} | null} */
  focusedControl() {
    const row = /** @type {HTMLElement | null} */ (this.list.contains(document.activeElement) ? document.activeElement?.closest("[data-id]") : null);
    const id = row?.dataset.id;
    return id ? { id, index: this.controls(id).indexOf(/** @type {HTMLElement} */ (document.activeElement)) } : null;
  }

  /** @param {any} one */
  row(one) {
    const { title, agent, updated_at: at, excerpt } = one.handoff;
    const name = title || "Untitled";
    const link = h(
      "a",
      { href: `#${encodeURIComponent(one.id)}`, "aria-current": one.id === this.current && "page", title: name },
      h("span", { class: "title" }, name),
      excerpt && h("span", { class: "excerpt" }, ...marked(excerpt, this.searched)),
      h("span", { class: "about" }, [agent, relative(at)].filter(Boolean).join(" · ")),
    );
    const pin = isPinned(one) ? "Unpin" : "Pin";
    return h(
      "li",
      { class: one.id === this.current ? "current" : "", "data-id": one.id },
      link,
      h(
        "span",
        { class: "row-actions" },
        iconButton(isPinned(one) ? "pinned" : "pin", `${pin} ${name}`, () => this.update(one, { pinned: isPinned(one) ? null : "true" })),
        iconButton("edit", `Rename ${name}`, () => this.rename(one)),
        iconButton("trash", `Delete ${name}`, () => this.remove(one)),
        iconButton("more", `Actions for ${name}`, () => this.showActions(one), { class: "icon-button more" }),
      ),
    );
  }

  /** The actions of a row, for screens without room for three buttons. @param {any} one */
  async showActions(one) {
    /** @type {(() => unknown) | undefined} */
    let action;
    const choice = (/** @type {any} */ name, /** @type {string} */ label, /** @type {() => unknown} */ chosen) =>
      h("button", { type: "button", onclick: () => ((action = chosen), byId("dialog").close()) }, icon(name), label);
    await openDialog(one.handoff.title || "Untitled", [
      h(
        "div",
        { class: "choices stacked" },
        choice("pin", isPinned(one) ? "Unpin" : "Pin", () => this.update(one, { pinned: isPinned(one) ? null : "true" })),
        choice("edit", "Rename", () => this.rename(one)),
        choice("trash", "Delete", () => this.remove(one)),
      ),
    ]);
    await action?.();
  }

  /** @param {any} one @param {Record<string, string | null>} changes null removes the entry */
  async update(one, changes) {
    // The metadata may have changed since `one` was listed, for example while a title was written.
    const { metadata: known } = this.known.find(({ id }) => id === one.id) ?? one;
    const metadata = Object.fromEntries(Object.entries({ ...known, ...changes }).filter(([, value]) => value !== null));
    try {
      await request(`/v1/conversations/${encodeURIComponent(one.id)}`, { method: "POST", body: { metadata } });
      await this.load();
    } catch (error) {
      this.actions.onerror(error);
    }
  }

  /**
   * Give a conversation a title after its first turn, unless it has one. Without a title the list shows the beginning of the
   * first message.
   * @param {string | null} id
   */
  async addTitle(id) {
    const one = this.known.find((conversation) => conversation.id === id);
    if (!one || one.handoff.turns !== 1 || one.metadata?.title || !hasAutomaticTitles()) return;
    // A title is an extra: an error of the side model is not shown.
    const title = await suggestTitle(one).catch(() => "");
    if (title) await this.update(one, { title });
  }

  /** @param {any} one */
  async rename(one) {
    const title = await askForTitle(one.handoff.title, () => suggestTitle(one));
    if (title) await this.update(one, { title });
  }

  /** @param {any} one */
  async remove(one) {
    const text = `“${one.handoff.title || "Untitled"}” and all its messages are deleted. This cannot be undone.`;
    if (!(await confirmDeletion("Delete conversation?", text))) return;
    try {
      await request(`/v1/conversations/${encodeURIComponent(one.id)}`, { method: "DELETE" });
    } catch (error) {
      if (!(error instanceof ApiError) || error.status !== 404) {
        this.actions.onerror(error);
        return;
      }
    }
    announce("Conversation deleted");
    this.actions.ondeleted(one.id);
    await this.load();
  }
}

/** @param {any} one */
const isPinned = (one) => one.metadata?.pinned === "true";

/** Mark the words of a search in a text. @param {string} text @param {string} words */
function marked(text, words) {
  const line = words.replace(/\s+/g, " ");
  const at = text.toLowerCase().indexOf(line.toLowerCase());
  if (at < 0) return [text];
  const end = at + line.length;
  return [text.slice(0, at), h("mark", {}, text.slice(at, end)), text.slice(end)];
}

/** @param {number} time in milliseconds */
function dateGroup(time) {
  const today = new Date().setHours(0, 0, 0, 0);
  if (time >= today) return "Today";
  if (time >= today - DAY) return "Yesterday";
  if (time >= today - 7 * DAY) return "Previous 7 days";
  if (time >= today - 30 * DAY) return "Previous 30 days";
  return new Date(time).toLocaleDateString("en", { month: "long", year: "numeric" });
}

/** @param {number} at seconds since the epoch */
function relative(at) {
  const seconds = at - Date.now() / 1000;
  /** @type {[Intl.RelativeTimeFormatUnit, number][]} */
  const units = [["day", 86400], ["hour", 3600], ["minute", 60]];
  for (const [unit, size] of units) if (-seconds >= size) return relativeTime.format(Math.trunc(seconds / size), unit);
  return "just now";
}
