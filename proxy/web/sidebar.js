// The list of conversations: found, opened, renamed and deleted.

import { Trouble, call } from "./api.js";
import { askForTitle, confirmDeletion } from "./dialogs.js";
import { byId, h, tell } from "./dom.js";

const PAGE = 40;
const when = new Intl.RelativeTimeFormat("en", { numeric: "auto" });

export class Sidebar {
  /** @param {{onopen: (id: string) => void, ondeleted: (id: string) => void, ontrouble: (error: unknown) => void}} actions */
  constructor(actions) {
    this.actions = actions;
    this.list = byId("conversations");
    /** @type {any[]} */
    this.known = [];
    this.current = /** @type {string | null} */ (null);
    this.asked = 0;
    byId("more").addEventListener("click", () => this.load(true));
    let timer = 0;
    byId("search").addEventListener("input", () => {
      clearTimeout(timer);
      timer = window.setTimeout(() => this.load(), 200);
    });
  }

  /** @param {boolean} [goesOn] whether what is shown stays, and more comes behind it */
  async load(goesOn = false) {
    const number = ++this.asked;
    const query = new URLSearchParams({ limit: String(PAGE) });
    const words = byId("search").value.trim();
    if (words) query.set("search", words);
    if (goesOn && this.known.length) query.set("after", this.known[this.known.length - 1].id);
    let page;
    try {
      page = await call(`/v1/conversations?${query}`);
    } catch (error) {
      this.actions.ontrouble(error);
      return;
    }
    // What was asked before has come later than what was asked now.
    if (number !== this.asked) return;
    const found = page.data.filter((/** @type {any} */ one) => one.handoff.turns || one.metadata.title);
    this.known = goesOn ? [...this.known, ...found] : found;
    byId("more").hidden = !page.has_more;
    this.show();
    if (words) tell(`${this.known.length} conversations found`);
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
    const rows = this.known.map((one) => this.row(one));
    const none = byId("search").value ? "Nothing was found." : "Nothing was said yet.";
    this.list.replaceChildren(...(rows.length ? rows : [h("li", { class: "none" }, none)]));
  }

  /** @param {any} one */
  row(one) {
    const { title, agent, updated_at: at } = one.handoff;
    const name = title || "Without words";
    const link = h(
      "a",
      { href: `#${encodeURIComponent(one.id)}`, "aria-current": one.id === this.current && "page" },
      h("span", { class: "title" }, name),
      h("span", { class: "about" }, [agent, ago(at)].filter(Boolean).join(" · ")),
    );
    return h(
      "li",
      { class: one.id === this.current && "current" },
      link,
      h(
        "span",
        { class: "row-actions" },
        h("button", { class: "icon quiet", "aria-label": `Rename ${name}`, title: "Rename", onclick: () => this.rename(one) }, "✎"),
        h("button", { class: "icon quiet", "aria-label": `Delete ${name}`, title: "Delete", onclick: () => this.remove(one) }, "🗑"),
      ),
    );
  }

  /** @param {any} one */
  async rename(one) {
    const title = await askForTitle(one.handoff.title);
    if (!title) return;
    try {
      const path = `/v1/conversations/${encodeURIComponent(one.id)}`;
      await call(path, { method: "POST", body: { metadata: { ...one.metadata, title } } });
      await this.load();
    } catch (error) {
      this.actions.ontrouble(error);
    }
  }

  /** @param {any} one */
  async remove(one) {
    if (!(await confirmDeletion(one.handoff.title || "Without words"))) return;
    try {
      await call(`/v1/conversations/${encodeURIComponent(one.id)}`, { method: "DELETE" });
    } catch (error) {
      if (!(error instanceof Trouble) || error.status !== 404) {
        this.actions.ontrouble(error);
        return;
      }
    }
    tell("The conversation was deleted");
    this.actions.ondeleted(one.id);
    await this.load();
  }
}

/** @param {number} at seconds since the epoch */
function ago(at) {
  const seconds = at - Date.now() / 1000;
  /** @type {[Intl.RelativeTimeFormatUnit, number][]} */
  const units = [["day", 86400], ["hour", 3600], ["minute", 60]];
  for (const [unit, size] of units) if (-seconds >= size) return when.format(Math.trunc(seconds / size), unit);
  return "just now";
}
