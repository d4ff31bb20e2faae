// One conversation as it is shown: the turns on the way to one end of its tree, the ways that branch off, and the answer
// that is coming.

import { Trouble, ask, call, chunksOf, eventsOf, streamOf } from "./api.js";
import { byId, copyButton, h, tell } from "./dom.js";
import { timelineOf } from "./timeline.js";
import { settleApproval, TurnView } from "./turnview.js";

/** Turns that nothing can follow; shown only where nothing else came after them. */
const LOST = new Set(["failed", "interrupted"]);

/** @param {any} turn */
const isLost = (turn) => LOST.has(turn.status) || (turn.status === "cancelled" && !turn.answer.length);

export class Chat {
  /** @param {{team: () => string, onfloor: (agent: string) => void, onturn: () => void, onbusy: (busy: boolean) => void,
   *   ontrouble: (error: unknown) => void, onbegun: (id: string) => void}} actions */
  constructor(actions) {
    this.actions = actions;
    this.list = byId("turns");
    this.scroll = byId("scroll");
    /** @type {string | null} */
    this.id = null;
    /** @type {any[]} */
    this.turns = [];
    /** @type {string | null} */
    this.end = null;
    /** @type {AbortController | null} */
    this.reading = null;
    /** @type {string | null} */
    this.running = null;
    this.follows = true;
    this.scroll.addEventListener("scroll", () => {
      const { scrollTop, scrollHeight, clientHeight } = this.scroll;
      this.follows = scrollHeight - scrollTop - clientHeight < 90;
      byId("to-end").hidden = this.follows;
    });
    byId("to-end").addEventListener("click", () => this.toEnd());
    new ResizeObserver(() => this.follows && this.toEnd()).observe(this.list);
  }

  // --- showing what is kept ---

  /** @param {string | null} id */
  async open(id) {
    this.leave();
    this.id = id;
    this.turns = [];
    this.end = null;
    this.list.replaceChildren();
    this.follows = true;
    if (id) await this.refresh();
  }

  /** Stop reading; a turn that runs goes on without us. */
  leave() {
    this.reading?.abort();
    this.reading = null;
    this.running = null;
    this.actions.onbusy(false);
  }

  /** Read the tree anew. @param {string} [end] the turn to be shown last, if not the conversation's head */
  async refresh(end) {
    const id = this.id;
    const tree = await call(`/v1/conversations/${encodeURIComponent(/** @type {string} */ (id))}/turns`);
    if (id !== this.id) return;
    this.turns = tree.data;
    const newest = this.turns[this.turns.length - 1];
    const isOpen = newest && (newest.status === "running" || (isLost(newest) && !end));
    this.end = end && this.turn(end) ? end : isOpen ? newest.id : tree.head_id;
    this.show();
    const running = this.turns.find((turn) => turn.status === "running");
    if (running && running.id === this.end) this.attach(running.id, this.list.lastElementChild);
    const model = newest?.model;
    if (model) this.actions.onturn();
  }

  /** @param {string | null} id */
  turn(id) {
    return this.turns.find((turn) => turn.id === id);
  }

  get model() {
    const named = this.turns.filter((turn) => turn.model);
    return named[named.length - 1]?.model;
  }

  get path() {
    const found = [];
    for (let turn = this.turn(this.end); turn; turn = this.turn(turn.parent_id)) found.unshift(turn);
    return found;
  }

  /** The turns that begin where this one does, and can be stepped between. @param {any} turn */
  siblings(turn) {
    return this.turns.filter((one) => one.parent_id === turn.parent_id && (!isLost(one) || one.id === turn.id));
  }

  show() {
    const path = this.path;
    this.list.replaceChildren(...path.map((turn) => this.item(turn)));
    const last = path[path.length - 1];
    this.actions.onfloor(last?.agent ?? "");
    this.toEnd();
    this.settleApprovals().catch((error) => this.actions.ontrouble(error));
  }

  /** What was decided since it was asked for, here or elsewhere, has no buttons any more. */
  async settleApprovals() {
    const cards = [...this.list.querySelectorAll(".approval:has(.buttons)")];
    if (!cards.length) return;
    const query = new URLSearchParams({ conversation_id: this.id ?? "", status: "pending", limit: "100" });
    const open = new Set((await call(`/v1/approvals?${query}`)).data.map((/** @type {any} */ one) => one.id));
    for (const card of cards) {
      const id = /** @type {HTMLElement} */ (card).dataset.approval ?? "";
      if (open.has(id)) continue;
      // One that is gone was deleted with its call.
      const approval = await call(`/v1/approvals/${encodeURIComponent(id)}`).catch(() => ({ status: "expired" }));
      settleApproval(card, approval.status);
    }
  }

  /** @param {any} turn */
  item(turn) {
    const view = this.view();
    for (const { type, agent, data } of turn.events) view.add({ ...data, type, agent });
    if (!turn.events.length) this.tellAnswer(view, turn);
    if (turn.status === "interrupted") view.fail("The server was stopped before this was answered.");
    const item = h("li", { class: "turn" }, this.asked(turn), view.element);
    if (turn.status !== "running") item.append(this.below(turn, view));
    return item;
  }

  view() {
    const view = new TurnView({ decide: (id, decision, card) => this.decide(id, decision, card) });
    view.onfloor = (agent) => this.actions.onfloor(agent);
    return view;
  }

  /** @param {TurnView} view @param {any} turn */
  tellAnswer(view, turn) {
    for (const { agent, content } of turn.answer) view.add({ type: "text.delta", agent, text: textOf(content) });
    if (turn.status !== "running") view.add({ type: `turn.${turn.status}`, finish_reason: turn.finish_reason });
  }

  /** What the person said. @param {any} turn */
  asked(turn) {
    const said = turn.input.filter((/** @type {any} */ one) => one.role === "user");
    if (!said.length) return null;
    const box = h("div", { class: "mine" });
    const words = said.map((/** @type {any} */ one) => textOf(one.content)).join("\n\n");
    const edit = h("button", { type: "button", class: "quiet late", onclick: () => this.edit(turn, box, words) }, "Edit");
    box.append(
      h("span", { class: "hidden" }, "You:"),
      h("div", { class: "words" }, words),
      h("div", { class: "actions" }, this.stepper(turn), copyButton("Copy", () => words), edit),
    );
    return box;
  }

  /** Step between branches. @param {any} turn */
  stepper(turn) {
    const all = this.siblings(turn);
    if (all.length < 2) return null;
    const at = all.findIndex((one) => one.id === turn.id);
    const go = (/** @type {number} */ to) => () => {
      if (this.running) return;
      this.end = this.newestBehind(all[to]);
      this.show();
      tell(`Version ${to + 1} of ${all.length}`);
    };
    return h(
      "span",
      { class: "branches", role: "group", "aria-label": "Versions" },
      h("button", { type: "button", class: "quiet", "aria-label": "Version before", disabled: at === 0, onclick: go(at - 1) }, "‹"),
      `${at + 1}/${all.length}`,
      h("button", { type: "button", class: "quiet", "aria-label": "Next version", disabled: at === all.length - 1, onclick: go(at + 1) }, "›"),
    );
  }

  /** @param {any} turn */
  newestBehind(turn) {
    for (let last = turn; ; ) {
      const next = this.turns.filter((one) => one.parent_id === last.id && !isLost(one));
      if (!next.length) return last.id;
      last = next[next.length - 1];
    }
  }

  /** @param {any} turn @param {TurnView} view */
  below(turn, view) {
    const place = h("div");
    const showTimeline = async (/** @type {Event} */ event) => {
      const button = /** @type {HTMLElement} */ (event.currentTarget);
      if (place.childElementCount) {
        place.replaceChildren();
        button.setAttribute("aria-expanded", "false");
        return;
      }
      try {
        place.replaceChildren(await timelineOf(turn.id));
        button.setAttribute("aria-expanded", "true");
      } catch (error) {
        this.actions.ontrouble(error);
      }
    };
    const buttons = [];
    if (view.text.trim()) buttons.push(copyButton("Copy", () => view.text.trim()));
    if (turn.input.length) {
      const words = isLost(turn) ? "Try again" : "Answer anew";
      buttons.push(h("button", { type: "button", class: "quiet late", onclick: () => this.again(turn) }, words));
    }
    if (turn.events.length) {
      buttons.push(
        h("button", { type: "button", class: "quiet late", "aria-expanded": "false", onclick: showTimeline }, "Timeline"),
      );
    }
    return h("div", {}, h("div", { class: "actions" }, ...buttons), place);
  }

  // --- saying something ---

  /** @param {string} words */
  say(words) {
    const last = this.path[this.path.length - 1];
    const parent = last && isLost(last) ? last.parent_id : this.end;
    return this.send([{ role: "user", content: words }], parent ?? "root");
  }

  /** @param {any} turn */
  again(turn) {
    if (this.running) return undefined;
    return this.send(turn.input, turn.parent_id ?? "root", turn);
  }

  /** @param {any} turn @param {HTMLElement} box @param {string} words */
  edit(turn, box, words) {
    if (this.running) return;
    const input = h("textarea", { "aria-label": "Edit the message" });
    input.value = words;
    const leave = () => box.replaceWith(/** @type {Node} */ (this.asked(turn)));
    const send = () => {
      if (input.value.trim()) this.send([{ role: "user", content: input.value }], turn.parent_id ?? "root", turn);
    };
    input.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
      if (event.key === "Escape") leave();
      else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        send();
      } else return;
      event.stopPropagation();
    });
    box.replaceChildren(
      input,
      h(
        "div",
        { class: "actions" },
        h("button", { type: "button", class: "quiet", onclick: leave }, "Cancel"),
        h("button", { type: "button", class: "main", onclick: send }, "Send"),
      ),
    );
    input.focus();
  }

  /**
   * Ask, behind a turn.
   * @param {any[]} messages
   * @param {string} parent a turn's id, or "root"
   * @param {any} [replaced] the turn in whose place this one is shown
   */
  async send(messages, parent, replaced) {
    const id = (this.id ??= `page-${crypto.randomUUID()}`);
    const isNew = !this.turns.length;
    if (replaced) this.cutBefore(replaced);
    else this.dropLost();
    const turn = { id: "", parent_id: null, input: messages, events: [], answer: [], status: "running", model: "" };
    const item = this.item(turn);
    this.list.append(item);
    this.follows = true;
    this.toEnd();
    if (isNew) this.actions.onbegun(id);
    const signal = this.startReading();
    const begin = () =>
      ask("/v1/chat/completions", {
        method: "POST",
        signal,
        body: { model: this.actions.team(), stream: true, messages },
        headers: {
          "X-Conversation-Id": id,
          "X-Parent-Id": parent,
          "X-On-Disconnect": "detach",
          "X-Handoff-Events": "all",
          "Idempotency-Key": crypto.randomUUID(),
        },
      });
    return this.read(begin, item, null, () => this.send(messages, parent, replaced));
  }

  /** @param {any} turn */
  cutBefore(turn) {
    const at = this.path.findIndex((one) => one.id === turn.id);
    while (at >= 0 && this.list.childElementCount > at) this.list.lastElementChild?.remove();
  }

  dropLost() {
    const path = this.path;
    if (path.length && isLost(path[path.length - 1])) this.list.lastElementChild?.remove();
    while (this.list.childElementCount > path.length) this.list.lastElementChild?.remove();
  }

  /** Go on reading a turn that runs. @param {string} id @param {Element | null} item */
  attach(id, item) {
    const signal = this.startReading();
    this.running = id;
    return this.read(() => streamOf(id, signal), /** @type {HTMLElement} */ (item), id, () => this.refresh(id));
  }

  startReading() {
    this.leave();
    this.reading = new AbortController();
    this.actions.onbusy(true);
    return this.reading.signal;
  }

  /**
   * @param {() => Promise<Response>} begin
   * @param {HTMLElement} item
   * @param {string | null} id
   * @param {() => unknown} again
   */
  async read(begin, item, id, again) {
    const reading = /** @type {AbortController} */ (this.reading);
    const view = this.view();
    item.querySelector(".answer")?.replaceWith(view.element);
    view.begin();
    view.onfloor = (agent) => {
      this.actions.onfloor(agent);
      tell(`${agent} answers`);
    };
    const options = {
      turn: id,
      signal: reading.signal,
      onturn: (/** @type {string} */ turn) => (this.running = turn),
      onlost: () => tell("The connection was lost; trying again"),
    };
    try {
      for await (const chunk of chunksOf(begin, options)) for (const event of eventsOf(chunk)) view.add(event);
      tell("The answer is complete");
    } catch (error) {
      if (reading.signal.aborted) return;
      if (error instanceof Trouble && error.status === 401) this.actions.ontrouble(error);
      const words = error instanceof Error ? error.message : "Something went wrong.";
      view.fail(words, h("button", { type: "button", onclick: again }, "Try again"));
    }
    const turn = this.running;
    this.leave();
    if (turn) await this.refresh(turn).catch((error) => this.actions.ontrouble(error));
    this.actions.onturn();
  }

  async stop() {
    if (!this.reading) return;
    try {
      // Before the first word the answer has no id yet.
      const turn = this.running ?? (await this.runningTurn());
      if (turn) await call(`/v1/chat/completions/${encodeURIComponent(turn)}/cancel`, { method: "POST" });
    } catch (error) {
      this.actions.ontrouble(error);
    }
  }

  async runningTurn() {
    const tree = await call(`/v1/conversations/${encodeURIComponent(/** @type {string} */ (this.id))}/turns`);
    return tree.data.find((/** @type {any} */ turn) => turn.status === "running")?.id;
  }

  /** @param {string} id @param {"approve" | "refuse"} decision @param {HTMLElement} card */
  async decide(id, decision, card) {
    for (const button of card.querySelectorAll("button")) button.disabled = true;
    try {
      const decided = await call(`/v1/approvals/${encodeURIComponent(id)}`, { method: "POST", body: { decision } });
      tell(decision === "approve" ? "Approved" : "Refused");
      await this.refresh(decided.resumed_turn_id ?? this.end ?? undefined);
    } catch (error) {
      for (const button of card.querySelectorAll("button")) button.disabled = false;
      this.actions.ontrouble(error);
    }
  }

  toEnd() {
    this.scroll.scrollTop = this.scroll.scrollHeight;
  }
}

/** @param {any} content */
function textOf(content) {
  if (typeof content === "string") return content;
  const parts = Array.isArray(content) ? content : [];
  return parts.map((part) => part.text ?? part.refusal ?? `[${part.type.replace("_url", "")}]`).join("\n");
}
