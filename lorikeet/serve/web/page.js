// The page: reads the settings, asks, shows what comes. State is `talk` and the form; both outlive a reload of the tab.

import { element } from "./markdown.js";
import { ApiError, models, reply, report } from "./api.js";
import { NUMBERS, options, setOptions, showUsual, unfold } from "./settings.js";
import { newReply, Talk } from "./talk.js";
import { fill, turnNode } from "./view.js";

const $ = (id) => document.getElementById(id);
const root = document.documentElement;
const log = $("log");
const question = $("question");
const KEPT = ["model", "other", "system", "stop", "theme", ...NUMBERS];
const CLOSE_TO_END = 60; // pixels; who has scrolled further up is reading and stays there
const narrow = matchMedia("(max-width: 760px)");

let talk = new Talk();
let before = null; // the conversation that "New chat" put away
let stopper = null; // of the replies that come now
let editing = null; // the turn that the next message replaces, with all behind it
let trained = ""; // the system prompt of training that was filled in last

// ---- settings

const system = () => ($("system").value === trained ? trained : $("system").value.trim()); // as trained, to the letter

function keep() {
  try {
    const filled = KEPT.filter((name) => $(name).options?.length !== 0); // models that are not known yet stay as they were
    const old = JSON.parse(localStorage.getItem("lorikeet") ?? "{}");
    const kept = { ...old, ...Object.fromEntries(filled.map((name) => [name, $(name).value])) };
    localStorage.setItem("lorikeet", JSON.stringify({ ...kept, trained, compare: $("compare").checked }));
    sessionStorage.setItem("lorikeet-key", $("key").value);
    sessionStorage.setItem("lorikeet-chat", talk.turns.length ? JSON.stringify(talk.turns) : "");
  } catch {
    // a browser that keeps nothing: the page works, and forgets
  }
}

function recall() {
  try {
    const kept = JSON.parse(localStorage.getItem("lorikeet") ?? "{}");
    for (const name of KEPT) if (kept[name] !== undefined && $(name).tagName !== "SELECT") $(name).value = kept[name];
    unfold();
    $("theme").value = kept.theme ?? "";
    trained = kept.trained ?? "";
    $("compare").checked = kept.compare ?? false;
    $("key").value = sessionStorage.getItem("lorikeet-key") ?? "";
    talk.turns = JSON.parse(sessionStorage.getItem("lorikeet-chat") || "[]");
    for (const turn of talk.turns) for (const said of turn.replies) if (said && said.reason === null) said.reason = "stopped";
    return kept;
  } catch {
    return {};
  }
}

async function fillModels(chosen = {}) {
  const found = await models($("key").value).catch((error) => {
    if (error.status === 401) return askForKey(error);
    return notice(error.message, ["Try again", () => fillModels(chosen)]);
  });
  if (!found) return;
  notice("");
  for (const [name, first] of [["model", found[0]], ["other", found[1] ?? found[0]]]) {
    // the first is what the server was started with
    const wanted = chosen[name] || $(name).value;
    $(name).replaceChildren(...found.map((one) => element("option", { value: one.id }, labelled(one))));
    $(name).value = found.some((one) => one.id === wanted) ? wanted : first?.id ?? "";
  }
  suit(found.find((one) => one.id === $("model").value)?.system ?? "");
  $("compare").disabled = found.length < 2; // there is nothing to compare with
  $("compare").parentElement.title = found.length < 2 ? "This server has one model" : "";
  if (found.length < 2) $("compare").checked = false;
  if (stopper) show();
  else keepingEnd(draw);
}

/** Fill in the system prompt that the model was trained behind, unless a person wrote another, or emptied this one. */
function suit(wanted) {
  if (wanted !== trained && [trained, ""].includes($("system").value)) $("system").value = wanted;
  trained = wanted;
}

/** What the server is like: whether it has a report, and what it does where nothing is set. */
function suitServer({ report, usual }) {
  $("report").hidden = !report;
  showUsual(usual);
}

function labelled({ id, parent }) {
  return id === "base" ? "base, without adapter" : parent ? `${id} (adapter)` : id;
}

function askForKey(error) {
  $("key-row").hidden = false;
  openSettings(true);
  $("key").focus();
  notice(error.message);
}

function openSettings(open) {
  root.dataset.settings = open ? "open" : "closed";
  $("show-settings").setAttribute("aria-expanded", String(open));
  const covered = open && narrow.matches; // on a phone the settings lie over everything else
  document.querySelector("main").inert = covered;
  document.querySelector("header").inert = covered;
  if (open) $("hide-settings").focus();
  else $("show-settings").focus();
}

/** What follows from the settings: colours, title, whether there are two lanes. */
function show() {
  root.dataset.theme = $("theme").value;
  const two = $("compare").checked;
  $("other-row").hidden = !two;
  log.classList.toggle("two", two || talk.lanes === 2);
  const named = [$("model").value, ...(two ? [$("other").value] : [])].filter(Boolean).join(" and ");
  $("title").textContent = named || "Lorikeet";
  document.title = named ? `${named} – Lorikeet` : "Lorikeet";
  keep();
}

// ---- the conversation

function notice(text, action = null) {
  $("notice").hidden = !text;
  $("notice").replaceChildren(text, ...(action ? [" ", element("button", { type: "button", onclick: action[1] }, action[0])] : []));
}

function draw() {
  const [busy, lanes] = [stopper !== null, $("compare").checked ? 2 : 1];
  const nodes = talk.turns.map((turn, index) =>
    turnNode(turn, index, { last: index === talk.turns.length - 1, busy, lanes, replaced: editing !== null && index >= editing }, { edit, again }),
  );
  if (!nodes.length) nodes.push(empty());
  log.replaceChildren(...nodes);
  $("send").hidden = busy;
  $("stop-reply").hidden = !busy;
  for (const name of ["clear", "load", "save-json", "save-markdown"]) $(name).disabled = busy;
  if (!talk.turns.length) for (const name of ["save-json", "save-markdown"]) $(name).disabled = true;
  show();
}

function empty() {
  const back = () => {
    talk = before;
    before = null;
    draw();
  };
  const undo = before ? [element("p", {}, element("button", { type: "button", onclick: back }, "Bring the last chat back"))] : [];
  return element("div", { class: "empty" }, element("p", {}, "Ask something."), ...undo);
}

function toEnd() {
  log.scrollTop = log.scrollHeight;
}

function say(text) {
  $("status").textContent = text;
}

function submit() {
  const text = question.value.trim();
  if (!text || stopper) return;
  if (!$("options").checkValidity()) {
    openSettings(true);
    $("options").querySelector("input:invalid")?.closest("details")?.setAttribute("open", "");
    $("options").reportValidity();
    return;
  }
  if (!$("model").value) {
    fillModels();
    return;
  }
  if (editing !== null) talk.turns.length = editing;
  editing = null;
  before = null;
  talk.turns.push({ user: text, replies: [] });
  question.value = "";
  grow();
  answer();
}

function again() {
  if (!stopper && talk.turns.length) answer();
}

/** Ask for the replies of the last turn, in as many lanes as are chosen. */
async function answer() {
  const turn = talk.last;
  const names = $("compare").checked ? [$("model").value, $("other").value] : [$("model").value];
  turn.replies = names.map(newReply);
  stopper = new AbortController();
  notice("");
  say("The reply is coming");
  draw();
  toEnd();
  question.focus();
  const nodes = [...log.lastElementChild.querySelectorAll(".reply")];
  await Promise.all(turn.replies.map((said, lane) => come(said, lane, nodes[lane])));
  stopper = null;
  keepingEnd(draw);
  const [first] = turn.replies;
  say(first.reason === "error" ? "" : first.reason === "stopped" ? "Stopped" : `The reply is finished, ${first.tokens ?? "?"} tokens`);
}

/** One lane's reply, into its node as it comes. */
async function come(said, lane, node) {
  const start = performance.now();
  const seconds = () => (performance.now() - start) / 1000;
  const paint = painter(() => fill(node, said));
  const onText = (text, thinking) => {
    said.first ??= seconds();
    said[thinking ? "thinking" : "text"] += text;
    paint();
  };
  const messages = talk.messages(lane, system());
  try {
    const found = await reply({ model: said.model, messages, ...options() }, { key: $("key").value, signal: stopper.signal, onText });
    Object.assign(said, { reason: found.reason, tokens: found.tokens });
  } catch (error) {
    said.reason = error.name === "AbortError" ? "stopped" : "error";
    if (said.reason === "error") said.error = error instanceof ApiError ? error.message : `This page failed: ${error.message}`;
    if (error.status === 401) askForKey(error);
  }
  said.seconds = seconds();
  paint.stop();
  keepingEnd(() => fill(node, said));
  keep();
}

/** Change the log; who was reading its end sees its new end. */
function keepingEnd(change) {
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < CLOSE_TO_END;
  change();
  if (atEnd) toEnd();
}

/** Draws soon after it is called, at most once a frame, and seldom enough that long replies leave time for typing. */
function painter(drawNow) {
  let waiting = 0;
  let took = 0;
  const run = () => {
    waiting = 0;
    const start = performance.now();
    keepingEnd(drawNow);
    took = performance.now() - start;
  };
  const paint = () => (waiting ||= setTimeout(run, Math.max(16, 4 * took)));
  paint.stop = () => clearTimeout(waiting);
  return paint;
}

function edit(index) {
  editing = index;
  question.value = talk.turns[index].user;
  grow();
  draw();
  say(`Editing message ${index + 1}. Sending replaces what follows it; Escape leaves it.`);
  question.focus();
}

function leaveEditing() {
  editing = null;
  question.value = "";
  grow();
  draw();
}

function clear() {
  if (stopper) return;
  before = talk.turns.length ? talk : before;
  talk = new Talk();
  editing = null;
  notice("");
  draw();
  question.focus();
}

function grow() {
  question.style.height = "auto";
  question.style.height = `${question.scrollHeight + 2}px`;
}

// ---- files

function save(name, type, text) {
  const now = new Date();
  const stamp = new Date(now - now.getTimezoneOffset() * 60000).toISOString().slice(0, 16).replace(/[-:]/g, "").replace("T", "-");
  const address = URL.createObjectURL(new Blob([text], { type }));
  element("a", { href: address, download: `chat-${stamp}.${name}` }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}

function loadChat(text) {
  try {
    const read = Talk.read(text);
    if (talk.turns.length) before = talk;
    talk = read.talk;
    $("system").value = read.system;
    setOptions(read.options);
    const known = [...$("model").options].map((option) => option.value);
    if (known.includes(read.models[0])) $("model").value = read.models[0];
    $("compare").checked = read.models.length > 1 && known.length > 1;
    if (known.includes(read.models[1])) $("other").value = read.models[1];
    editing = null;
    notice("");
    draw();
    toEnd();
    if (narrow.matches) openSettings(false);
    question.focus();
  } catch (error) {
    notice(`This file is not a saved chat: ${error.message}.`);
    if (narrow.matches) openSettings(false);
  }
}

async function openReport(event) {
  if (!$("key").value) return; // the link itself works
  event.preventDefault();
  try {
    const address = URL.createObjectURL(new Blob([await report($("key").value)], { type: "text/html" }));
    window.open(address, "_blank");
    setTimeout(() => URL.revokeObjectURL(address), 60000);
  } catch (error) {
    notice(error.message);
  }
}

// ---- keys and buttons

function keyPressed(event) {
  if (event.isComposing) return;
  if (event.key === "Escape") {
    if (narrow.matches && root.dataset.settings === "open") openSettings(false);
    else if (stopper) stopper.abort();
    else if (editing !== null) leaveEditing();
  } else if (event.altKey && !event.ctrlKey && !event.metaKey) {
    const run = { KeyR: again, KeyN: clear, KeyS: () => openSettings(getComputedStyle($("settings")).display === "none") }[event.code];
    if (run) {
      event.preventDefault();
      run();
    }
  }
}

question.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    submit();
  } else if (event.key === "ArrowUp" && !question.value && talk.turns.length && !stopper) {
    event.preventDefault();
    edit(talk.turns.length - 1);
  }
});
question.addEventListener("input", grow);
document.addEventListener("keydown", keyPressed);
$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
$("options").addEventListener("submit", (event) => event.preventDefault());
$("options").addEventListener("input", show);
$("compare").addEventListener("change", () => stopper || keepingEnd(draw)); // what "again" means
$("key").addEventListener("change", () => fillModels());
$("stop-reply").addEventListener("click", () => stopper?.abort());
$("clear").addEventListener("click", clear);
$("show-settings").addEventListener("click", () => openSettings(true));
$("hide-settings").addEventListener("click", () => openSettings(false));
$("save-json").addEventListener("click", () =>
  save("json", "application/json", JSON.stringify(talk.rows(system(), options()), null, 1)),
);
$("save-markdown").addEventListener("click", () => save("md", "text/markdown", talk.markdown(system())));
$("load").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", async () => {
  const [file] = $("file").files;
  if (file) loadChat(await file.text());
  $("file").value = "";
});
$("report").addEventListener("click", openReport);

const kept = recall();
draw();
toEnd();
fillModels(kept);
fetch("page/about").then((answer) => answer.json()).then(suitServer).catch(() => {});
