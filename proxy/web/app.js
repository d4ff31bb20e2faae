// Entry point of the page. It connects the components and knows which conversation is open; the URL fragment names it.

import { colourClass } from "./agents.js";
import { ApiError, requestJson } from "./api.js";
import { Attachments } from "./attachments.js";
import { Chat } from "./chat.js";
import { compareVersions } from "./compare.js";
import { showConnect } from "./connect.js";
import { askForKey, manageAgents, openDialog } from "./dialogs.js";
import { byId, copyButton, h, iconButton } from "./dom.js";
import { showExport } from "./export.js";
import { fillIcons, icon } from "./icons.js";
import { requestOptions, showSettings } from "./settings.js";
import { Sidebar } from "./sidebar.js";
import { apiKey, drafts, persistent } from "./storage.js";
import { TeamPanel } from "./team-panel.js";
import { Teams } from "./teams.js";
import { showModelSetup, showWelcome } from "./welcome.js";

fillIcons();
const message = byId("message");
const app = byId("app");
const teams = new Teams();
const panel = new TeamPanel();
const attachments = new Attachments({
  acceptsImages: () => Boolean(teams.chosen?.handoff?.capabilities.images),
  onerror: showError,
});
/** A message with its files that is sent when the running answer is complete. @type {{text: string, files: {name: string, part: any}[]} | null} */
let queued = null;

const chat = new Chat({
  team: () => teams.select.value,
  options: () => requestOptions(chat.id),
  onagent: showActiveAgent,
  onbusy: showBusy,
  onerror: showError,
  onmodel: (model) => {
    teams.choose(model);
    updateTeam();
  },
  onevents: (turns) => {
    for (const id of ["export", "share"]) byId(id).hidden = !turns.length;
    panel.setTurns(turns);
  },
  onevent: (event) => panel.observe(event),
  onstarted: (id) => {
    drafts.set(null, null);
    history.pushState(null, "", `#${encodeURIComponent(id)}`);
    sidebar.mark(id);
    showHeading(true);
  },
  onturn: () => sidebar.load(),
  onidle: (isComplete) => {
    if (!isComplete) {
      sidebar.load();
      editQueued();
      return;
    }
    sendQueued();
    nameConversation();
  },
  oncompare: (versions, turn) => compareVersions(chat, versions, turn),
});
const sidebar = new Sidebar({
  onopen: open,
  onerror: showError,
  ondeleted: (id) => {
    if (id === chat.id) navigate(null);
  },
});

// --- navigation ---

/** Prefix of shared links. Conversation ids contain no slash. */
const READ_ONLY = "view/";

const isReadOnly = () => location.hash.startsWith(`#${READ_ONLY}`);

function conversationInUrl() {
  try {
    return decodeURIComponent(location.hash.slice(isReadOnly() ? 1 + READ_ONLY.length : 1)) || null;
  } catch {
    return null;
  }
}

/** @param {string | null} id */
function navigate(id) {
  if (conversationInUrl() === id) open(id);
  else location.hash = id ? encodeURIComponent(id) : "";
}

/** The page has one main heading: that of the start panel, or one for screen readers. @param {boolean} isConversation */
function showHeading(isConversation) {
  byId("welcome").hidden = isConversation;
  byId("heading").hidden = !isConversation;
}

/** @param {string | null} id */
async function open(id) {
  closeDrawer();
  app.classList.toggle("read-only", isReadOnly());
  byId("read-only").hidden = !isReadOnly();
  byId("error").replaceChildren();
  // The queued message becomes the draft of the conversation that is left.
  editQueued();
  message.value = drafts.get(id);
  resizeComposer();
  sidebar.mark(id);
  showHeading(Boolean(id));
  if (!id) showStart();
  try {
    await chat.open(id);
  } catch (error) {
    // Another conversation was opened meanwhile.
    if (id !== chat.id) return;
    if (error instanceof ApiError && error.status === 404) {
      showError(new ApiError("Conversation not found. It was deleted or belongs to another API key."));
    } else showError(error, () => open(id));
  }
  updateTeam();
  message.focus({ preventScroll: true });
}

// --- team ---

function updateTeam() {
  const model = teams.chosen;
  byId("demo").hidden = !model?.handoff?.demo;
  if (!model) return;
  teams.definition(model).then(
    (definition) => {
      if (teams.chosen === model) panel.setTeam(definition);
    },
    () => panel.setTeam(null),
  );
}

/** @param {string} agent */
function showActiveAgent(agent) {
  panel.setActive(agent);
  const element = byId("active-agent");
  element.hidden = !agent;
  element.replaceChildren(
    ...(agent ? [h("span", { class: "hidden" }, "Active agent: "), h("span", { class: `agent-name ${colourClass(agent)}`, title: "Active agent" }, agent)] : []),
  );
}

const wide = matchMedia("(min-width: 1120px)");
const isPanelOverlay = () => !wide.matches && app.classList.contains("with-team");

/** The sidebar and the team panel lie over the conversation on narrow screens; a click next to them closes them. */
function showScrim() {
  byId("scrim").hidden = !app.classList.contains("open") && !isPanelOverlay();
}
byId("scrim").addEventListener("click", () => {
  if (app.classList.contains("open")) closeDrawer(true);
  else closeTeamPanel();
});

function closeTeamPanel() {
  showTeamPanel(false, true);
  byId("toggle-team").focus();
}

/** @param {boolean} isOpen @param {boolean} [isChoice] whether to remember it */
function showTeamPanel(isOpen, isChoice = false) {
  app.classList.toggle("with-team", isOpen);
  showScrim();
  byId("toggle-team").setAttribute("aria-expanded", String(isOpen));
  if (isChoice && wide.matches) persistent.set("handoff.team-panel", isOpen ? null : "closed");
}
const restoreTeamPanel = () => showTeamPanel(wide.matches && persistent.get("handoff.team-panel") !== "closed");
wide.addEventListener("change", restoreTeamPanel);
restoreTeamPanel();
byId("toggle-team").addEventListener("click", () => showTeamPanel(!app.classList.contains("with-team"), true));
byId("close-team").addEventListener("click", closeTeamPanel);

// --- start panel ---

function showStart() {
  showWelcome(teams.chosen, { examples: teams.examples, submit, changeKey });
}

async function changeKey() {
  if (await askForKey()) started = start();
}

// --- errors ---

/** @param {unknown} error @param {() => unknown} [retry] */
async function showError(error, retry) {
  if (error instanceof ApiError && error.status === 401) {
    await requireKey(error.message, retry);
    return;
  }
  if (!(error instanceof ApiError)) console.error(error);
  const text = error instanceof ApiError ? error.message : "An unexpected error occurred. Reload the page.";
  byId("error").replaceChildren(
    h(
      "div",
      { class: "problem" },
      icon("warning"),
      h("p", {}, text),
      h(
        "div",
        { class: "buttons" },
        retry && h("button", { type: "button", onclick: () => (byId("error").replaceChildren(), retry()) }, "Try again"),
        iconButton("close", "Dismiss", () => byId("error").replaceChildren()),
      ),
    ),
  );
}

/** @param {string} reason @param {() => unknown} [retry] */
async function requireKey(reason, retry) {
  if (byId("dialog").open) return;
  if (await askForKey(reason)) {
    byId("error").replaceChildren();
    if (retry) await retry();
    else started = start();
    return;
  }
  const enter = h("button", { type: "button", onclick: () => requireKey(reason, retry) }, "Enter API key");
  byId("error").replaceChildren(h("div", { class: "problem" }, icon("key"), h("p", {}, reason), h("div", { class: "buttons" }, enter)));
}

// --- composer ---

function resizeComposer() {
  message.style.height = "auto";
  message.style.height = `${message.scrollHeight}px`;
}

/** @param {boolean} isBusy */
function showBusy(isBusy) {
  byId("stop").hidden = !isBusy;
  byId("send").hidden = isBusy;
  byId("turns").setAttribute("aria-busy", String(isBusy));
  if (!isBusy) panel.element.classList.remove("busy");
}

/** @param {string} text */
async function submit(text) {
  // A message may be sent before the teams are loaded; the text stays in the box until then.
  if ((!text.trim() && !attachments.items.length) || !(await started)) return;
  if (chat.reading) {
    const earlier = queued ?? { text: "", files: [] };
    setQueued({ text: [earlier.text, text].filter(Boolean).join("\n\n"), files: [...earlier.files, ...attachments.take()] });
    clearComposer();
    return;
  }
  clearComposer();
  await chat.sendText(text, attachments.take().map(({ part }) => part));
}

function clearComposer() {
  message.value = "";
  drafts.set(chat.id, null);
  resizeComposer();
}

/** @param {typeof queued} next */
function setQueued(next) {
  queued = next;
  const edit = () => {
    editQueued();
    message.focus();
  };
  byId("queue").hidden = !next;
  byId("queue").replaceChildren(
    ...(next ? [icon("clock"), h("span", { class: "hidden" }, "Queued message: "), h("span", { class: "text" }, [next.text, ...next.files.map(({ name }) => name)].filter(Boolean).join(" · ")), h("span", { class: "hint" }, "Sent after this response"), iconButton("edit", "Edit queued message", edit), iconButton("close", "Remove queued message", () => setQueued(null))] : []),
  );
}

/** Move the queued message back to the message box. */
function editQueued() {
  if (!queued) return;
  message.value = [queued.text, message.value].filter(Boolean).join("\n\n");
  attachments.putBack(queued.files);
  drafts.set(chat.id, message.value);
  setQueued(null);
  resizeComposer();
}

async function nameConversation() {
  if (isReadOnly()) return;
  const { id } = chat;
  // Of a new conversation, the list knows nothing before it was loaded again.
  await sidebar.loading;
  await sidebar.addTitle(id);
}

function sendQueued() {
  if (!queued || chat.reading) return;
  const { text, files } = queued;
  setQueued(null);
  chat.sendText(text, files.map(({ part }) => part));
}

byId("composer").addEventListener("submit", (/** @type {Event} */ event) => {
  event.preventDefault();
  submit(message.value);
});
message.addEventListener("input", () => {
  drafts.set(chat.id, message.value);
  resizeComposer();
});
message.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  submit(message.value);
});
// The URL fragment names a conversation, so the link only moves the focus.
document.querySelector(".skip")?.addEventListener("click", (event) => {
  event.preventDefault();
  message.focus();
});
byId("stop").addEventListener("click", () => chat.stop());

// --- keyboard ---

document.addEventListener("keydown", (event) => {
  if (byId("dialog").open) return;
  const isCommand = (event.ctrlKey || event.metaKey) && !event.altKey;
  if (event.key === "Escape" && app.classList.contains("open")) closeDrawer(true);
  else if (event.key === "Escape" && isPanelOverlay()) closeTeamPanel();
  else if (event.key === "Escape" && !isReadOnly()) chat.stop();
  else if (isCommand && event.key.toLowerCase() === "k") {
    event.preventDefault();
    if (!wideEnoughForSidebar.matches) openDrawer();
    byId("search").focus();
  } else if (isCommand && event.shiftKey && event.key.toLowerCase() === "o") {
    event.preventDefault();
    navigate(null);
  }
});

// --- sidebar and header ---

const wideEnoughForSidebar = matchMedia("(min-width: 761px)");

function openDrawer() {
  app.classList.add("open");
  showScrim();
  byId("open-sidebar").setAttribute("aria-expanded", "true");
  byId("close-sidebar").focus();
}

function closeDrawer(returnsFocus = false) {
  app.classList.remove("open");
  showScrim();
  byId("open-sidebar").setAttribute("aria-expanded", "false");
  if (returnsFocus) byId("open-sidebar").focus();
}

wideEnoughForSidebar.addEventListener("change", () => closeDrawer());
byId("open-sidebar").addEventListener("click", openDrawer);
byId("close-sidebar").addEventListener("click", () => closeDrawer(true));
byId("new").addEventListener("click", () => navigate(null));
byId("key").addEventListener("click", changeKey);
byId("use-model").addEventListener("click", () => teams.chosen && showModelSetup(teams.chosen));
byId("connect").addEventListener("click", () => teams.chosen && showConnect(teams.chosen, chat.id));
byId("share").addEventListener("click", () => {
  const link = `${location.origin}${location.pathname}#${READ_ONLY}${encodeURIComponent(chat.id ?? "")}`;
  const input = h("input", { readonly: true, "aria-label": "Link" });
  input.value = link;
  openDialog("Share conversation", [
    h("p", {}, apiKey.get() ? "The link opens a read-only view for everyone who enters the same API key." : "The link opens a read-only view for everyone who can reach this server without an API key."),
    h("div", { class: "with-copy" }, input, copyButton("Copy link", () => link)),
  ]);
});
byId("continue").addEventListener("click", () => (location.hash = encodeURIComponent(chat.id ?? "")));
byId("settings").addEventListener("click", () => showSettings(chat.id));
byId("export").addEventListener("click", () => showExport(chat.path(), sidebar.titleOf(chat.id)));
teams.select.addEventListener("change", () => {
  updateTeam();
  // A conversation belongs to one team.
  if (chat.turns.length) navigate(null);
  else showStart();
});
byId("agents").addEventListener("click", async () => {
  try {
    const changed = await manageAgents(await requestJson("/v1/agents?limit=100"), teams.models.map((one) => one.id));
    if (!changed?.name) return;
    await teams.load();
    if (!changed.isDeleted) teams.choose(changed.name);
    updateTeam();
    navigate(null);
    showStart();
  } catch (error) {
    showError(error);
  }
});

const THEMES = ["system", "light", "dark"];
/** @param {string} theme */
function applyTheme(theme) {
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  /** @type {HTMLElement} */ (byId("theme").querySelector("span")).textContent = `Theme: ${theme}`;
}
byId("theme").addEventListener("click", () => {
  const next = THEMES[(THEMES.indexOf(persistent.get("handoff.theme") ?? "system") + 1) % THEMES.length];
  persistent.set("handoff.theme", next === "system" ? null : next);
  applyTheme(next);
});
applyTheme(persistent.get("handoff.theme") ?? "system");

// --- start ---

/** @returns {Promise<boolean>} whether the server can be used */
async function start() {
  byId("error").replaceChildren();
  try {
    await teams.load();
  } catch (error) {
    showError(error, () => (started = start()));
    return false;
  }
  // Custom agents may be switched off.
  requestJson("/v1/agents?limit=1").then(() => (byId("agents").hidden = false), () => undefined);
  sidebar.load();
  await open(conversationInUrl());
  performance.measure("usable");
  return true;
}

window.addEventListener("hashchange", () => {
  byId("dialog").close();
  if (conversationInUrl() !== chat.id || isReadOnly() !== app.classList.contains("read-only")) open(conversationInUrl());
});
let started = start();
