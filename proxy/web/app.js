// The page: puts its parts together and knows which conversation is open. The address behind "#" names it.

import { Trouble, call } from "./api.js";
import { colourOf } from "./agents.js";
import { Chat } from "./chat.js";
import { askForKey, makeAgent } from "./dialogs.js";
import { byId, h } from "./dom.js";
import { draft, forGood } from "./memory.js";
import { Sidebar } from "./sidebar.js";
import { Teams } from "./teams.js";

const say = byId("say");
const app = byId("app");
const teams = new Teams();
const chat = new Chat({
  team: () => teams.select.value,
  onfloor: showFloor,
  onbusy: showBusy,
  ontrouble: showTrouble,
  onbegun: (id) => {
    draft.set(null, null);
    history.pushState(null, "", `#${encodeURIComponent(id)}`);
    sidebar.mark(id);
    byId("welcome").hidden = true;
  },
  onturn: () => {
    if (chat.model) teams.choose(chat.model);
    sidebar.load();
  },
});
const sidebar = new Sidebar({
  onopen: open,
  ontrouble: showTrouble,
  ondeleted: (id) => {
    if (id === chat.id) goTo(null);
  },
});

// --- which conversation ---

function named() {
  try {
    return decodeURIComponent(location.hash.slice(1)) || null;
  } catch {
    return null;
  }
}

/** @param {string | null} id */
function goTo(id) {
  if (named() === id) open(id);
  else location.hash = id ? encodeURIComponent(id) : "";
}

/** @param {string | null} id */
async function open(id) {
  app.classList.remove("open");
  byId("open-sidebar").setAttribute("aria-expanded", "false");
  byId("trouble").replaceChildren();
  say.value = draft.get(id);
  fit();
  sidebar.mark(id);
  byId("welcome").hidden = Boolean(id);
  if (!id) showWelcome();
  try {
    await chat.open(id);
    if (chat.model) teams.choose(chat.model);
  } catch (error) {
    if (error instanceof Trouble && error.status === 404) {
      showTrouble(new Trouble("This conversation is not there any more, or belongs to another key."));
    } else showTrouble(error, () => open(id));
  }
  say.focus({ preventScroll: true });
}

// --- what is shown around it ---

function showWelcome() {
  const team = teams.chosen;
  const told = team?.handoff ?? {};
  const use = (/** @type {string} */ words) => () => send(words);
  byId("welcome").replaceChildren(
    h("h1", {}, team ? team.name || team.id : "handoff-proxy"),
    h("p", {}, told.description || team?.description || "Say something, and whoever knows best will answer."),
    h("div", { class: "agents" }, ...(told.agents ?? []).map((/** @type {string} */ name) => h("span", { class: `who ${colourOf(name)}` }, name))),
    h("div", { class: "examples" }, ...teams.examples.map((words) => h("button", { type: "button", onclick: use(words) }, words))),
  );
}

/** @param {string} agent */
function showFloor(agent) {
  const floor = byId("floor");
  floor.hidden = !agent;
  floor.replaceChildren(...(agent ? [h("span", { class: `who ${colourOf(agent)}` }, agent), h("span", {}, "has the floor")] : []));
}

/** @param {boolean} isBusy */
function showBusy(isBusy) {
  byId("send").hidden = isBusy;
  byId("stop").hidden = !isBusy;
  byId("turns").setAttribute("aria-busy", String(isBusy));
}

/** @param {unknown} error @param {() => unknown} [again] */
async function showTrouble(error, again) {
  if (error instanceof Trouble && error.status === 401) {
    const words = h("span", {}, error.message, " ");
    const enter = h("button", { type: "button", onclick: changeKey }, "Enter a key");
    byId("trouble").replaceChildren(h("div", { class: "problem" }, words, enter));
    return;
  }
  const words = error instanceof Trouble ? error.message : "Something went wrong on this page. Reload it to go on.";
  if (!(error instanceof Trouble)) console.error(error);
  const buttons = [h("button", { type: "button", onclick: () => byId("trouble").replaceChildren() }, "Close")];
  if (again) buttons.unshift(h("button", { type: "button", onclick: again }, "Try again"));
  byId("trouble").replaceChildren(h("div", { class: "problem" }, words, h("div", { class: "buttons" }, ...buttons)));
}

async function changeKey() {
  if (await askForKey()) started = start();
}

// --- writing ---

function fit() {
  say.style.height = "auto";
  say.style.height = `${say.scrollHeight + 2}px`;
}

/** @param {string} words */
async function send(words) {
  // Who is quicker than the page waits for it; what was typed stays until then.
  if (!words.trim() || !(await started) || chat.reading) return;
  const id = chat.id;
  say.value = "";
  draft.set(id, null);
  fit();
  await chat.say(words);
}

byId("compose").addEventListener("submit", (/** @type {Event} */ event) => {
  event.preventDefault();
  send(say.value);
});
say.addEventListener("input", () => {
  draft.set(chat.id, say.value);
  fit();
});
say.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send(say.value);
});
// What stands behind "#" names a conversation.
document.querySelector(".skip")?.addEventListener("click", (event) => {
  event.preventDefault();
  say.focus();
});
byId("stop").addEventListener("click", () => chat.stop());
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && app.classList.contains("open")) drawer(false);
  else if (event.key === "Escape" && !byId("dialog").open) chat.stop();
});

// --- the rest of the frame ---

/** @param {boolean} isOpen */
function drawer(isOpen) {
  app.classList.toggle("open", isOpen);
  byId("open-sidebar").setAttribute("aria-expanded", String(isOpen));
  (isOpen ? byId("close-sidebar") : byId("open-sidebar")).focus();
}

byId("open-sidebar").addEventListener("click", () => drawer(true));
byId("close-sidebar").addEventListener("click", () => drawer(false));
byId("new").addEventListener("click", () => goTo(null));
byId("key").addEventListener("click", changeKey);
teams.select.addEventListener("change", () => {
  teams.meetAgents();
  // Another team is another conversation.
  if (chat.turns.length) goTo(null);
  else showWelcome();
});
byId("make-agent").addEventListener("click", async () => {
  try {
    const { options, data } = await call("/v1/agents");
    const known = data.filter((/** @type {any} */ one) => one.is_editable).map((/** @type {any} */ one) => one.name);
    const made = await makeAgent(options, known);
    if (!made) return;
    await teams.load();
    teams.choose(made.name);
    goTo(null);
    showWelcome();
  } catch (error) {
    showTrouble(error);
  }
});

const THEMES = ["system", "light", "dark"];
/** @param {string} theme */
function paint(theme) {
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  byId("theme").textContent = `Theme: ${theme}`;
  byId("theme").setAttribute("aria-label", `Colours: ${theme === "system" ? "as the system" : theme}`);
}
byId("theme").addEventListener("click", () => {
  const next = THEMES[(THEMES.indexOf(forGood.get("handoff.theme") ?? "system") + 1) % THEMES.length];
  forGood.set("handoff.theme", next === "system" ? null : next);
  paint(next);
});
paint(forGood.get("handoff.theme") ?? "system");

// --- the beginning ---

/** @returns {Promise<boolean>} whether the server can be asked */
async function start() {
  byId("trouble").replaceChildren();
  try {
    await teams.load();
  } catch (error) {
    showTrouble(error, () => (started = start()));
    return false;
  }
  // Not every server lets agents be made.
  call("/v1/agents?limit=1").then(() => (byId("make-agent").hidden = false), () => undefined);
  sidebar.load();
  await open(named());
  return true;
}

window.addEventListener("hashchange", () => {
  if (named() !== chat.id) open(named());
});
let started = start();
