// Files of the next message: images as `image_url` parts, where the team's models accept them, and text files as text.

import { ApiError } from "./api.js";
import { byId, h, iconButton, showInvisible } from "./dom.js";
import { icon } from "./icons.js";

const IMAGES = new Set(["image/png", "image/jpeg", "image/gif", "image/webp"]);
const MAX_IMAGE_BYTES = 4_000_000;
const MAX_TEXT_BYTES = 200_000;

export class Attachments {
  /** @param {{acceptsImages: () => boolean, onerror: (error: unknown) => void}} actions */
  constructor(actions) {
    this.actions = actions;
    /** @type {{name: string, part: any}[]} */
    this.items = [];
    this.list = byId("attachments");
    const input = byId("files");
    byId("attach").addEventListener("click", () => input.click());
    input.addEventListener("change", () => {
      this.add([...input.files]);
      input.value = "";
    });
    byId("message").addEventListener("paste", (/** @type {ClipboardEvent} */ event) => this.receive(event, event.clipboardData));
    const main = /** @type {HTMLElement} */ (document.querySelector("main"));
    main.addEventListener("dragover", (event) => event.preventDefault());
    main.addEventListener("drop", (event) => this.receive(event, event.dataTransfer));
  }

  /** @param {Event} event @param {DataTransfer | null} transfer */
  receive(event, transfer) {
    const files = [...(transfer?.files ?? [])];
    if (!files.length) return;
    event.preventDefault();
    this.add(files);
  }

  /** @param {File[]} files */
  async add(files) {
    for (const file of files) {
      try {
        this.items.push({ name: file.name, part: await this.read(file) });
      } catch (error) {
        this.actions.onerror(error);
      }
    }
    this.show();
  }

  /** @param {File} file */
  async read(file) {
    if (IMAGES.has(file.type)) {
      if (!this.actions.acceptsImages()) throw new ApiError("The models of this team do not accept images.");
      if (file.size > MAX_IMAGE_BYTES) throw new ApiError(`${file.name} is larger than 4 MB.`);
      return { type: "image_url", image_url: { url: await dataUrl(file) } };
    }
    if (file.size > MAX_TEXT_BYTES) throw new ApiError(`${file.name} is larger than 200 kB.`);
    const text = await file.text();
    if (text.includes("\0")) throw new ApiError(`${file.name} is neither an image nor a text file.`);
    return { type: "text", text: `${showInvisible(file.name)}:\n\n${text}` };
  }

  /** Return the files with their content parts and remove them. @returns {{name: string, part: any}[]} */
  take() {
    const { items } = this;
    this.items = [];
    this.show();
    return items;
  }

  /** @param {{name: string, part: any}[]} items that were taken */
  putBack(items) {
    this.items = [...items, ...this.items];
    this.show();
  }

  show() {
    this.list.hidden = !this.items.length;
    this.list.replaceChildren(
      ...this.items.map((item) =>
        h(
          "li",
          {},
          item.part.image_url ? h("img", { src: item.part.image_url.url, alt: "" }) : icon("attach"),
          h("span", {}, showInvisible(item.name)),
          iconButton("close", `Remove ${item.name}`, () => {
            this.items = this.items.filter((one) => one !== item);
            this.show();
          }),
        ),
      ),
    );
  }
}

/** @param {File} file @returns {Promise<string>} */
function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => resolve(String(reader.result)));
    reader.addEventListener("error", () => reject(reader.error));
    reader.readAsDataURL(file);
  });
}
