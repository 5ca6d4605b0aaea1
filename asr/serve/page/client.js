// What the page asks of the server: status, and answers as they come. Knows nothing of how they look.

import { askForKey } from "/lock.js";

const STORED = "asr-api-key";
let declined = false;

/** A request that got no answer; its message is one line. */
export class Refused extends Error {}

/** Return the server's status, or throw Refused. It asks for a key at most once on its own. */
export async function status() {
  return (await request("/v1/status", {}, !declined)).json();
}

/**
 * Ask for an answer.
 *
 * `told` gets `route(fields)` once, `text(piece)` for every piece, and `end(reason, usage)` at the
 * end. Throws Refused, or an AbortError once `signal` is aborted.
 */
export async function chat(body, signal, told) {
  const response = await request(
    "/v1/chat/completions",
    {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
      signal,
    },
    true,
  );
  let reason = null;
  let usage = null;
  for await (const data of events(response.body, signal)) {
    if (data === "[DONE]") {
      told.end(reason, usage);
      return;
    }
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Refused(chunk.error.message);
    if (chunk.asr) told.route(chunk.asr);
    if (chunk.usage) usage = chunk.usage;
    for (const choice of chunk.choices) {
      if (choice.delta.content) told.text(choice.delta.content);
      reason = choice.finish_reason ?? reason;
    }
  }
  throw new Refused("the connection ended before the answer did");
}

async function request(path, options, mayAsk) {
  for (;;) {
    const key = sessionStorage.getItem(STORED);
    const response = await reach(path, options, key);
    if (response.ok) return response;
    if (response.status !== 401 || !mayAsk) throw new Refused(await messageOf(response));
    if (sessionStorage.getItem(STORED) !== key) continue; // another request has got a newer one
    const given = await askForKey(key !== null);
    declined = given === null;
    if (declined) throw new Refused(await messageOf(response));
    sessionStorage.setItem(STORED, given);
  }
}

async function reach(path, options, key) {
  const headers = { ...options.headers };
  // headers are bytes: a key with other letters goes as the bytes of its UTF-8
  if (key) headers.authorization = `Bearer ${String.fromCharCode(...new TextEncoder().encode(key))}`;
  try {
    return await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("the server cannot be reached");
  }
}

async function messageOf(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `the server answered with status ${response.status}`;
  }
}

/** Yield the data of server-sent events. */
async function* events(stream, signal) {
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      if (signal.aborted) throw error;
      return; // a broken connection is one that ended early
    }
    if (part.done) return;
    const blocks = (rest + decoder.decode(part.value, { stream: true })).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const lines = block.split("\n").filter((line) => line.startsWith("data:"));
      if (lines.length) yield lines.map((line) => line.slice(5).replace(/^ /, "")).join("\n");
    }
  }
}
