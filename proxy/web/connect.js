// "Use this team from …": settings and code for other clients, for the chosen team, key and conversation.

import { openDialog } from "./dialogs.js";
import { copyButton, h } from "./dom.js";
import { markOverflow } from "./markdown.js";
import { apiKey } from "./storage.js";

const PLACEHOLDER = "YOUR_API_KEY";

/** @typedef {{base: string, model: string, key: string, conversation: string | null}} Facts */

/** @type {Record<string, (facts: Facts) => string>} */
const CLIENTS = {
  curl: ({ base, model, key, conversation }) =>
    [
      `curl -N ${shell(`${base}/chat/completions`)} \\`,
      `  -H ${shell(`Authorization: Bearer ${key}`)} \\`,
      "  -H 'Content-Type: application/json' \\",
      conversation ? `  -H ${shell(`X-Conversation-Id: ${conversation}`)} \\` : "",
      `  -d ${shell(JSON.stringify({ model, stream: true, messages: [{ role: "user", content: "Hello" }] }))}`,
    ]
      .filter(Boolean)
      .join("\n"),
  Python: ({ base, model, key, conversation }) => `from openai import OpenAI

client = OpenAI(base_url=${quote(base)}, api_key=${quote(key)})
stream = client.chat.completions.create(
    model=${quote(model)},
    messages=[{"role": "user", "content": "Hello"}],
    stream=True,${conversation ? `\n    extra_headers={"X-Conversation-Id": ${quote(conversation)}},` : ""}
)
for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
`,
  "Node.js": ({ base, model, key, conversation }) => `import OpenAI from "openai";

const client = new OpenAI({ baseURL: ${quote(base)}, apiKey: ${quote(key)} });
const stream = await client.chat.completions.create(
  { model: ${quote(model)}, messages: [{ role: "user", content: "Hello" }], stream: true },${conversation ? `\n  { headers: { "X-Conversation-Id": ${quote(conversation)} } },` : ""}
);
for await (const chunk of stream) process.stdout.write(chunk.choices[0]?.delta?.content ?? "");
`,
  LangChain: ({ base, model, key, conversation }) => `from langchain_openai import ChatOpenAI

model = ChatOpenAI(
    model=${quote(model)},
    base_url=${quote(base)},
    api_key=${quote(key)},${conversation ? `\n    default_headers={"X-Conversation-Id": ${quote(conversation)}},` : ""}
)
for chunk in model.stream("Hello"):
    print(chunk.content, end="", flush=True)
`,
  "Open WebUI": ({ base, key }) => `# Environment of Open WebUI
OPENAI_API_BASE_URL=${base}
OPENAI_API_KEY=${key}
# One conversation per chat
ENABLE_FORWARD_USER_INFO_HEADERS=True
FORWARD_SESSION_INFO_HEADER_CHAT_ID=X-Conversation-Id
`,
  LibreChat: ({ base, model, key }) => `# librechat.yaml
endpoints:
  custom:
    - name: ${quote("handoff-proxy")}
      baseURL: ${quote(base)}
      apiKey: ${quote(key)}
      headers:
        X-Conversation-Id: "{{LIBRECHAT_BODY_CONVERSATIONID}}"
      models:
        default: [${quote(model)}]
        fetch: true
`,
};

/** @param {string} text for JSON, Python, JavaScript and YAML alike */
const quote = (text) => JSON.stringify(text);
/** @param {string} text */
const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** @param {any} team @param {string | null} conversation */
export function showConnect(team, conversation) {
  const code = h("code");
  const pre = markOverflow(h("pre", { tabindex: "0" }, code));
  const withKey = h("input", { type: "checkbox" });
  const withConversation = h("input", { type: "checkbox" });
  const client = h("select", { "aria-label": "Client" }, ...Object.keys(CLIENTS).map((name) => h("option", {}, name)));
  const label = h("span");
  const show = () => {
    label.textContent = client.value;
    code.textContent = CLIENTS[client.value]({
      base: `${location.origin}/v1`,
      model: team.id,
      key: withKey.checked && apiKey.get() ? apiKey.get() : PLACEHOLDER,
      conversation: withConversation.checked ? conversation : null,
    });
  };
  for (const input of [client, withKey, withConversation]) input.addEventListener("change", show);
  show();
  return openDialog(
    `Use ${team.name || team.id} from …`,
    [
      client,
      apiKey.get() && h("label", { class: "choice" }, withKey, h("span", {}, "Include the API key")),
      conversation && h("label", { class: "choice" }, withConversation, h("span", {}, "Continue this conversation")),
      h("div", { class: "code" }, h("div", { class: "bar" }, label, copyButton("Copy", () => code.textContent ?? "")), pre),
    ],
    { wide: true },
  );
}
