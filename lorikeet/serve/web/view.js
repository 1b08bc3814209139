// Turns as nodes. A reply that is coming is filled again and again in its node; everything else is drawn once.

import { codeBlock, copy, element, markdown } from "./markdown.js";

const ENDS = { length: "cut at the most tokens", stopped: "stopped", content_filter: "withheld", tool_calls: "calls a tool" };

function button(label, run, attributes = {}) {
  return element("button", { type: "button", class: "quiet", onclick: run, ...attributes }, label);
}

/** A turn: the question, and its replies side by side. `on` has edit(index) and again(), which asks `lanes` models. */
export function turnNode(turn, index, { last, busy, lanes, replaced }, on) {
  const edit = button("Edit", () => on.edit(index), { "aria-label": `Edit message ${index + 1}` });
  const question = element(
    "div",
    { class: "question" },
    element("h2", { class: "unseen" }, `You, message ${index + 1}`),
    element("div", { class: "text" }, turn.user),
  );
  const replies = element("div", { class: "replies" });
  const said = turn.replies.filter(Boolean); // one button for all of them
  for (const one of said) {
    const label = lanes === 2 ? "Both answer again" : one.error ? "Try again" : "Answer again";
    replies.append(replyNode(one, last && !busy && one === said[said.length - 1] ? { label, run: on.again } : null));
  }
  const made = element("section", { "aria-label": `Turn ${index + 1}`, class: replaced ? "replaced" : "" });
  made.append(element("div", { class: "question-row" }, ...(busy ? [] : [edit]), question), replies);
  return made;
}

export function replyNode(said, again) {
  const made = element("article", { class: "reply", "aria-label": `Reply of ${said.model}` });
  fill(made, said, again);
  return made;
}

/** Draw `said` into its node, whatever was there. `again`: the button that asks once more, {label, run}. */
export function fill(node, said, again = null) {
  const coming = said.reason === null;
  node.setAttribute("aria-busy", String(coming));
  const { thinking, text } = split(said);
  const body = element("div", { class: `markdown${coming ? " waiting" : ""}` }, isJson(text) ? codeBlock(text.trim(), "json", { whole: true }) : markdown(text));
  const parts = [element("h2", { class: "who" }, said.model)];
  if (thinking) {
    const open = node.querySelector(".thinking")?.open ?? false;
    const inside = element("div", {}, thinking.trim());
    parts.push(element("details", { class: "thinking", open }, element("summary", {}, coming && !text ? "Thinking …" : "Thoughts"), inside));
  }
  parts.push(body);
  if (said.error) parts.push(element("p", { class: "failed", role: "alert" }, said.error));
  if (!coming) parts.push(footer(said, again));
  node.replaceChildren(...parts);
}

/** What the model thinks aloud, apart from what it answers. */
function split(said) {
  const found = said.text.match(/^\s*<think>([^]*?)(?:<\/think>([^]*)|$)/);
  return found ? { thinking: said.thinking + found[1], text: found[2] ?? "" } : { thinking: said.thinking, text: said.text };
}

/** Whether a reply is one JSON object or list, which is shown as it was written. */
function isJson(text) {
  if (!/^\s*[{[]/.test(text)) return false;
  try {
    return typeof JSON.parse(text) === "object";
  } catch {
    return false;
  }
}

function footer(said, again) {
  const figures = [];
  if (said.tokens !== null) figures.push(`${said.tokens} token${said.tokens === 1 ? "" : "s"}`);
  const coming = said.seconds - said.first;
  const rate = (said.tokens - 1) / coming;
  if (said.tokens > 1 && said.first !== null && coming > 0) figures.push(`${rate.toFixed(rate < 100 ? 1 : 0)}/s`);
  if (said.first !== null) figures.push(`first in ${said.first.toFixed(2)} s`);
  if (ENDS[said.reason]) figures.push(ENDS[said.reason]);
  const made = element("footer", {}, element("span", {}, figures.join(" · ")));
  if (said.text) {
    const copies = button("Copy", () => copy(split(said).text.trim() || said.text, copies), { "aria-label": "Copy this reply" });
    made.append(copies);
  }
  if (again) made.append(button(again.label, again.run, { "data-again": true, "aria-keyshortcuts": "Alt+R" }));
  return made;
}
