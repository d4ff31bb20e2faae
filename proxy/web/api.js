// Client of the public API: requests, server-sent events, and errors with a message for people.

import { apiKey } from "./storage.js";

/** A failed request. The message is shown to people as it is. */
export class ApiError extends Error {
  /** @param {string} message @param {{status?: number, code?: string | null, retryAfter?: number}} [facts] */
  constructor(message, { status = 0, code = null, retryAfter = 0 } = {}) {
    super(message);
    this.status = status;
    this.code = code;
    this.retryAfter = retryAfter;
  }
  /** The connection failed; the server may still be running the turn. */
  get isNetwork() {
    return this.status === 0 && this.code === "network";
  }
}

const UNREACHABLE = "The server cannot be reached. Check the connection and try again.";

/**
 * Send a request and return the response if its status is 2xx.
 * @param {string} path
 * @param {{method?: string, body?: unknown, headers?: Record<string, string>, signal?: AbortSignal}} [options]
 * @returns {Promise<Response>}
 */
export async function request(path, { method = "GET", body, headers = {}, signal } = {}) {
  const sent = { ...headers };
  if (apiKey.get()) sent.Authorization = `Bearer ${apiKey.get()}`;
  if (body !== undefined) sent["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, {
      method,
      signal,
      headers: sent,
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ApiError(UNREACHABLE, { code: "network" });
  }
  if (!response.ok) throw await errorFrom(response);
  return response;
}

/** Send a request and return the JSON of the response. @param {string} path @param {object} [options] @returns {Promise<any>} */
export async function requestJson(path, options) {
  return (await request(path, options)).json();
}

/** @param {Response} response */
async function errorFrom(response) {
  const body = await response.json().catch(() => ({}));
  const { message = `The server responded with status ${response.status}.`, code = null } = body.error ?? {};
  const retryAfter = Number(response.headers.get("retry-after")) || 0;
  const facts = { status: response.status, code, retryAfter };
  const wait = retryAfter ? ` Try again in ${retryAfter} s.` : "";
  if (response.status === 401) return new ApiError("Missing or invalid API key.", facts);
  if (code === "conversation_busy") return new ApiError(`Another turn of this conversation is running.${wait}`, facts);
  if (response.status === 429) return new ApiError(`Rate limit exceeded.${wait} (${message})`, facts);
  return new ApiError(response.status >= 500 ? `${message}${wait}` : message, facts);
}

/**
 * Read server-sent events.
 * @param {Response} response
 * @returns {AsyncGenerator<{id: string, data: string}>}
 */
export async function* readEvents(response) {
  const reader = /** @type {ReadableStream<any>} */ (response.body).pipeThrough(/** @type {any} */ (new TextDecoderStream())).getReader();
  let rest = "";
  let id = "";
  /** @type {string[]} */
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop() ?? "";
      for (const line of lines) {
        if (line === "" && data.length) {
          yield { id, data: data.join("\n") };
          data = [];
        } else if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
        else if (line.startsWith("id:")) id = line.slice(3).trim();
      }
    }
  } finally {
    await reader.cancel().catch(() => undefined);
  }
}

const MAX_DELAY = 8000;

/**
 * Read the chunks of a turn. A lost connection is resumed behind the last chunk, for as long as the page is open: the
 * turn runs on the server (`X-On-Disconnect: detach`).
 * @param {() => Promise<Response>} begin
 * @param {{turn?: string | null, signal: AbortSignal, onturn?: (id: string) => void,
 *   onconnection?: (isConnected: boolean) => void}} options
 * @returns {AsyncGenerator<any>} chunks of a chat completion
 */
export async function* readChunks(begin, { turn = null, signal, onturn, onconnection }) {
  let lastId = "";
  let source = begin;
  for (let failures = 0; ; ) {
    try {
      let isComplete = false;
      const response = await source();
      if (failures) onconnection?.(true);
      for await (const frame of readEvents(response)) {
        failures = 0;
        if (frame.data === "[DONE]") {
          isComplete = true;
          continue;
        }
        const chunk = JSON.parse(frame.data);
        if (chunk.error) throw new ApiError(chunk.error.message, { status: 500, code: chunk.error.code });
        if (!turn && chunk.id) onturn?.((turn = chunk.id));
        lastId = frame.id || lastId;
        yield chunk;
      }
      if (isComplete) return;
      throw new ApiError(UNREACHABLE, { code: "network" });
    } catch (error) {
      const isLost = error instanceof ApiError ? error.isNetwork : error instanceof TypeError;
      if (signal.aborted || !isLost) throw error;
      if (!turn) throw new ApiError(UNREACHABLE, { code: "network" });
      failures += 1;
      onconnection?.(false);
      await delay(Math.min(250 * 2 ** failures, MAX_DELAY), signal);
      source = () => turnStream(/** @type {string} */ (turn), signal, lastId);
    }
  }
}

/** Wait, but no longer than until the browser is online again. @param {number} milliseconds @param {AbortSignal} signal */
export function delay(milliseconds, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(finish, milliseconds);
    function finish() {
      clearTimeout(timer);
      window.removeEventListener("online", finish);
      signal.removeEventListener("abort", finish);
      resolve(undefined);
    }
    window.addEventListener("online", finish);
    signal.addEventListener("abort", finish);
  });
}

/** @param {string} turn @param {AbortSignal} signal @param {string} [lastId] the id of the last frame */
export function turnStream(turn, signal, lastId = "") {
  return request(`/v1/chat/completions/${encodeURIComponent(turn)}/stream`, {
    signal,
    headers: lastId ? { "Last-Event-ID": lastId } : {},
  });
}

/**
 * Convert a chunk into events of the event feed.
 * @param {any} chunk
 * @returns {any[]}
 */
export function chunkEvents(chunk) {
  const choice = chunk.choices?.[0];
  const delta = choice?.delta ?? {};
  const extension = chunk.handoff;
  const events = [];
  if (extension && !extension.type.startsWith("turn.")) events.push(extension);
  // If there is an extension object, reasoning_content repeats it as a line of text.
  if (delta.reasoning_content && !extension) events.push({ type: "reasoning.delta", text: delta.reasoning_content });
  if (delta.content) events.push({ type: "text.delta", text: delta.content });
  if (delta.refusal) events.push({ type: "refusal.delta", text: delta.refusal });
  if (choice?.finish_reason) {
    const type = extension?.type === "turn.cancelled" ? "turn.cancelled" : "turn.completed";
    events.push({ ...extension, type, finish_reason: choice.finish_reason });
  }
  return events;
}
