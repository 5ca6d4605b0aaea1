// One answer on the page: its text as it comes, its route, and what one can do with it.

import { Refused, chat } from "/client.js";
import { copy, make, say } from "/dom.js";
import { routePanel } from "/route.js";

export class Answer {
  /** `settled` is called whenever the answer starts, grows or ends. */
  constructor(model, makeBody, settled) {
    this.model = model;
    this.text = "";
    this.running = false;
    this.failed = false;
    this.makeBody = makeBody;
    this.settled = settled;
    this.controller = null;
    this.words = make("div", { class: "words" });
    this.state = make("p", { class: "state" });
    this.actions = make("div", { class: "actions" });
    this.side = make("div", { class: "side" });
    this.element = make(
      "article",
      { class: "answer", "aria-label": `Answer, ${model} asked for` },
      make("div", { class: "said" }, this.words, this.state, this.actions),
      this.side,
    );
  }

  stop() {
    this.controller?.abort();
  }

  async run() {
    this.#start();
    const started = performance.now();
    let first = null;
    try {
      await chat(this.makeBody(), this.controller.signal, {
        route: (route) => {
          this.side.replaceChildren(routePanel(route));
          this.settled();
        },
        text: (piece) => {
          first ??= performance.now();
          this.text += piece;
          if (!this.node) this.words.append((this.node = document.createTextNode("")));
          this.node.appendData(piece);
          this.state.textContent = "";
          this.settled();
        },
        end: (reason, usage) => this.#ended(reason, usage, started, first),
      });
    } catch (error) {
      if (error.name === "AbortError") this.#note("Stopped.");
      else this.#fail(error instanceof Refused ? error.message : `the page failed: ${error.message}`);
    } finally {
      this.#finish();
    }
  }

  #start() {
    this.text = "";
    this.node = null;
    this.running = true;
    this.failed = false;
    this.controller = new AbortController();
    this.words.replaceChildren();
    this.side.replaceChildren();
    this.actions.replaceChildren();
    this.element.setAttribute("aria-busy", "true");
    this.element.classList.remove("failed");
    this.#note("Waiting for the first token");
    this.settled();
  }

  #ended(reason, usage, started, first) {
    const now = performance.now();
    const parts = [];
    if (reason === "length") parts.push("Cut off at its longest");
    if (usage) {
      parts.push(`${usage.completion_tokens} ${usage.completion_tokens === 1 ? "token" : "tokens"}`);
      const cached = usage.prompt_tokens_details?.cached_tokens;
      parts.push(`prompt ${usage.prompt_tokens}${cached ? `, ${cached} cached` : ""}`);
    }
    if (first !== null) parts.push(`first after ${seconds(first - started)}`);
    parts.push(`${seconds(now - started)} in all`);
    this.#note(this.text ? parts.join(" · ") : `Nothing was said · ${parts.join(" · ")}`);
  }

  #fail(message) {
    this.failed = true;
    this.element.classList.add("failed");
    this.#note(message);
  }

  #finish() {
    this.running = false;
    this.element.setAttribute("aria-busy", "false");
    if (this.text) this.actions.append(this.#button("Copy", () => this.#copy()));
    const again = this.failed ? "Retry" : "Again";
    this.actions.append(this.#button(again, () => this.run()));
    this.settled();
  }

  async #copy() {
    try {
      await copy(this.text);
      say("Copied");
      const button = this.actions.firstElementChild;
      button.textContent = "Copied";
      setTimeout(() => (button.textContent = "Copy"), 1500);
    } catch (error) {
      this.#note(`not copied: ${error.message}`);
    }
  }

  #button(name, clicked) {
    return make("button", { type: "button", class: "small", click: clicked }, name);
  }

  #note(text) {
    this.state.textContent = text;
  }
}

function seconds(milliseconds) {
  return milliseconds < 1000 ? `${Math.round(milliseconds)} ms` : `${(milliseconds / 1000).toFixed(1)} s`;
}
