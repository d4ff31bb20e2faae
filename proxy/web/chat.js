// One conversation: the turns on the path to one leaf of its tree, its other branches, and the answer that is being written.

import { ApiError, chunkEvents, delay, readChunks, request, requestJson, turnStream } from "./api.js";
import { announce, byId, copyButton, formatCost, h, iconButton } from "./dom.js";
import { icon } from "./icons.js";
import { markdownReady } from "./markdown.js";
import { eventsBefore, timeline } from "./timeline.js";
import { settleApproval, TurnView } from "./turn-view.js";

/** Statuses of turns that no other turn continues. */
const FAILED = new Set(["failed", "interrupted"]);

/** @param {any} turn */
const isFailed = (turn) => FAILED.has(turn.status) || (turn.status === "cancelled" && !turn.answer.length);
/** @param {any} turn */
const inputKey = (turn) => JSON.stringify(turn.input.map((/** @type {any} */ one) => [one.role, one.content]));

export class Chat {
  /** @param {{team: () => string, options: () => object, onagent: (agent: string) => void, onturn: () => void,
   *   onbusy: (busy: boolean) => void, onerror: (error: unknown, retry?: () => unknown) => void,
   *   onmodel: (model: string) => void, onevents: (turns: any[]) => void, onevent: (event: any) => void,
   *   onstarted: (id: string) => void, onidle: (isComplete: boolean) => void, oncompare: (turns: any[], turn: any) => void}} actions */
  constructor(actions) {
    this.actions = actions;
    this.list = byId("turns");
    this.scroll = byId("scroll");
    /** @type {string | null} */
    this.id = null;
    /** @type {any[]} */
    this.turns = [];
    /** @type {string | null} */
    this.leaf = null;
    /** @type {AbortController | null} */
    this.reading = null;
    /** @type {AbortController | null} the reading whose turn is about to be stopped */
    this.stopping = null;
    /** @type {string | null} */
    this.running = null;
    /** Messages that the server did not store, with their places. @type {{item: HTMLElement, key: string, parent: string, known: Set<string>}[]} */
    this.unsent = [];
    this.follows = true;
    let lastTop = 0;
    this.scroll.addEventListener("scroll", () => {
      const { scrollTop, scrollHeight, clientHeight } = this.scroll;
      // Content that grows moves the end away without a scroll; only scrolling up ends the following.
      this.follows = scrollHeight - scrollTop - clientHeight < 90 || (this.follows && scrollTop >= lastTop);
      lastTop = scrollTop;
      byId("to-end").hidden = this.follows;
    });
    byId("to-end").addEventListener("click", () => this.scrollToEnd());
    // Also the box: a queued message or a longer draft makes it smaller.
    const resize = new ResizeObserver(() => this.follows && this.scrollToEnd());
    for (const element of [this.list, this.scroll]) resize.observe(element);
  }

  // --- stored turns ---

  /** @param {string | null} id */
  async open(id) {
    this.detach();
    this.id = id;
    this.turns = [];
    this.unsent = [];
    this.leaf = null;
    this.list.replaceChildren();
    this.follows = true;
    this.actions.onagent("");
    this.actions.onevents([]);
    if (id) await this.refresh();
  }

  /** Stop reading; a running turn continues on the server. */
  detach() {
    this.reading?.abort();
    this.reading = null;
    this.running = null;
    this.actions.onbusy(false);
  }

  /** Load the turns. @param {string} [leaf] the turn to show last; by default the head of the conversation */
  async refresh(leaf) {
    const id = this.id;
    const [tree] = await Promise.all([requestJson(`/v1/conversations/${encodeURIComponent(/** @type {string} */ (id))}/turns`), markdownReady]);
    if (id !== this.id) return;
    this.turns = tree.data;
    const newest = this.turns[this.turns.length - 1];
    const isUnfinished = newest && (newest.status === "running" || (isFailed(newest) && !leaf));
    this.leaf = leaf && this.turn(leaf) ? leaf : isUnfinished ? newest.id : tree.head_id;
    if (this.model) this.actions.onmodel(this.model);
    this.show();
    const running = this.turns.find((turn) => turn.status === "running");
    if (running && running.id === this.leaf) this.attach(running.id, this.list.lastElementChild);
    if (newest?.model) this.actions.onturn();
  }

  /** @param {string | null} id */
  turn(id) {
    return this.turns.find((turn) => turn.id === id);
  }

  get model() {
    const named = this.turns.filter((turn) => turn.model);
    return named[named.length - 1]?.model;
  }

  /** @param {string | null} [leaf] @returns {any[]} the turns from the root to `leaf` */
  path(leaf = this.leaf) {
    const found = [];
    for (let turn = this.turn(leaf); turn; turn = this.turn(turn.parent_id)) found.unshift(turn);
    return found;
  }

  /** The path and failed turns next to it, except those whose message was sent again. */
  get visible() {
    const path = this.path();
    /** @type {any[]} */
    const found = [];
    const addFailed = (/** @type {string | null} */ parent, /** @type {any} */ next) => {
      const failed = this.turns.filter(
        (turn) => turn.parent_id === parent && turn !== next && isFailed(turn) && (!next || turn.created_at < next.created_at),
      );
      failed.forEach((turn, index) => {
        const later = failed.slice(index + 1).some((one) => inputKey(one) === inputKey(turn));
        const isResent = path.some((one) => one.created_at > turn.created_at && !isFailed(one) && inputKey(one) === inputKey(turn));
        if (!later && !isResent) found.push(turn);
      });
    };
    let parent = null;
    for (const turn of path) {
      addFailed(parent, turn);
      found.push(turn);
      if (!isFailed(turn)) parent = turn.id;
    }
    if (!path.length || !isFailed(path[path.length - 1])) addFailed(parent, null);
    return found;
  }

  /** The turns with the same parent that can be stepped between. @param {any} turn */
  siblings(turn) {
    return this.turns.filter((one) => one.parent_id === turn.parent_id && (!isFailed(one) || one.id === turn.id));
  }

  show() {
    const turns = this.visible;
    this.list.replaceChildren(...turns.map((turn) => this.item(turn)));
    this.showUnsent();
    this.hideShownDecisions();
    this.actions.onagent(turns[turns.length - 1]?.agent ?? "");
    this.actions.onevents(turns);
    this.scrollToEnd();
    this.settleApprovals().catch((error) => this.actions.onerror(error));
  }

  /** Show messages that failed before the server stored a turn, behind the turn that they followed. */
  showUnsent() {
    const isStored = (/** @type {any} */ turn, /** @type {any} */ one) => isFailed(turn) && !one.known.has(turn.id) && inputKey(turn) === one.key;
    this.unsent = this.unsent.filter((one) => !this.turns.some((turn) => isStored(turn, one)));
    for (const { item, parent } of this.unsent) {
      const previous = this.list.querySelector(`:scope > li[data-turn="${CSS.escape(parent)}"]`);
      if (previous) previous.after(item);
      else if (parent === "root") this.list.prepend(item);
      else this.list.append(item);
    }
  }

  /** A decision is shown at its card, and in the turn that follows only if the card is not in the list. */
  hideShownDecisions() {
    for (const note of this.list.querySelectorAll("[data-decided]")) {
      const id = /** @type {HTMLElement} */ (note).dataset.decided ?? "";
      if (this.list.querySelector(`.approval[data-approval="${CSS.escape(id)}"]`)) note.remove();
    }
  }

  /** Remove the buttons of approvals that were decided by other clients or expired. */
  async settleApprovals() {
    const cards = [...this.list.querySelectorAll(".approval:has(.buttons)")];
    if (!cards.length) return;
    const query = new URLSearchParams({ conversation_id: this.id ?? "", status: "pending", limit: "100" });
    const pending = new Set((await requestJson(`/v1/approvals?${query}`)).data.map((/** @type {any} */ one) => one.id));
    for (const card of cards) {
      const id = /** @type {HTMLElement} */ (card).dataset.approval ?? "";
      if (pending.has(id)) continue;
      const approval = await requestJson(`/v1/approvals/${encodeURIComponent(id)}`).catch(() => ({ status: "expired" }));
      settleApproval(card, approval.status);
    }
  }

  /** @param {any} turn */
  item(turn) {
    const view = this.render(turn);
    const item = h("li", { class: isFailed(turn) ? "turn failed" : "turn", "data-turn": turn.id }, this.userMessage(turn), view.element);
    if (turn.status !== "running") item.append(this.footer(turn, view));
    return item;
  }

  /** Render a stored turn. @param {any} turn @returns {TurnView} */
  render(turn) {
    const view = this.view();
    for (const { type, agent, data } of turn.events) view.add({ ...data, type, agent });
    if (!turn.events.length) this.addStoredAnswer(view, turn);
    if (turn.status === "interrupted") view.fail("The server stopped before this turn was finished.");
    view.closeText();
    return view;
  }

  view() {
    return new TurnView({ decide: (id, decision, card) => this.decide(id, decision, card) });
  }

  /** @param {TurnView} view @param {any} turn */
  addStoredAnswer(view, turn) {
    for (const { agent, content } of turn.answer) view.add({ type: "text.delta", agent, text: plainText(content) });
    if (turn.status !== "running") view.add({ type: `turn.${turn.status}`, finish_reason: turn.finish_reason });
  }

  /** @param {any} turn */
  userMessage(turn) {
    const messages = turn.input.filter((/** @type {any} */ one) => one.role === "user");
    if (!messages.length) return null;
    const box = h("div", { class: "user" });
    const text = messages.map((/** @type {any} */ one) => plainText(one.content)).filter(Boolean).join("\n\n");
    const images = messages.flatMap((/** @type {any} */ one) => imageSources(one.content));
    box.append(
      h("span", { class: "hidden" }, "You:"),
      ...images.map((source) => h("img", { class: "attached", src: source, alt: "Attached image" })),
      text && h("div", { class: "text" }, text),
      h(
        "div",
        { class: "actions" },
        this.stepper(turn),
        copyButton("Copy message", () => text),
        iconButton("edit", "Edit message", () => this.edit(turn, box, text), { "data-edits": true }),
      ),
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
      this.leaf = this.newestLeaf(all[to]);
      this.show();
      announce(`Version ${to + 1} of ${all.length}`);
    };
    return h(
      "span",
      { class: "branches", role: "group", "aria-label": "Versions" },
      iconButton("chevronLeft", "Previous version", go(at - 1), { disabled: at === 0 }),
      h("span", { class: "count" }, `${at + 1}/${all.length}`),
      iconButton("chevronRight", "Next version", go(at + 1), { disabled: at === all.length - 1 }),
      iconButton("columns", "Compare versions", () => this.actions.oncompare(all, turn)),
    );
  }

  /** @param {any} turn */
  newestLeaf(turn) {
    for (let last = turn; ; ) {
      const next = this.turns.filter((one) => one.parent_id === last.id && !isFailed(one));
      if (!next.length) return last.id;
      last = next[next.length - 1];
    }
  }

  /** What is below an answer: actions, usage and the timeline. @param {any} turn @param {TurnView} view */
  footer(turn, view) {
    const place = h("div", { class: "timeline-place" });
    const footer = h("div", { class: "actions" });
    if (isFailed(turn)) {
      footer.append(
        h("span", { class: "hint" }, "Not part of the conversation."),
        h("button", { type: "button", class: "quiet", "data-edits": true, onclick: () => this.retry(turn) }, icon("refresh"), "Try again"),
      );
    } else {
      if (view.text) footer.append(copyButton("Copy response", () => view.text));
      footer.append(iconButton("refresh", "Regenerate", () => this.regenerate(turn), { "data-edits": true }));
    }
    if (turn.events.length) {
      const toggle = iconButton("clock", "Timeline", () => {
        const isOpen = toggle.getAttribute("aria-expanded") === "true";
        toggle.setAttribute("aria-expanded", String(!isOpen));
        place.replaceChildren(...(isOpen ? [] : [timeline(turn, { path: this.path(turn.id), branch: (text, position) => this.branch(turn, text, position) })]));
      }, { "aria-expanded": "false" });
      footer.append(toggle);
    }
    const summary = turnSummary(turn);
    if (summary) footer.append(h("span", { class: "usage" }, summary));
    return h("div", { class: "below" }, footer, place);
  }

  // --- sending ---

  /** @param {string} text @param {any[]} [parts] other content parts, such as images */
  sendText(text, parts = []) {
    const content = parts.length ? [...(text ? [{ type: "text", text }] : []), ...parts] : text;
    const last = this.turn(this.leaf);
    const parent = last && isFailed(last) ? last.parent_id : this.leaf;
    return this.send([{ role: "user", content }], parent ?? "root");
  }

  /** Send the message of a failed turn again, behind what followed it. @param {any} turn */
  retry(turn) {
    if (this.running) return undefined;
    const last = this.turn(this.leaf);
    if (!last || isFailed(last) || last.id === turn.parent_id) return this.regenerate(turn);
    this.list.querySelector(`:scope > li[data-turn="${CSS.escape(turn.id)}"]`)?.remove();
    return this.send(turn.input, last.id);
  }

  /** @param {any} turn */
  regenerate(turn) {
    if (this.running) return undefined;
    return this.send(turn.input, turn.parent_id ?? "root", turn);
  }

  /**
   * Start a branch: another message in place of that of a turn, or behind one of its events.
   * @param {any} turn @param {string} text @param {number | null} [position] of the event
   */
  branch(turn, text, position = null) {
    if (this.running) return undefined;
    const messages = [{ role: "user", content: text }];
    if (position === null) return this.send(messages, turn.parent_id ?? "root", turn);
    const part = { ...turn, id: "", status: "completed", answer: [], events: eventsBefore(turn.events, position) };
    return this.send(messages, `${turn.id}.${position}`, turn, part);
  }

  /** @param {any} turn @param {HTMLElement} box @param {string} text */
  edit(turn, box, text) {
    if (this.running) return;
    const input = h("textarea", { "aria-label": "Edit the message" });
    input.value = text;
    const cancel = () => box.replaceWith(/** @type {Node} */ (this.userMessage(turn)));
    const send = () => {
      if (input.value.trim()) this.branch(turn, input.value);
    };
    input.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
      if (event.key === "Escape") cancel();
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
        { class: "buttons" },
        h("button", { type: "button", onclick: cancel }, "Cancel"),
        h("button", { type: "button", class: "primary", onclick: send }, "Send"),
      ),
    );
    input.focus();
  }

  /**
   * Send messages that follow a turn.
   * @param {any[]} messages
   * @param {string} parent a turn id, or "root"
   * @param {any} [replaced] the turn in whose place the new one is shown
   * @param {any} [part] the part of that turn that stays
   */
  async send(messages, parent, replaced, part) {
    const id = (this.id ??= `page-${crypto.randomUUID()}`);
    const isNew = !this.turns.length;
    if (replaced) this.removeFrom(replaced);
    if (part) this.list.append(h("li", { class: "turn" }, this.userMessage(part), this.render(part).element));
    const turn = { id: "", parent_id: parent === "root" ? null : parent, input: messages, events: [], answer: [], status: "running", model: "" };
    const item = this.item(turn);
    item.removeAttribute("data-turn");
    this.list.append(item);
    this.follows = true;
    this.scrollToEnd();
    if (isNew) this.actions.onstarted(id);
    const signal = this.startReading();
    const idempotencyKey = crypto.randomUUID();
    const begin = () =>
      request("/v1/chat/completions", {
        method: "POST",
        signal,
        body: { model: this.actions.team(), stream: true, ...this.actions.options(), messages },
        headers: {
          "X-Conversation-Id": id,
          "X-Parent-Id": parent,
          "X-On-Disconnect": "detach",
          "X-Handoff-Events": "all",
          "X-Event-Ids": "true",
          "Idempotency-Key": idempotencyKey,
        },
      });
    const { leaf } = this;
    const unsent = { item, key: inputKey(turn), parent, known: new Set(this.turns.map((one) => one.id)) };
    const retry = () => {
      item.remove();
      this.unsent = this.unsent.filter((one) => one !== unsent);
      // Turns that followed meanwhile stay before it.
      const isBehind = this.leaf && this.leaf !== leaf && !replaced;
      return this.send(messages, isBehind ? /** @type {string} */ (this.leaf) : parent, replaced, part);
    };
    return this.read(begin, item, null, retry, unsent);
  }

  /** Remove a turn and what follows it from the list. @param {any} turn */
  removeFrom(turn) {
    const first = this.list.querySelector(`:scope > li[data-turn="${CSS.escape(turn.id)}"]`);
    for (let item = first; item; ) {
      const next = item.nextElementSibling;
      item.remove();
      item = next;
    }
  }

  /** Continue to read a running turn. @param {string} id @param {Element | null} item */
  attach(id, item) {
    const signal = this.startReading();
    this.running = id;
    return this.read(() => turnStream(id, signal), /** @type {HTMLElement} */ (item), id, () => this.refresh(id));
  }

  startReading() {
    this.detach();
    this.reading = new AbortController();
    this.actions.onbusy(true);
    return this.reading.signal;
  }

  /**
   * @param {() => Promise<Response>} begin
   * @param {HTMLElement} item
   * @param {string | null} id
   * @param {() => unknown} retry
   * @param {any} [unsent] the message, if it is new
   */
  async read(begin, item, id, retry, unsent) {
    const reading = /** @type {AbortController} */ (this.reading);
    await markdownReady;
    const view = this.view();
    item.querySelector(".answer")?.replaceWith(view.element);
    view.begin();
    view.onagent = (agent) => {
      this.actions.onagent(agent);
      announce(`${agent} is responding`);
    };
    const options = {
      turn: id,
      signal: reading.signal,
      onturn: (/** @type {string} */ turn) => (this.running = turn),
      onconnection: (/** @type {boolean} */ isConnected) => {
        view.setConnection(isConnected);
        announce(isConnected ? "Connection restored" : "Connection lost. Reconnecting");
      },
    };
    let isComplete = false;
    try {
      for await (const chunk of readChunks(begin, options)) {
        for (const event of chunkEvents(chunk)) {
          view.add(event);
          if (event.type === "approval.decided") this.hideShownDecisions();
          this.actions.onevent(event);
        }
      }
      isComplete = true;
      announce("Response complete");
    } catch (error) {
      if (reading.signal.aborted) return;
      if (error instanceof ApiError && error.status === 401) this.actions.onerror(error, retry);
      const message = error instanceof Error ? error.message : "An unexpected error occurred.";
      view.fail(message, h("button", { type: "button", onclick: retry }, "Try again"));
    }
    const turn = this.running;
    this.detach();
    if (turn) await this.refresh(turn).catch((error) => this.actions.onerror(error));
    else if (!isComplete && unsent) {
      this.unsent.push(unsent);
      item.classList.add("failed");
      // The error is shown at the message; a turn that failed before its first chunk is in the tree.
      await this.refresh(this.leaf ?? undefined).catch(() => undefined);
    }
    this.actions.onidle(isComplete);
  }

  async stop() {
    const reading = this.reading;
    if (!reading || this.stopping === reading) return;
    this.stopping = reading;
    try {
      for (let wait = 100; this.reading === reading; wait = Math.min(2 * wait, 1000)) {
        // Before the first chunk the id of the turn is unknown.
        const turn = this.running ?? (await this.runningTurn());
        if (turn) {
          await requestJson(`/v1/chat/completions/${encodeURIComponent(turn)}/cancel`, { method: "POST" });
          return;
        }
        // The request has not reached the server yet.
        await delay(wait, reading.signal);
      }
    } catch (error) {
      this.actions.onerror(error);
    } finally {
      if (this.stopping === reading) this.stopping = null;
    }
  }

  async runningTurn() {
    const path = `/v1/conversations/${encodeURIComponent(/** @type {string} */ (this.id))}/turns`;
    const tree = await requestJson(path).catch((error) => {
      // The first request of a conversation creates it.
      if (error instanceof ApiError && error.status === 404) return { data: [] };
      throw error;
    });
    return tree.data.find((/** @type {any} */ turn) => turn.status === "running")?.id;
  }

  /** @param {string} id @param {"approve" | "refuse"} decision @param {HTMLElement} card */
  async decide(id, decision, card) {
    const buttons = /** @type {NodeListOf<HTMLButtonElement>} */ (card.querySelectorAll("button"));
    for (const button of buttons) button.disabled = true;
    try {
      const decided = await requestJson(`/v1/approvals/${encodeURIComponent(id)}`, { method: "POST", body: { decision } });
      announce(decision === "approve" ? "Approved" : "Refused");
      await this.refresh(decided.resumed_turn_id ?? this.leaf ?? undefined);
    } catch (error) {
      for (const button of buttons) button.disabled = false;
      this.actions.onerror(error);
    }
  }

  scrollToEnd() {
    this.scroll.scrollTop = this.scroll.scrollHeight;
  }
}

/** @param {any} turn */
function turnSummary(turn) {
  const usage = [...turn.events].reverse().find((/** @type {any} */ event) => event.data?.usage && event.type.startsWith("turn."))?.data.usage;
  if (!usage?.total_tokens) return "";
  const calls = turn.events.filter((/** @type {any} */ event) => event.type === "usage");
  const costs = calls.map((/** @type {any} */ event) => event.data.cost);
  const hasCost = costs.length > 0 && costs.every((/** @type {unknown} */ cost) => typeof cost === "number");
  const cost = costs.reduce((/** @type {number} */ sum, /** @type {number} */ one) => sum + one, 0);
  return `${usage.total_tokens.toLocaleString("en")} tokens${hasCost ? `, cost ${formatCost(cost)}` : ""}`;
}

/** @param {any} content @returns {string[]} images that were pasted here; others are not loaded */
function imageSources(content) {
  if (!Array.isArray(content)) return [];
  return content.map((part) => part.image_url?.url ?? "").filter((url) => /^data:image\/(png|jpeg|gif|webp);base64,/.test(url));
}

/** @param {any} content */
function plainText(content) {
  if (typeof content === "string") return content;
  const parts = Array.isArray(content) ? content : [];
  return parts
    .map((part) => part.text ?? part.refusal ?? (imageSources([part]).length ? "" : `[${part.type.replace("_url", "")}]`))
    .filter(Boolean)
    .join("\n");
}
