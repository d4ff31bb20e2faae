// Swagger UI at /docs and ReDoc at /redoc. Both show /openapi.json, which needs an API key if the server does.

const main = document.querySelector("#description");

const VIEWERS = {
  swagger(description, key) {
    const ui = SwaggerUIBundle({
      spec: description,
      domNode: main,
      deepLinking: true,
      // The validator is a public service.
      validatorUrl: null,
      onComplete: () => key && ui.preauthorizeApiKey("key", key),
    });
  },
  redoc(description) {
    // The search runs in a worker from a blob: URL, which the Content Security Policy forbids.
    Redoc.init(description, { disableSearch: true, hideDownloadButtons: true, disableGoogleFont: true }, main);
  },
};

async function show(key) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const response = await fetch("/openapi.json", { headers });
  if (response.status === 401) return askForKey(key ? "The API key is not valid." : "This server needs an API key.");
  if (!response.ok) return notice(`The description could not be loaded (status ${response.status}).`);
  if (!globalThis.SwaggerUIBundle && !globalThis.Redoc) return linkOnly();
  main.replaceChildren();
  VIEWERS[document.body.dataset.viewer](await response.json(), key);
}

function notice(text, ...children) {
  const box = document.createElement("div");
  box.className = "notice";
  box.setAttribute("role", "status");
  box.append(text, ...children);
  main.replaceChildren(box);
}

function askForKey(text) {
  const form = document.createElement("form");
  const input = Object.assign(document.createElement("input"), { type: "password", autocomplete: "off", required: true });
  input.setAttribute("aria-label", "API key");
  const button = Object.assign(document.createElement("button"), { textContent: "Show" });
  form.append(input, button);
  form.addEventListener("submit", event => {
    event.preventDefault();
    show(input.value.trim()).catch(failed);
  });
  notice(text, form);
  input.focus();
}

function linkOnly() {
  const link = Object.assign(document.createElement("a"), { href: "/openapi.json", textContent: "/openapi.json" });
  notice("The viewer was not downloaded at installation. Run make install again, or read ", link);
}

function failed() {
  notice("The server did not respond. Reload the page to try again.");
}

show().catch(failed);
