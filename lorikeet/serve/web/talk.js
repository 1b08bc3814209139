// The conversation: turns of one question and one reply a lane. Two lanes are two models that answer side by side,
// each reading its own earlier replies. Saved, a lane is a row of `messages`, which Lorikeet also trains on.

/** A reply: what was said so far and how it ended. `reason`: null while it comes, or stop, length, stopped, error. */
export function newReply(model) {
  return { model, text: "", thinking: "", reason: null, tokens: null, error: "", first: null, seconds: null };
}

export class Talk {
  constructor() {
    this.turns = []; // [{user, replies: [lane 0's, lane 1's or undefined]}]
  }

  get last() {
    return this.turns[this.turns.length - 1];
  }

  get lanes() {
    return this.turns.some((turn) => turn.replies[1]) ? 2 : 1;
  }

  /** What the model of `lane` reads to answer turn `until`: where it has no reply of its own, the other's. */
  messages(lane, system, until = this.turns.length - 1) {
    const made = system ? [{ role: "system", content: system }] : [];
    this.turns.slice(0, until + 1).forEach((turn, at) => {
      const said = [turn.replies[lane], turn.replies[1 - lane]].find((one) => one && (one.reason !== "error" || one.text));
      if (at < until && !said) return; // a turn that failed was not said
      made.push({ role: "user", content: turn.user });
      if (at < until) made.push({ role: "assistant", content: said.text });
    });
    return made;
  }

  /** The rows of a saved chat, one a lane. */
  rows(system, options) {
    return Array.from({ length: this.lanes }, (_, lane) => {
      const models = this.turns.map((turn) => turn.replies[lane]?.model).filter(Boolean);
      const messages = this.messages(lane, system, this.turns.length);
      return { messages, model: models[models.length - 1] ?? null, options };
    });
  }

  /** The conversation of a saved chat: {talk, system, models, options}. Raises Error in words. */
  static read(text) {
    const rows = parse(text).slice(0, 2);
    const talk = new Talk();
    let system = "";
    rows.forEach((row, lane) => {
      let turn = -1;
      for (const { role, content } of row.messages) {
        if (typeof content !== "string") throw new Error("a message's content is not text");
        if (role === "system") system = content;
        else if (role === "user") {
          turn += 1;
          talk.turns[turn] ??= { user: content, replies: [] };
          if (talk.turns[turn].user !== content) throw new Error("its rows do not ask the same, so they are not two sides of one chat");
        } else if (role === "assistant" && turn >= 0)
          talk.turns[turn].replies[lane] = { ...newReply(row.model ?? "assistant"), text: content, reason: "stop" };
        else throw new Error(`a message of role ${JSON.stringify(role)} cannot be shown here`);
      }
    });
    const [first] = rows;
    return { talk, system, models: rows.map((row) => row.model ?? null), options: first.options ?? {} };
  }

  markdown(system) {
    const parts = system ? [`**System**\n\n${system}`] : [];
    for (const turn of this.turns) {
      parts.push(`**You**\n\n${turn.user}`);
      for (const said of turn.replies) if (said) parts.push(`**${said.model}**\n\n${said.text}`);
    }
    return parts.join("\n\n---\n\n") + "\n";
  }
}

function parse(text) {
  let read;
  try {
    read = JSON.parse(text);
  } catch {
    try {
      read = text.split("\n").filter((line) => line.trim()).map((line) => JSON.parse(line)); // .jsonl
    } catch {
      throw new Error("it is not JSON");
    }
  }
  const rows = Array.isArray(read) ? read : [read];
  if (!rows.length || !rows.every((row) => Array.isArray(row?.messages))) throw new Error("it has no list of messages");
  return rows;
}
