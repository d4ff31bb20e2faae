// Two versions of a turn and what follows them, in columns.

import { openDialog } from "./dialogs.js";
import { h } from "./dom.js";

/** @typedef {import("./chat.js").Chat} Chat */

/** @param {Chat} chat @param {any[]} versions @param {any} current */
export function compareVersions(chat, versions, current) {
  const shown = versions.indexOf(current);
  const columns = [shown > 0 ? shown - 1 : 0, shown > 0 ? shown : 1].map((at, index) => column(chat, versions, at, index));
  return openDialog("Compare versions", [h("div", { class: "columns" }, ...columns)], { wide: true });
}

/** @param {Chat} chat @param {any[]} versions @param {number} at @param {number} index */
function column(chat, versions, at, index) {
  const body = h("ol", { class: "turns" });
  const label = `Version in the ${index ? "right" : "left"} column`;
  const select = h("select", { "aria-label": label }, ...versions.map((_, number) => h("option", { value: String(number) }, `Version ${number + 1}`)));
  const show = () => {
    const version = versions[Number(select.value)];
    const path = chat.path(chat.newestLeaf(version));
    const turns = path.slice(path.indexOf(version));
    body.replaceChildren(
      ...turns.map((turn) => {
        const item = h("li", { class: "turn" }, chat.userMessage(turn), chat.render(turn).element);
        for (const control of item.querySelectorAll(".actions, .approval .buttons")) control.remove();
        return item;
      }),
    );
  };
  select.value = String(at);
  select.addEventListener("change", show);
  show();
  return h("section", { class: "column", "aria-label": label }, select, h("div", { class: "column-body", tabindex: "0" }, body));
}
