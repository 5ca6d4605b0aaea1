// Where an answer came from, and the scores of the domains as bars.

import { make } from "/dom.js";

const SHOWN = 10;

/** Return a panel that shows the `asr` field of an answer. */
export function routePanel(route) {
  return make(
    "section",
    { class: "route", "aria-label": "Route" },
    make(
      "p",
      { class: "adapter" },
      make("strong", { title: route.adapter }, route.adapter),
      make("span", { class: `kind ${route.route}` }, route.route),
    ),
    make("p", { class: "why" }, why(route)),
    route.route === "named" ? null : figures(route),
    route.route === "named" ? null : scores(route),
  );
}

function why(route) {
  if (route.route === "named") return "Named in the request; the router was not asked.";
  const { domain, score, margin, threshold } = route;
  if (route.route === "abstained") {
    return `The router abstained: how well known it is, ${shown(score)}, is below the ` +
      `threshold of ${shown(threshold)}. ${domain} is nearest. The base answers.`;
  }
  return margin === null
    ? "Chosen by the router: there is no other domain."
    : `Chosen by the router, ${shown(margin)} ahead of the next domain.`;
}

function figures({ score, margin, threshold, probability }) {
  const entry = (name, value) => make("div", {}, make("dt", {}, name), make("dd", {}, value));
  return make(
    "dl",
    {},
    entry("Score", shown(score)),
    entry("Margin", margin === null ? "none" : shown(margin)),
    entry("Threshold", threshold === null ? "none" : shown(threshold)),
    entry("Probability", shown(probability)),
  );
}

function scores(route) {
  const sorted = Object.entries(route.scores).sort((one, two) => two[1] - one[1]);
  const top = sorted.slice(0, SHOWN);
  // Whether a request is known is a score of its own, made of several terms; only where it is the
  // best domain's score does the threshold have a place on the bars.
  const plain = Math.abs(route.scores[route.domain] - route.score) < 1e-6;
  const tick = plain && route.threshold !== null ? route.threshold : null;
  const values = [0, ...top.map(([, value]) => value), ...(tick === null ? [] : [tick])];
  const low = Math.min(...values);
  const span = Math.max(...values) - low || 1;
  const left = sorted.length - top.length;
  return make(
    "details",
    { class: "scores", open: matchMedia("(min-width: 48rem)").matches },
    make("summary", {}, `Scores of ${sorted.length} ${sorted.length === 1 ? "domain" : "domains"}`),
    make("ol", {}, ...top.map(([name, value]) => bar(name, value, route, tick, low, span))),
    left ? make("p", { class: "note" }, `and ${left} more, none above ${shown(sorted[SHOWN][1])}`) : null,
    tick === null ? null : make("p", { class: "note key" }, `threshold ${shown(tick)}`),
    plain ? null : make("p", { class: "note" }, "The bars say which domain; the score against the threshold says whether any."),
  );
}

function bar(name, value, route, tick, low, span) {
  const at = (number) => `${(100 * (number - low)) / span}%`;
  const fill = make("span", { class: "fill" });
  fill.style.left = at(Math.min(0, value));
  fill.style.width = `${(100 * Math.abs(value)) / span}%`;
  const track = make("span", { class: "track", "aria-hidden": "true" }, fill);
  if (tick !== null) {
    const mark = make("span", { class: "tick" });
    mark.style.left = at(tick);
    track.append(mark);
  }
  const chosen = name === route.adapter;
  return make(
    "li",
    { class: chosen ? "chosen" : "" },
    make("span", { class: "name", title: name }, name),
    chosen ? make("span", { class: "mark" }, "chosen") : null,
    make("span", { class: "value" }, shown(value)),
    track,
  );
}

function shown(number) {
  if (number === null) return "none";
  const size = Math.abs(number);
  const text = size !== 0 && (size < 0.001 || size >= 10000) ? number.toExponential(2) : number.toFixed(3);
  return text.replace("-", "−");
}
