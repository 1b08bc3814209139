// Markdown of a reply as DOM nodes. A model's text is never HTML here: nodes are made by name and text is set as text,
// so a reply cannot bring a script, a style, or a picture that calls another server. What is not understood stays text.

const DEEPEST = 8; // blocks inside blocks; deeper ones are shown as they were written
const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^`\s]*)[^`]*$/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])(?:\s+(.*)|)$/;
const RULE = /^ {0,3}(?:(?:\* *){3,}|(?:- *){3,}|(?:_ *){3,})$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*$/;
const DELIMITERS = /^ *\|?(?: *:?-+:? *\|)* *:?-+:? *\|? *$/;
// spans are bounded, so that text without its closing mark costs little
const SPANS = new RegExp(
  [
    String.raw`\\(?<escaped>[\\\x60*_{}[\]()#+\-.!|~<>])`,
    "(?<ticks>`+)(?!`)(?<code>[^]{1,4000}?)(?<!`)\\k<ticks>(?!`)",
    String.raw`(?<image>!)?\[(?<label>[^\[\]]{0,600})\]\((?<target>[^\s()<>]{1,2000})(?:\s+"[^"]{0,300}")?\)`,
    String.raw`\*\*(?=\S)(?<strong>[^]{1,2000}?\S|\S)\*\*`,
    String.raw`(?<![*\w])\*(?=[^\s*])(?<em>[^*]{1,2000})(?<=\S)\*(?!\*)`,
    String.raw`(?<!\w)_(?=[^\s_])(?<under>[^_]{1,2000})(?<=\S)_(?!\w)`,
    String.raw`~~(?=\S)(?<del>[^~]{1,2000})~~`,
    String.raw`(?<url>https?:\/\/[^\s<>"']{2,2000})`,
  ].join("|"),
  "g",
);

export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "class") made.className = value;
    else if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

/** The blocks of `text` as a DocumentFragment. */
export function markdown(text) {
  const made = document.createDocumentFragment();
  blocks(text.replaceAll("\r\n", "\n").replaceAll("\t", "    ").split("\n"), made, 0);
  return made;
}

function blocks(lines, into, depth) {
  if (depth > DEEPEST) {
    into.append(lines.join("\n"));
    return;
  }
  let at = 0;
  while (at < lines.length) {
    const line = lines[at];
    if (!line.trim()) at += 1;
    else if (FENCE.test(line)) at = fence(lines, at, into);
    else if (HEADING.test(line)) {
      const [, marks, title] = line.match(HEADING);
      // the page itself has levels 1 and 2
      into.append(spans(title, element(`h${Math.min(6, marks.length + 2)}`)));
      at += 1;
    } else if (RULE.test(line)) {
      into.append(element("hr"));
      at += 1;
    } else if (/^ {0,3}>/.test(line)) at = quote(lines, at, into, depth);
    else if (ITEM.test(line)) at = list(lines, at, into, depth);
    else if (line.includes("|") && DELIMITERS.test(lines[at + 1] ?? "") && lines[at + 1].includes("-"))
      at = table(lines, at, into);
    else at = paragraph(lines, at, into);
  }
}

function interrupts(line) {
  return !line.trim() || FENCE.test(line) || HEADING.test(line) || RULE.test(line) || /^ {0,3}>/.test(line) || ITEM.test(line);
}

function paragraph(lines, at, into) {
  let end = at + 1;
  while (end < lines.length && !interrupts(lines[end])) end += 1;
  const made = element("p");
  lines.slice(at, end).forEach((line, index, all) => {
    spans(line.trim(), made);
    if (index < all.length - 1) made.append(element("br"));
  });
  into.append(made);
  return end;
}

function fence(lines, at, into) {
  const [, marks, language] = lines[at].match(FENCE);
  let end = at + 1;
  const closes = (line) => line.trim().length >= marks.length && line.trim() === marks[0].repeat(line.trim().length);
  while (end < lines.length && !closes(lines[end])) end += 1;
  into.append(codeBlock(lines.slice(at + 1, end).join("\n"), language));
  return end + 1; // a fence that is not closed (yet) goes to the end
}

/** Code with its language and a button that copies it. `whole`: it is all of a reply, which has such a button. */
export function codeBlock(code, language, { whole = false } = {}) {
  const button = element("button", { type: "button", class: "quiet", "aria-label": "Copy this code" }, "Copy");
  button.addEventListener("click", () => copy(code, button));
  return element(
    "figure",
    { class: whole ? "code wrap" : "code" },
    element("figcaption", {}, element("span", {}, language || "text"), ...(whole ? [] : [button])),
    element("pre", { tabindex: "0", "aria-label": `Code, ${language || "text"}` }, element("code", {}, code)),
  );
}

/** Put `text` into the clipboard, and say so on the button for a moment. */
export async function copy(text, button) {
  const before = button.textContent;
  try {
    if (navigator.clipboard) await navigator.clipboard.writeText(text);
    else copyOld(text); // pages that are not https and not localhost have no clipboard
    button.textContent = "Copied";
  } catch {
    button.textContent = "Refused by the browser";
  }
  setTimeout(() => (button.textContent = before), 1500);
}

function copyOld(text) {
  const area = element("textarea", { class: "unseen" });
  area.value = text;
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  if (!done) throw new Error("not copied");
}

function quote(lines, at, into, depth) {
  let end = at;
  while (end < lines.length && /^ {0,3}>/.test(lines[end])) end += 1;
  const made = element("blockquote");
  blocks(lines.slice(at, end).map((line) => line.replace(/^ {0,3}> ?/, "")), made, depth + 1);
  into.append(made);
  return end;
}

function list(lines, at, into, depth) {
  const [, first, mark] = lines[at].match(ITEM);
  const ordered = /\d/.test(mark);
  const made = element(ordered ? "ol" : "ul", { start: ordered && parseInt(mark) !== 1 ? parseInt(mark) : null });
  while (at < lines.length) {
    const found = lines[at].match(ITEM);
    if (!found || RULE.test(lines[at]) || found[1].length !== first.length || /\d/.test(found[2]) !== ordered) break;
    const inside = first.length + 2; // less than most write, so that both common indents belong to the item
    const own = [found[3] ?? ""];
    let end = at + 1;
    while (end < lines.length) {
      const line = lines[end];
      const indent = line.search(/\S/);
      const next = lines[end + 1] ?? "";
      if (indent < 0 && !(next.search(/\S/) >= inside || ITEM.test(next))) break;
      if (indent >= 0 && indent < inside && (interrupts(line) || !lines[end - 1].trim())) break;
      own.push(line);
      end += 1;
    }
    const least = Math.min(...own.slice(1).filter((line) => line.trim()).map((line) => line.search(/\S/)), first.length + 4);
    const item = element("li");
    blocks([own[0], ...own.slice(1).map((line) => line.slice(Math.min(least, Math.max(0, line.search(/\S/)))))], item, depth + 1);
    if (item.firstElementChild?.tagName === "P") item.firstElementChild.replaceWith(...item.firstElementChild.childNodes);
    made.append(item);
    at = end;
  }
  into.append(made);
  return at;
}

function table(lines, at, into) {
  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split(/(?<!\\)\|/).map((cell) => cell.trim());
  const align = cells(lines[at + 1]).map((cell) => (/:$/.test(cell) ? (/^:/.test(cell) ? "center" : "end") : "start"));
  const row = (line, name) =>
    element("tr", {}, ...cells(line).map((cell, column) => spans(cell, element(name, { class: align[column] ?? "start" }))));
  const head = element("thead", {}, row(lines[at], "th"));
  const body = element("tbody");
  let end = at + 2;
  while (end < lines.length && lines[end].includes("|")) body.append(row(lines[end++], "td"));
  into.append(element("div", { class: "wide", tabindex: "0", role: "region", "aria-label": "Table" }, element("table", {}, head, body)));
  return end;
}

/** Append `text` to `into` with its marks as elements; returns `into`. */
function spans(text, into, depth = 0) {
  let from = 0;
  for (const found of depth > 5 ? [] : text.matchAll(SPANS)) {
    if (found.index > from) into.append(text.slice(from, found.index));
    into.append(span(found.groups, found[0], depth));
    from = found.index + found[0].length;
  }
  if (from < text.length) into.append(text.slice(from));
  return into;
}

function span(is, whole, depth) {
  const inside = (name, inner) => spans(inner, element(name), depth + 1);
  if (is.escaped !== undefined) return is.escaped;
  if (is.code !== undefined) return element("code", {}, is.code.length > 2 ? is.code.replace(/^ (.*) $/, "$1") : is.code);
  if (is.strong !== undefined) return inside("strong", is.strong);
  if (is.em !== undefined) return inside("em", is.em);
  if (is.under !== undefined) return inside("em", is.under);
  if (is.del !== undefined) return inside("del", is.del);
  if (is.url !== undefined) {
    const address = is.url.replace(/[.,;:!?)\]}*_]+$/, "");
    const made = document.createDocumentFragment();
    made.append(link(address, address), is.url.slice(address.length));
    return made;
  }
  // a picture would be fetched from somewhere: only its address is shown, for whoever wants to follow it
  return /^(https?:|mailto:)/i.test(is.target) ? link(is.target, is.label || is.target, depth) : whole;
}

function link(address, label, depth = 5) {
  return spans(label, element("a", { href: address, target: "_blank", rel: "noopener noreferrer nofollow" }), Math.max(depth, 5) + 1);
}
