"use strict";
// Shows one pair after another. An answer is sent until the server has recorded it: it is also stored in the browser,
// so that neither a fault nor a reload loses it, and its number lets the server ignore an answer that comes twice.

const annotator = decodeURIComponent(location.pathname.split("/").pop());
const api = `/api/${encodeURIComponent(annotator)}`;
const storage = `dina-answer:${annotator}`;
const RETRY_MS = 1000;
const KEYS = { ArrowLeft: "left", ArrowRight: "right", ArrowUp: "tie", ArrowDown: "both_bad", s: "skip" };
// Smaller pictures are enlarged without blur.
const SMALL_PIXELS = 256;

const element = (id) => document.getElementById(id);
const choiceButtons = [...document.querySelectorAll("[data-choice]")];
const undoButtons = [element("undo"), element("undo-last")];
let state = null; // what the server said last
let ready = false; // whether both pictures are visible and no answer is on its way
let shownAt = 0;

function setReady(value) {
  ready = value;
  for (const button of choiceButtons) button.disabled = !value || !state.pair;
  for (const button of undoButtons) button.disabled = !value || !state.can_undo;
}

function timeLeft(seconds) {
  if (!seconds) return "";
  const minutes = Math.round(seconds / 60);
  if (minutes < 1) return " · less than a minute left";
  if (minutes < 60) return ` · about ${minutes} min left`;
  return ` · about ${(minutes / 60).toFixed(1)} h left`;
}

async function showPicture(id, source) {
  const image = element(id);
  image.src = source;
  await image.decode();
  image.classList.toggle("pixels", Math.max(image.naturalWidth, image.naturalHeight) < SMALL_PIXELS);
}

async function show(next) {
  state = next;
  setReady(false);
  const total = state.done + state.remaining;
  element("bar").max = Math.max(total, 1);
  element("bar").value = total ? state.done : 1;
  element("progress").textContent = `${state.done} of ${total}${timeLeft(state.seconds)}`;
  element("question").hidden = !state.pair;
  element("finished").hidden = Boolean(state.pair);
  if (state.pair) {
    element("prompt").textContent = state.prompt;
    try {
      await Promise.all([showPicture("left", state.pictures[0]), showPicture("right", state.pictures[1])]);
    } catch {
      // The server checks pictures before it presents them: this one has just been lost, or the server is gone.
      fault("A picture cannot be loaded. The page tries again.");
      setTimeout(load, RETRY_MS);
      return;
    }
  }
  fault("");
  for (const frame of document.querySelectorAll(".chosen")) frame.classList.remove("chosen");
  shownAt = performance.now();
  setReady(true);
}

function fault(text) {
  element("fault").textContent = text;
  element("fault").hidden = !text;
}

// The server's answer, however long it takes; null if it refuses the request. `attempts` counts what was sent.
async function request(path, body) {
  const options = body && {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
  };
  for (let attempts = 1; ; attempts++) {
    try {
      const response = await fetch(api + path, options);
      const content = await response.json();
      if (response.ok) return { attempts, ...content };
      fault(`${content.error}.${response.status < 500 ? " Reload the page." : " The page tries again."}`);
      if (response.status < 500) return null;
    } catch {
      fault("The server does not answer. The page tries again.");
    }
    await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
  }
}

async function load() {
  const next = await request("/pair");
  if (next) await show(next);
}

async function send(answer) {
  setReady(false);
  element("note").textContent = "";
  localStorage.setItem(storage, JSON.stringify(answer));
  const next = await request(answer.path, answer.body);
  localStorage.removeItem(storage);
  if (!next) {
    // An answer of an earlier visit may be to pairs that are no longer here.
    if (answer.stored) await load();
    return;
  }
  // After several attempts, the answer that was recorded may be this one.
  if (!next.recorded && next.attempts === 1 && !answer.stored) {
    element("note").textContent = "This pair was already answered in another window. The first answer counts.";
  }
  await show(next);
}

function choose(choice) {
  if (!ready || !state.pair) return;
  document.querySelector(`.frame[data-choice=${choice}]`)?.classList.add("chosen");
  const { number, pair, left } = state;
  const seconds = (performance.now() - shownAt) / 1000;
  send({ path: "/vote", body: { number, pair, left, choice, seconds } });
}

function undo() {
  if (ready && state.can_undo) send({ path: "/undo", body: { number: state.number } });
}

for (const button of choiceButtons) button.addEventListener("click", () => choose(button.dataset.choice));
for (const button of undoButtons) button.addEventListener("click", undo);
document.addEventListener("keydown", (event) => {
  // A key that is held down votes once.
  if (event.repeat || event.ctrlKey || event.altKey || event.metaKey) return;
  const choice = KEYS[event.key] ?? KEYS[event.key.toLowerCase()];
  if (choice) choose(choice);
  else if (event.key === "Backspace" || event.key.toLowerCase() === "u") undo();
  else return;
  event.preventDefault();
});

element("name").textContent = annotator;
const stored = localStorage.getItem(storage);
if (stored) {
  state = { pair: null, can_undo: false };
  send({ ...JSON.parse(stored), stored: true });
} else {
  load();
}
