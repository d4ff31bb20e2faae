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
    this.requests = 0;
    this.loading = Promise.resolve();
    byId("more").addEventListener("click", () => this.load(true));
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
    const query = new URLSearchParams({ limit: String(PAGE_SIZE) });
    const text = byId("search").value.trim();
    if (text) query.set("search", text);
    if (isNextPage && this.known.length) query.set("after", this.known[this.known.length - 1].id);
    let page;
    try {
      page = await requestJson(`/v1/conversations?${query}`);
    } catch (error) {
      this.actions.onerror(error);
      return;
    }
    // A response to an older request arrived after a newer request was sent.
    if (number !== this.requests) return;
    const found = page.data.filter((/** @type {any} */ one) => one.handoff.turns || one.metadata.title);
    this.known = isNextPage ? [...this.known, ...found] : found;
    byId("more").hidden = !page.has_more;
    this.show();
    if (text) announce(`${this.known.length} conversations found`);
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
    const sorted = isSearch ? this.known : [...this.known].sort((a, b) => Number(isPinned(b)) - Number(isPinned(a)));
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
    const { title, agent, updated_at: at } = one.handoff;
    const name = title || "Untitled";
    const link = h(
      "a",
      { href: `#${encodeURIComponent(one.id)}`, "aria-current": one.id === this.current && "page", title: name },
      h("span", { class: "title" }, name),
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
    const metadata = Object.fromEntries(Object.entries({ ...one.metadata, ...changes }).filter(([, value]) => value !== null));
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
