// The playground: a conversation, and the form that continues it.

import { Answer } from "/answer.js";
import { make, say } from "/dom.js";
import { follow } from "/figures.js";

const place = (id) => document.getElementById(id);
const text = place("text");
const scroller = place("scroller");
const conversation = place("conversation");
let turns = [];
let following = true; // whether who reads is at the end, and wants to stay there

const running = () => turns.flatMap((turn) => turn.answers).filter((answer) => answer.running);

/** Return the messages before a turn and its own; turns that got no answer are left out. */
function messages(turn) {
  const before = turns.slice(0, turns.indexOf(turn)).filter((one) => one.kept.text && !one.kept.failed);
  return [
    ...before.flatMap((one) => [
      { role: "user", content: one.asked },
      { role: "assistant", content: one.kept.text },
    ]),
    { role: "user", content: turn.asked },
  ];
}

function sampling() {
  const set = ["temperature", "max_tokens", "seed"].filter((id) => place(id).value !== "");
  return Object.fromEntries(set.map((id) => [id, place(id).valueAsNumber]));
}

function send() {
  const asked = text.value;
  const chosen = sampling();
  const models = [place("model").value, ...(place("compare").checked ? [place("other").value] : [])];
  const turn = { asked };
  turn.answers = models.map(
    (model) => new Answer(model, () => ({ model, messages: messages(turn), ...chosen }), settled),
  );
  turn.kept = turn.answers[0];
  turns.push(turn);
  place("empty").hidden = true;
  const number = turns.length;
  conversation.append(
    make(
      "section",
      { class: "turn", "aria-label": `Turn ${number}` },
      make("p", { class: "asked" }, make("span", { class: "unseen" }, "You: "), asked),
      make("div", { class: models.length > 1 ? "answers two" : "answers" }, ...turn.answers.map((a) => a.element)),
    ),
  );
  if (models.length > 1) turn.answers.forEach((answer) => choosable(turn, answer, number));
  text.value = "";
  grow();
  following = true;
  turn.answers.forEach((answer) => answer.run());
}

/** Let one say which of two answers the conversation goes on from. */
function choosable(turn, answer, number) {
  const box = make("input", {
    type: "radio",
    name: `kept-${number}`,
    checked: answer === turn.kept,
    change: () => (turn.kept = answer),
  });
  answer.element.prepend(
    make("div", { class: "head" }, make("strong", {}, answer.model), make("label", { class: "check" }, box, " Go on from this")),
  );
}

/** Bring the page in line with the answers; keeps the end in view for who is looking at it. */
function settled() {
  const busy = running().length > 0;
  const focused = [place("send"), place("stop")].includes(document.activeElement);
  place("stop").hidden = !busy;
  place("send").hidden = busy;
  if (focused) place(busy ? "stop" : "send").focus(); // not lost with the button that goes
  if (following) scroller.scrollTop = scroller.scrollHeight;
}

function stop() {
  const answers = running();
  answers.forEach((answer) => answer.stop());
  if (answers.length) say("Stopped");
}

function restart() {
  stop();
  turns = [];
  conversation.replaceChildren();
  place("empty").hidden = false;
  settled();
  text.focus();
}

function grow() {
  text.style.height = "auto";
  text.style.height = `${text.scrollHeight + 2}px`;
}

/** Offer what is served; what was chosen stays chosen if it is still there. */
function offer({ domains }) {
  const names = ["auto", "base", ...domains];
  for (const [id, usual] of [["model", "auto"], ["other", "base"]]) {
    const list = place(id);
    if (names.join("\n") === [...list.options].map((option) => option.value).join("\n")) continue;
    const before = list.value || usual;
    list.replaceChildren(...names.map((name) => make("option", { value: name }, name)));
    list.value = names.includes(before) ? before : usual;
  }
}

place("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const form = event.target;
  if (running().length || !text.value.trim()) return;
  if (!form.checkValidity()) {
    place("sampling").open = true; // a field that cannot be seen cannot say what is wrong
    form.reportValidity();
    return;
  }
  send();
});
place("composer").noValidate = true;
text.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  place("composer").requestSubmit();
});
text.addEventListener("input", grow);
scroller.addEventListener("scroll", () => {
  following = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 48;
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !place("lock").open) stop();
});
place("stop").addEventListener("click", () => {
  stop();
  text.focus();
});
place("new").addEventListener("click", restart);
place("compare").addEventListener("change", (event) => {
  place("against").hidden = !event.target.checked;
});

offer({ domains: [] });
follow(offer);
