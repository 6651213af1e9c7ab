// Calls of the server.

import { session, settings } from "./settings.js";

/** A failed call. `code` is the server's reason, or NETWORK, STREAM_BROKEN. */
export class ApiError extends Error {
  constructor(code, { message = "", status = 0, requestId = null, retryAfterS = null } = {}) {
    super(message || code);
    Object.assign(this, { code, detail: message, status, requestId, retryAfterS });
  }
}

/** Yield the chunks of an answer. A lost connection, an error of the server and an early end raise an ApiError. */
export async function* streamAnswer({ messages, conversation, signal }) {
  const body = { model: settings.release || "default", messages, user: conversation, stream: true };
  body.stream_options = { include_usage: true };
  if (settings.maxTokens) body.max_tokens = settings.maxTokens;
  if (settings.temperature !== null) body.temperature = settings.temperature;
  const response = await call("/v1/chat/completions", { body, signal });
  const requestId = response.headers.get("x-request-id");
  for await (const data of events(response)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw errorOf(chunk.error, { requestId });
    yield chunk;
  }
  throw new ApiError("STREAM_BROKEN", { requestId });
}

/** Yield the status of the gateway, for operators. */
export async function* watchOperations(signal) {
  for await (const data of events(await call("/operations/status", { signal }))) {
    const status = JSON.parse(data);
    if (status.error) throw errorOf(status.error);
    yield status;
  }
  throw new ApiError("STREAM_BROKEN");
}

/** Promote or roll back: `command` is 'promote' or 'rollback'. Returns the rollout. */
export async function commandRollout(command, reason) {
  return (await call(`/operations/rollout/${command}`, { body: { reason } })).json();
}

export async function listModels() {
  return (await (await call("/v1/models", { signal: AbortSignal.timeout(8000) })).json()).data;
}

/** Return whether the server can answer questions now. */
export async function isReady() {
  const response = await fetch("/readyz", { cache: "no-store", signal: AbortSignal.timeout(4000) });
  return response.ok;
}

async function call(path, { body, signal } = {}) {
  const headers = session.apiKey ? { authorization: `Bearer ${session.apiKey}` } : {};
  const options = { headers, signal, cache: "no-store" };
  if (body !== undefined) {
    options.method = "POST";
    options.body = JSON.stringify(body);
    headers["content-type"] = "application/json";
  }
  const response = await reached(fetch(path, options));
  if (response.ok) return response;
  const requestId = response.headers.get("x-request-id");
  const retryAfterS = Number(response.headers.get("retry-after")) || null;
  const { error } = await response.json().catch(() => ({}));
  throw errorOf(error ?? {}, { status: response.status, requestId, retryAfterS });
}

function errorOf({ code, message, status }, facts = {}) {
  return new ApiError(code || "UNKNOWN", { message, status, ...facts });
}

/** Yield the data of server-sent events. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  try {
    for (;;) {
      const { value, done } = await reached(reader.read(), "STREAM_BROKEN");
      if (done) return;
      buffer += value;
      const blocks = buffer.split(/\r?\n\r?\n/);
      buffer = blocks.pop();
      for (const block of blocks) {
        const lines = block.split(/\r?\n/).filter((line) => line.startsWith("data:"));
        if (lines.length) yield lines.map((line) => line.slice(5).trimStart()).join("\n");
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // does nothing after the end
  }
}

/** Return what a promise of the network brings. Its failure is an ApiError, unless the page itself stopped the call. */
async function reached(promise, code = "NETWORK") {
  try {
    return await promise;
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(code);
  }
}
