// The live figures of the server, while somebody can see them.

import { Refused, status } from "/client.js";

const EVERY = 2000;
const WINDOW = 10; // seconds that the rate of tokens is taken over

const place = (id) => document.getElementById(id);
let samples = [];
let timer = null;

/** Ask now and then; `served` is called with each status. Stops while the tab is hidden. */
export function follow(served) {
  const poll = async () => {
    clearTimeout(timer);
    timer = null;
    try {
      const now = await status();
      show(now);
      served(now);
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      samples = [];
      place("figures").classList.add("stale");
      place("served").textContent = error.message;
    }
    if (!document.hidden) {
      clearTimeout(timer);
      timer = setTimeout(poll, EVERY);
    }
  };
  document.addEventListener("visibilitychange", () => {
    samples = [];
    clearTimeout(timer);
    timer = null;
    if (!document.hidden) poll();
  });
  return poll();
}

function show(now) {
  place("figures").classList.remove("stale");
  const domains = now.domains.length;
  place("served").textContent = `${now.base} with ${domains} ${domains === 1 ? "domain" : "domains"}`;
  place("running").textContent = now.running;
  place("waiting").textContent = now.waiting;
  place("rate").textContent = rate(now);
  place("resident").textContent = `${now.resident.length} / ${domains}`;
  place("resident").parentElement.title =
    `${megabytes(now.resident_bytes)} of ${megabytes(now.budget_bytes)} MB; ` +
    `${now.loads} loads, ${now.evictions} evictions`;
  place("hits").textContent = now.cache_hits;
}

/** Return tokens a second. The server counts an answer's tokens when it ends. */
function rate(now) {
  const tokens = Object.values(now.completion_tokens).reduce((sum, count) => sum + count, 0);
  const last = samples.at(-1);
  if (last && (tokens < last.tokens || now.uptime < last.uptime)) samples = []; // it was restarted
  samples.push({ tokens, uptime: now.uptime });
  while (samples.length > 2 && now.uptime - samples[1].uptime >= WINDOW) samples.shift();
  const passed = now.uptime - samples[0].uptime;
  return passed > 0 ? ((tokens - samples[0].tokens) / passed).toFixed(1) : "–";
}

function megabytes(bytes) {
  return (bytes / 1e6).toFixed(1);
}
