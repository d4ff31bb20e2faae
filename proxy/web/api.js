// The public API, and nothing else of the server: requests, streams, and what went wrong in words.

import { key } from "./memory.js";

/** Something that did not work, in words for people. */
export class Trouble extends Error {
  /** @param {string} words @param {{status?: number, code?: string | null, retryAfter?: number}} [facts] */
  constructor(words, { status = 0, code = null, retryAfter = 0 } = {}) {
    super(words);
    this.status = status;
    this.code = code;
    this.retryAfter = retryAfter;
  }
  /** The connection is gone; the server may well be at work. */
  get isNetwork() {
    return this.status === 0 && this.code === "network";
  }
}

const GONE = "The server cannot be reached. Check the connection and try again.";

/**
 * Ask, and return the answer when it is a good one.
 * @param {string} path
 * @param {{method?: string, body?: unknown, headers?: Record<string, string>, signal?: AbortSignal}} [options]
 * @returns {Promise<Response>}
 */
export async function ask(path, { method = "GET", body, headers = {}, signal } = {}) {
  const given = { ...headers };
  if (key.get()) given.Authorization = `Bearer ${key.get()}`;
  if (body !== undefined) given["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(path, {
      method,
      signal,
      headers: given,
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Trouble(GONE, { code: "network" });
  }
  if (!answer.ok) throw await troubleOf(answer);
  return answer;
}

/** As `ask`, for answers of JSON. @param {string} path @param {object} [options] @returns {Promise<any>} */
export async function call(path, options) {
  return (await ask(path, options)).json();
}

/** @param {Response} answer */
async function troubleOf(answer) {
  const body = await answer.json().catch(() => ({}));
  const { message = `The server answered with status ${answer.status}.`, code = null } = body.error ?? {};
  const retryAfter = Number(answer.headers.get("retry-after")) || 0;
  const facts = { status: answer.status, code, retryAfter };
  const wait = retryAfter ? ` Try again in ${retryAfter} s.` : "";
  if (answer.status === 401) return new Trouble("This server wants an API key, or another one.", facts);
  if (code === "conversation_busy") return new Trouble(`This conversation is still being answered.${wait}`, facts);
  if (answer.status === 429) return new Trouble(`Too many requests for now.${wait} (${message})`, facts);
  return new Trouble(answer.status >= 500 ? `${message}${wait}` : message, facts);
}

/**
 * Read server-sent events.
 * @param {Response} answer
 * @returns {AsyncGenerator<{id: string, data: string}>}
 */
export async function* framesOf(answer) {
  const reader = /** @type {ReadableStream<Uint8Array>} */ (answer.body)
    .pipeThrough(new TextDecoderStream())
    .getReader();
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

const ATTEMPTS = 6;

/**
 * Follow the answer of a turn, and find it again when the connection is lost.
 * @param {() => Promise<Response>} begin
 * @param {{turn?: string | null, signal: AbortSignal, onturn?: (id: string) => void, onlost?: () => void}} options
 * @returns {AsyncGenerator<any>} chunks of a chat completion
 */
export async function* chunksOf(begin, { turn = null, signal, onturn, onlost }) {
  let seen = "";
  let source = begin;
  for (let failed = 0; ; ) {
    try {
      let isWhole = false;
      for await (const frame of framesOf(await source())) {
        failed = 0;
        if (frame.data === "[DONE]") {
          isWhole = true;
          continue;
        }
        const chunk = JSON.parse(frame.data);
        if (chunk.error) throw new Trouble(chunk.error.message, { status: 500, code: chunk.error.code });
        if (!turn && chunk.id) onturn?.((turn = chunk.id));
        seen = frame.id || seen;
        yield chunk;
      }
      if (isWhole) return;
      throw new Trouble(GONE, { code: "network" });
    } catch (error) {
      const isLost = error instanceof Trouble ? error.isNetwork : error instanceof TypeError;
      if (signal.aborted || !isLost) throw error;
      if (!turn || ++failed > ATTEMPTS) throw new Trouble(GONE, { code: "network" });
      onlost?.();
      await new Promise((resolve) => setTimeout(resolve, Math.min(250 * 2 ** failed, 8000)));
      source = () => streamOf(/** @type {string} */ (turn), signal, seen);
    }
  }
}

/** @param {string} turn @param {AbortSignal} signal @param {string} [seen] the id of the last frame */
export function streamOf(turn, signal, seen = "") {
  return ask(`/v1/chat/completions/${encodeURIComponent(turn)}/stream`, {
    signal,
    headers: seen ? { "Last-Event-ID": seen } : {},
  });
}

/**
 * What a chunk tells, as events of the feed.
 * @param {any} chunk
 * @returns {any[]}
 */
export function eventsOf(chunk) {
  const choice = chunk.choices?.[0];
  const delta = choice?.delta ?? {};
  const told = chunk.handoff;
  const found = [];
  if (told && !told.type.startsWith("turn.")) found.push(told);
  // With an object beside it, this is the same once more as a line of text.
  if (delta.reasoning_content && !told) found.push({ type: "reasoning.delta", text: delta.reasoning_content });
  if (delta.content) found.push({ type: "text.delta", text: delta.content });
  if (delta.refusal) found.push({ type: "refusal.delta", text: delta.refusal });
  if (choice?.finish_reason) {
    const type = told?.type === "turn.cancelled" ? "turn.cancelled" : "turn.completed";
    found.push({ ...told, type, finish_reason: choice.finish_reason });
  }
  return found;
}
