// What models write, as elements. A parser that knows no HTML makes markup of Markdown, a sanitiser makes elements of
// what is allowed in it, and nothing else becomes one. Without the two libraries, text stays text.

import { copyButton, h } from "./dom.js";

const [parser, sanitiser, colours] = await Promise.all([
  import("./vendor/markdown-it.js").then((it) => new it.default({ html: false, linkify: true }), nothing),
  import("./vendor/dompurify.js").then((it) => it.default, nothing),
  import("./vendor/highlight.js").then((it) => it.default, nothing),
]);

function nothing() {
  return null;
}

const ALLOWED = {
  ALLOWED_TAGS: [
    ..."h1 h2 h3 h4 h5 h6 p br hr blockquote ul ol li em strong s del code pre a".split(" "),
    ..."table thead tbody tr th td span".split(" "),
  ],
  ALLOWED_ATTR: ["href", "title", "class", "start"],
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};
const MAX_NESTING = 40;
const MAX_COLOURED = 20_000;

if (parser) {
  parser.set({ maxNesting: MAX_NESTING });
  // Nothing is fetched for an answer: where a picture would be, its address can be followed.
  parser.renderer.rules.image = (tokens, at) => {
    const source = tokens[at].attrGet("src") ?? "";
    const words = parser.utils.escapeHtml(tokens[at].content || source);
    return parser.validateLink(source) ? `<a href="${parser.utils.escapeHtml(source)}">${words}</a>` : words;
  };
  // The policy of the page lets no element bring its own style along.
  for (const rule of ["th_open", "td_open"]) {
    parser.renderer.rules[rule] = (tokens, at, options, _environment, self) => {
      const side = /text-align:(\w+)/.exec(tokens[at].attrGet("style") ?? "")?.[1];
      tokens[at].attrs = side ? [["class", side]] : null;
      return self.renderToken(tokens, at, options);
    };
  }
}

/**
 * Make elements of Markdown.
 * @param {string} text
 * @returns {Node}
 */
export function elementsOf(text) {
  if (!parser || !sanitiser) return h("div", { class: "plain" }, text);
  const made = sanitiser.sanitize(parser.render(text), ALLOWED);
  for (const link of made.querySelectorAll("a")) {
    link.target = "_blank";
    link.rel = "noopener noreferrer nofollow";
  }
  for (const code of made.querySelectorAll("pre > code")) code.parentElement.replaceWith(codeBlock(code));
  for (const table of made.querySelectorAll("table")) {
    const box = h("div", { class: "table", tabindex: "0", role: "region", "aria-label": "Table" });
    table.replaceWith(box);
    box.append(table);
  }
  return made;
}

/** @param {HTMLElement} code */
function codeBlock(code) {
  const language = /^language-([\w+#.-]{1,30})$/.exec(code.className)?.[1] ?? "";
  const text = code.textContent ?? "";
  const shown = h("code", { class: "hljs" });
  if (language && colours?.getLanguage(language) && text.length < MAX_COLOURED) {
    const coloured = colours.highlight(text, { language, ignoreIllegals: true }).value;
    shown.append(sanitiser.sanitize(coloured, ALLOWED));
  } else shown.textContent = text;
  return h(
    "div",
    { class: "code" },
    h("div", { class: "bar" }, h("span", {}, language || "text"), copyButton("Copy", () => text)),
    h("pre", { tabindex: "0" }, shown),
  );
}

const LONG = 1500;

/** Text that is still being written: what is whole stays as it is, and only the end is made anew. */
export class Growing {
  /** @param {HTMLElement} element */
  constructor(element) {
    this.element = element;
    this.text = "";
    this.done = 0;
    this.tail = h("div");
    this.element.append(this.tail);
    this.waits = false;
  }

  /** @param {string} piece */
  add(piece) {
    this.text += piece;
    if (this.waits) return;
    this.waits = true;
    requestAnimationFrame(() => this.show());
  }

  show() {
    this.waits = false;
    const whole = boundary(this.text, this.done);
    if (whole > this.done) {
      this.tail.before(elementsOf(this.text.slice(this.done, whole)));
      this.done = whole;
    }
    this.tail.replaceChildren(elementsOf(this.text.slice(this.done)));
  }
}

/**
 * Return the last place behind which Markdown begins anew, or `from`: a blank line outside of code, before a line that
 * goes on with nothing.
 * @param {string} text
 * @param {number} from
 */
function boundary(text, from) {
  if (text.length - from < LONG) return from;
  let fence = "";
  let found = from;
  let at = from;
  let wasBlank = false;
  while (at < text.length) {
    const end = text.indexOf("\n", at);
    if (end < 0) break;
    const line = text.slice(at, end);
    const mark = /^ {0,3}(`{3,}|~{3,})/.exec(line)?.[1] ?? "";
    if (fence) {
      if (mark.startsWith(fence) && line.trim() === mark) fence = "";
    } else if (mark) {
      if (wasBlank) found = at;
      fence = mark;
    } else if (wasBlank && /^[^\s\-*+>|\d]/.test(line)) found = at;
    wasBlank = !fence && line.trim() === "";
    at = end + 1;
  }
  return found;
}
