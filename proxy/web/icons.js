// Icons of one family: 24 units, 1.75 stroke, round caps. Built as SVG elements, since Trusted Types allow no markup.

/** Path data by name. */
const PATHS = {
  attach: "M18.5 11.5l-7 7a4 4 0 0 1-6-5.5l7.5-7.5a2.7 2.7 0 0 1 4 4l-7 7a1.3 1.3 0 0 1-2-2l6.5-6.5",
  share: "M8 11l8-4M8 13l8 4M6 9.5a2.5 2.5 0 1 0 0 5 2.5 2.5 0 0 0 0-5M18 3.5a2.5 2.5 0 1 0 0 5 2.5 2.5 0 0 0 0-5M18 15.5a2.5 2.5 0 1 0 0 5 2.5 2.5 0 0 0 0-5",
  arrowDown: "M12 5v14M6 13l6 6 6-6",
  arrowUp: "M12 19V5M6 11l6-6 6 6",
  branch: "M7 4v16M7 14c0-4 10-2 10-7M17 7a2 2 0 1 0 0-4 2 2 0 0 0 0 4",
  check: "M5 12.5l4.5 4.5L19 7.5",
  chevronDown: "M6 9.5l6 6 6-6",
  chevronLeft: "M14.5 6l-6 6 6 6",
  chevronRight: "M9.5 6l6 6-6 6",
  clock: "M12 3.5a8.5 8.5 0 1 0 0 17 8.5 8.5 0 0 0 0-17M12 7.5V12l3 2",
  close: "M6 6l12 12M18 6L6 18",
  code: "M8.5 7l-5 5 5 5M15.5 7l5 5-5 5",
  columns: "M4 5h16v14H4zM12 5v14",
  copy: "M9 9h10.5v10.5H9zM15 5.5v-1H4.5V15h1",
  download: "M12 4v11M7 10.5l5 5 5-5M5 19.5h14",
  edit: "M4.5 19.5l1-4L16 5l3 3L8.5 18.5zM13.5 7.5l3 3",
  handoff: "M4 8h13M13.5 4.5L17 8l-3.5 3.5M20 16H7M10.5 12.5L7 16l3.5 3.5",
  key: "M8 11.5a4 4 0 1 0 0 8 4 4 0 0 0 0-8M11 12.5l8.5-8.5M16 7.5l3 3",
  menu: "M4 7h16M4 12h16M4 17h16",
  more: "M5.5 12v.01M12 12v.01M18.5 12v.01",
  moon: "M19.5 14.5A8 8 0 0 1 9.5 4.5a8 8 0 1 0 10 10z",
  pin: "M9 4h6l-1 6 3 3H7l3-3zM12 13v7",
  pinned: "M9 4h6l-1 6 3 3H7l3-3zM12 13v7M10 6h4M10.5 9h3",
  plus: "M12 5v14M5 12h14",
  refresh: "M19 12a7 7 0 1 1-2.2-5.1M19 4v4.5h-4.5",
  search: "M10.5 4.5a6 6 0 1 0 0 12 6 6 0 0 0 0-12M15 15l5 5",
  settings: "M4 7h9M17 7h3M15 5v4M4 17h3M11 17h9M9 15v4",
  stop: "M7 7h10v10H7z",
  team: "M12 3.5a2.5 2.5 0 1 0 0 5 2.5 2.5 0 0 0 0-5M6 15.5a2.5 2.5 0 1 0 0 5 2.5 2.5 0 0 0 0-5M18 15.5a2.5 2.5 0 1 0 0 5 2.5 2.5 0 0 0 0-5M11 8.5l-4 7M13 8.5l4 7",
  tool: "M14.5 5a5 5 0 0 0-5.5 6.5l-5 5 2.5 2.5 5-5A5 5 0 0 0 18.5 8.5l-2.5 2.5-3-3z",
  trash: "M5 7h14M9.5 7V4.5h5V7M7 7l1 12.5h8L17 7M10.5 10.5v6M13.5 10.5v6",
  warning: "M12 4.5l8.5 15h-17zM12 10v4M12 16.8v.2",
};

const SVG = "http://www.w3.org/2000/svg";

/** @param {keyof typeof PATHS} name @returns {SVGElement} decorative; the control around it has the label */
export function icon(name) {
  const element = document.createElementNS(SVG, "svg");
  for (const [attribute, value] of Object.entries({ viewBox: "0 0 24 24", class: "icon", "aria-hidden": "true" })) {
    element.setAttribute(attribute, value);
  }
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", PATHS[name]);
  element.append(path);
  return element;
}

/** Put icons into the elements of the document that name one in `data-icon`. */
export function fillIcons() {
  for (const element of document.querySelectorAll("[data-icon]")) {
    element.prepend(icon(/** @type {any} */ (element.getAttribute("data-icon"))));
  }
}
