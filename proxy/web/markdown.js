// Markdown of models as elements. A parser without HTML renders markup, a sanitizer builds the allowed elements from it,
// and nothing else becomes an element. Without the libraries, text stays text. Highlighting, math and diagrams load when
// an answer first needs them.

import { copyButton, h, showInvisible } from "./dom.js";

/** @type {any} */
let parser = null;
/** @type {any} */
let sanitizer = null;

/** The parser and the sanitizer load while the page starts; await this before the first answer is rendered. */
export const markdownReady = Promise.all([
  import("./vendor/markdown-it.js").then((it) => new it.default({ html: false, linkify: true }), unavailable),
  import("./vendor/dompurify.js").then((it) => it.default, unavailable),
]).then(([loadedParser, loadedSanitizer]) => {
  sanitizer = loadedSanitizer;
  if (loadedParser) parser = configure(loadedParser);
});

/** @returns {any} */
function unavailable() {
  return null;
}

/** @param {() => Promise<any>} load */
function lazy(load) {
  /** @type {Promise<any> | undefined} */
  let loading;
  return () => (loading ??= load().catch(unavailable));
}

const highlighter = lazy(() => import("./vendor/highlight.js").then((it) => it.default));
const mathRenderer = lazy(async () => {
  document.head.append(h("link", { rel: "stylesheet", href: "/page/vendor/katex/katex.css" }));
  return (await import("./vendor/katex/katex.js")).default;
});

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
/** Characters of a text that are formatted; the rest is plain. A browser needs seconds to format a megabyte. */
const MAX_FORMATTED = 100_000;
/** Characters of one element of plain text. The browser lays out only the elements that are visible. */
const PLAIN_PIECE = 20_000;
/** Markdown tokens that are rendered at once. A table of 7 kB can have 65,000 cells, because short rows are filled up. */
const MAX_TOKENS = 50_000;
/** Formulas of a text that are rendered. The first ones appear with the text; the others follow one by one. */
const MAX_FORMULAS = 1000;
const IMMEDIATE_FORMULAS = 50;
const MAX_HIGHLIGHTED = 20_000;
const MAX_FORMULA = 2000;
const MAX_DIAGRAM = 10_000;
const DIAGRAM_TIMEOUT = 10_000;

/** @param {any} parser */
function configure(parser) {
  parser.set({ maxNesting: MAX_NESTING });
  // Images are not loaded; the address is a link.
  parser.renderer.rules.image = (/** @type {any} */ tokens, /** @type {number} */ at) => {
    const source = tokens[at].attrGet("src") ?? "";
    const label = parser.utils.escapeHtml(tokens[at].content || source);
    return parser.validateLink(source) ? `<a href="${parser.utils.escapeHtml(source)}">${label}</a>` : label;
  };
  // The Content-Security-Policy forbids style attributes, so alignment becomes a class.
  for (const rule of ["th_open", "td_open"]) {
    parser.renderer.rules[rule] = (/** @type {any} */ tokens, /** @type {number} */ at, /** @type {any} */ options, /** @type {any} */ _environment, /** @type {any} */ self) => {
      const side = /text-align:(\w+)/.exec(tokens[at].attrGet("style") ?? "")?.[1];
      tokens[at].attrs = side ? [["class", side]] : null;
      return self.renderToken(tokens, at, options);
    };
  }
  parser.inline.ruler.after("escape", "math", inlineMath);
  parser.block.ruler.after("blockquote", "math_block", blockMath, { alt: ["paragraph", "reference", "blockquote", "list"] });
  // Also before "escape", which would take the backslash of \( and \[.
  parser.inline.ruler.before("escape", "math_brackets", bracketMath);
  parser.renderer.rules.math = (/** @type {any} */ tokens, /** @type {number} */ at) => {
    const kind = tokens[at].meta.display ? "math display" : "math";
    return `<code class="${kind}">${parser.utils.escapeHtml(tokens[at].content)}</code>`;
  };
  return parser;
}

/**
 * `$x$`, as Pandoc defines it: no space inside of the dollars, no digit behind the closing one, so that prices stay prices.
 * @param {any} state @param {boolean} silent
 */
function inlineMath(state, silent) {
  const { src, pos } = state;
  if (src[pos] !== "$" || src[pos + 1] === "$" || /[\s\d]/.test(src[pos + 1] ?? " ")) return false;
  let end = pos + 1;
  while (end < state.posMax && end - pos < MAX_FORMULA && src[end] !== "$" && src[end] !== "\n") end += src[end] === "\\" ? 2 : 1;
  if (src[end] !== "$" || end >= state.posMax || /\s/.test(src[end - 1]) || /\d/.test(src[end + 1] ?? "")) return false;
  return pushMath(state, silent, src.slice(pos + 1, end), end + 1, false);
}

/** `\( … \)` and `\[ … \]`. @param {any} state @param {boolean} silent */
function bracketMath(state, silent) {
  const { src, pos } = state;
  if (src[pos] !== "\\" || (src[pos + 1] !== "(" && src[pos + 1] !== "[")) return false;
  const close = src[pos + 1] === "(" ? "\\)" : "\\]";
  const end = src.slice(pos, pos + MAX_FORMULA).indexOf(close, 2);
  if (end < 3) return false;
  return pushMath(state, silent, src.slice(pos + 2, pos + end), pos + end + 2, src[pos + 1] === "[");
}

/** @param {any} state @param {boolean} silent @param {string} formula @param {number} end @param {boolean} display */
function pushMath(state, silent, formula, end, display) {
  if (!silent) {
    const token = state.push("math", "code", 0);
    token.content = formula;
    token.meta = { display };
  }
  state.pos = end;
  return true;
}

/** Lines between `$$` and `$$`, also in one line. @param {any} state @param {number} first @param {number} last @param {boolean} silent */
function blockMath(state, first, last, silent) {
  const line = (/** @type {number} */ at) => state.src.slice(state.bMarks[at] + state.tShift[at], state.eMarks[at]).trim();
  const opening = line(first);
  if (!opening.startsWith("$$")) return false;
  let formula = opening.slice(2);
  let next = first + 1;
  while (!formula.trimEnd().endsWith("$$")) {
    if (next >= last || formula.length > MAX_FORMULA || state.sCount[next] < state.blkIndent) return false;
    formula += `\n${line(next)}`;
    next += 1;
  }
  if (silent) return true;
  const token = state.push("math", "code", 0);
  token.content = formula.trimEnd().slice(0, -2).trim();
  token.meta = { display: true };
  token.block = true;
  state.line = next;
  return true;
}

/**
 * Render Markdown.
 * @param {string} text
 * @param {{isComplete?: boolean, maxFormulas?: number}} [options] `isComplete`: no more text follows; diagrams are drawn then
 * @returns {{node: Node, formulas: number}} `formulas`: how many formulas the text has
 */
function renderMarkdown(text, { isComplete = true, maxFormulas = MAX_FORMULAS } = {}) {
  const environment = {};
  const tokens = parser && sanitizer ? parser.parse(text, environment) : null;
  if (!tokens || tokens.length > MAX_TOKENS) return { node: h("div", { class: "plain" }, text), formulas: 0 };
  const rendered = sanitizer.sanitize(parser.renderer.render(tokens, parser.options, environment), ALLOWED);
  for (const link of rendered.querySelectorAll("a")) {
    link.target = "_blank";
    link.rel = "noopener noreferrer nofollow";
  }
  const formulas = [...rendered.querySelectorAll("code.math")];
  formulas.slice(0, maxFormulas).forEach((code, at) => renderMath(code, at < IMMEDIATE_FORMULAS));
  for (const code of rendered.querySelectorAll("pre > code")) code.parentElement.replaceWith(codeBlock(code, isComplete));
  for (const item of rendered.querySelectorAll("li")) renderTask(item);
  for (const table of rendered.querySelectorAll("table")) {
    const box = h("div", { class: "table", tabindex: "0", role: "region", "aria-label": "Table" });
    table.replaceWith(box);
    box.append(table);
    markOverflow(box);
  }
  return { node: rendered, formulas: formulas.length };
}

/** `[ ]` and `[x]` at the beginning of a list item. @param {HTMLElement} item */
function renderTask(item) {
  const first = item.firstElementChild?.localName === "p" ? item.firstElementChild : item;
  const text = first.firstChild;
  const match = text?.nodeType === Node.TEXT_NODE && /^\s*\[([ xX])\]\s+/.exec(text.textContent ?? "");
  if (!match || !text) return;
  const isDone = match[1] !== " ";
  text.textContent = (text.textContent ?? "").slice(match[0].length);
  item.classList.add("task");
  first.prepend(h("span", { class: `checkbox ${isDone ? "checked" : ""}`, role: "img", "aria-label": isDone ? "Done" : "Not done" }));
}

/** @param {HTMLElement} code @param {boolean} isImmediate */
async function renderMath(code, isImmediate) {
  const katex = await mathRenderer();
  if (!isImmediate) {
    // A separate task for each formula, so that thousands of them do not block the page.
    await new Promise((resolve) => setTimeout(resolve));
    if (!code.isConnected) return;
  }
  if (!katex) return;
  const box = h("span", { class: code.className });
  try {
    // KaTeX builds DOM nodes; with `trust` off, no formula can set addresses, classes or styles.
    katex.render(code.textContent ?? "", box, {
      displayMode: code.classList.contains("display"),
      throwOnError: true,
      trust: false,
      strict: "ignore",
      maxExpand: 200,
      maxSize: 20,
    });
    code.replaceWith(box);
  } catch {
    // An invalid formula stays as it was written.
  }
}

const overflow = new ResizeObserver((entries) => {
  for (const { target } of entries) updateOverflow(/** @type {HTMLElement} */ (target));
});

/** Show at the edge that a box can be scrolled. @param {HTMLElement} box @returns {HTMLElement} the box */
export function markOverflow(box) {
  box.addEventListener("scroll", () => updateOverflow(box), { passive: true });
  overflow.observe(box);
  return box;
}

/** @param {HTMLElement} box */
function updateOverflow(box) {
  box.classList.toggle("more-right", box.scrollWidth - box.clientWidth - box.scrollLeft > 2);
  box.classList.toggle("more-left", box.scrollLeft > 2);
}

/** @param {HTMLElement} code @param {boolean} isComplete */
function codeBlock(code, isComplete) {
  const language = /^language-([\w+#.-]{1,30})$/.exec(code.className)?.[1] ?? "";
  const text = code.textContent ?? "";
  const shown = showInvisible(text);
  const body = h("code", { class: "hljs" }, shown);
  const pre = h("pre", { tabindex: "0" }, body);
  markOverflow(pre);
  const block = h("div", { class: "code" }, h("div", { class: "bar" }, h("span", {}, language || "text"), copyButton("Copy", () => text)), pre);
  if (language === "mermaid" && isComplete && text.length < MAX_DIAGRAM) drawWhenVisible(text, block, pre);
  else if (language && isComplete && text.length < MAX_HIGHLIGHTED) highlight(shown, language, body);
  return block;
}

/** @param {string} text @param {string} language @param {HTMLElement} body */
async function highlight(text, language, body) {
  const library = await highlighter();
  if (!library?.getLanguage(language)) return;
  const markup = library.highlight(text, { language, ignoreIllegals: true }).value;
  body.replaceChildren(sanitizer.sanitize(markup, ALLOWED));
}

/** @type {WeakMap<Element, () => void>} */
const undrawn = new WeakMap();
const visibility = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (!isIntersecting) continue;
    visibility.unobserve(target);
    undrawn.get(target)?.();
  }
});
/** The last diagram that waits. Each loads the library in a separate frame, so they are drawn one after another. */
let drawing = Promise.resolve();

/** @param {string} text @param {HTMLElement} block @param {HTMLElement} pre */
function drawWhenVisible(text, block, pre) {
  undrawn.set(block, () => {
    drawing = drawing.then(() => (block.isConnected ? drawDiagram(text, pre) : undefined));
  });
  visibility.observe(block);
}

/**
 * Draw a diagram in a sandboxed frame of another origin without network access, and show the result as an image, which
 * runs no scripts.
 * @param {string} text @param {HTMLElement} pre @returns {Promise<void>} when it is drawn or has failed
 */
function drawDiagram(text, pre) {
  const isDark = getComputedStyle(document.documentElement).colorScheme === "dark" || (getComputedStyle(document.documentElement).colorScheme !== "light" && matchMedia("(prefers-color-scheme: dark)").matches);
  const frame = h("iframe", { sandbox: "allow-scripts", src: "/page/diagram.html", class: "renderer", "aria-hidden": "true", tabindex: "-1" });
  /** @type {(value?: undefined) => void} */
  let resolve;
  const timer = setTimeout(finish, DIAGRAM_TIMEOUT);
  function finish() {
    clearTimeout(timer);
    window.removeEventListener("message", receive);
    frame.remove();
    resolve();
  }
  /** @param {MessageEvent} event */
  function receive({ source, data }) {
    if (source !== frame.contentWindow) return;
    if (data?.type === "ready") frame.contentWindow?.postMessage({ text, isDark }, "*");
    else {
      finish();
      if (typeof data?.svg !== "string") return;
      const picture = h("img", { alt: "Diagram; its source follows", src: `data:image/svg+xml;charset=utf-8,${encodeURIComponent(data.svg)}` });
      pre.before(h("div", { class: "diagram" }, picture));
      pre.replaceWith(h("details", { class: "source" }, h("summary", {}, "Source"), pre.cloneNode(true)));
    }
  }
  return new Promise((done) => {
    resolve = done;
    window.addEventListener("message", receive);
    document.body.append(frame);
  });
}

const MIN_BLOCK = 1500;
/** Pause behind a rendering, in durations of that rendering: a long block must not take all the time of the page. */
const PAUSE = 4;

/** Markdown that still grows: finished blocks stay, only the end is rendered again. */
export class StreamingMarkdown {
  /** @param {HTMLElement} element */
  constructor(element) {
    this.element = element;
    this.text = "";
    this.rendered = 0;
    this.maxFormulas = MAX_FORMULAS;
    this.tail = h("div");
    this.element.append(this.tail);
    this.isScheduled = false;
    /** When the next rendering may begin. */
    this.earliest = 0;
    /** Where plain text begins, or null. @type {number | null} */
    this.plainFrom = null;
  }

  /** @param {string} piece */
  add(piece) {
    this.text += piece;
    if (this.isScheduled) return;
    this.isScheduled = true;
    const show = () => requestAnimationFrame(() => this.isScheduled && this.show());
    const wait = this.earliest - performance.now();
    if (wait > 0) setTimeout(show, wait);
    else show();
  }

  /** Remove the last `count` characters. @param {number} count */
  truncate(count) {
    this.text = this.text.slice(0, this.text.length - count).trimEnd();
    this.rendered = 0;
    this.maxFormulas = MAX_FORMULAS;
    this.plainFrom = null;
    this.element.replaceChildren(this.tail);
    this.show();
  }

  finish() {
    this.show(true);
  }

  show(isComplete = false) {
    this.isScheduled = false;
    if (this.plainFrom !== null) {
      this.showPlain();
      return;
    }
    const began = performance.now();
    if (this.text.length > MAX_FORMATTED) this.plainFrom = this.text.lastIndexOf("\n", MAX_FORMATTED) + 1 || MAX_FORMATTED;
    const text = this.text.slice(0, this.plainFrom ?? undefined);
    const end = blockBoundary(text, this.rendered);
    if (end > this.rendered) {
      const { node, formulas } = renderMarkdown(text.slice(this.rendered, end), { maxFormulas: this.maxFormulas });
      this.tail.before(node);
      this.maxFormulas = Math.max(0, this.maxFormulas - formulas);
      this.rendered = end;
    }
    const options = { isComplete: isComplete || this.plainFrom !== null, maxFormulas: this.maxFormulas };
    this.tail.replaceChildren(renderMarkdown(text.slice(this.rendered), options).node);
    this.earliest = performance.now() + PAUSE * (performance.now() - began);
    if (this.plainFrom !== null) {
      this.element.append(h("p", { class: "note" }, "The rest of this long text is not formatted."));
      this.rendered = this.plainFrom;
      this.showPlain();
    }
  }

  /** Append the text that is not shown yet to the plain elements at the end. */
  showPlain() {
    while (this.rendered < this.text.length) {
      let last = /** @type {HTMLElement} */ (this.element.lastElementChild);
      if (!last.classList.contains("plain") || (last.textContent?.length ?? 0) >= PLAIN_PIECE) {
        last = h("div", { class: "plain" });
        this.element.append(last);
      }
      const end = Math.min(this.text.length, this.rendered + PLAIN_PIECE - (last.textContent?.length ?? 0));
      last.append(this.text.slice(this.rendered, end));
      last.normalize();
      this.rendered = end;
    }
  }
}

/**
 * Return the last position behind which Markdown starts afresh, or `from`: a blank line outside of a fence or formula,
 * before a line that continues nothing.
 * @param {string} text
 * @param {number} from
 */
function blockBoundary(text, from) {
  if (text.length - from < MIN_BLOCK) return from;
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
    } else if (wasBlank && /^[^\s\-*+>|\d$\\]/.test(line)) found = at;
    wasBlank = !fence && line.trim() === "";
    at = end + 1;
  }
  return found;
}
