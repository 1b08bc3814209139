// The server's OpenAI API, as far as a chat needs it. Addresses are relative, so the page also works behind a prefix.

/** What went wrong, in words for the reader. `status` is HTTP's, or 0 where nothing answered. */
export class ApiError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

function headers(key) {
  return key ? { Authorization: `Bearer ${key}` } : {}; // without a key the browser sends what basic auth it knows
}

async function ask(address, options) {
  let answer;
  try {
    answer = await fetch(address, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server does not answer. Is `lorikeet serve` still running?");
  }
  if (answer.ok) return answer;
  throw new ApiError(await told(answer), answer.status);
}

async function told(answer) {
  const text = await answer.text().catch(() => "");
  let said = "";
  try {
    const body = JSON.parse(text);
    said = body.error?.message ?? (typeof body.detail === "string" ? body.detail : "") ?? "";
  } catch {
    said = text.length < 300 && !text.startsWith("<") ? text : "";
  }
  if (answer.status === 401) return `The server asks for an API key. ${said}`.trim();
  if (answer.status === 429) {
    const after = answer.headers.get("Retry-After");
    return `The server is busy${after ? `; try again in ${after} s` : ""}. ${said}`.trim();
  }
  return said || `The server answered ${answer.status} ${answer.statusText}.`;
}

/** [{id, parent, system}]: the models and adapters that can be asked for; `system` is the prompt of their training. */
export async function models(key) {
  const answer = await ask("v1/models", { headers: headers(key) });
  const body = await answer.json();
  return (body.data ?? []).map((one) => ({ id: String(one.id), parent: one.parent ?? null, system: one.system ?? null }));
}

/** The run's report, as text. */
export async function report(key) {
  return (await ask("report", { headers: headers(key) })).text();
}

/**
 * Stream a reply. `onText(text, thinking)` gets each piece; resolves to {reason, tokens, read}.
 * Raises ApiError, or the AbortError of `signal`.
 */
export async function reply(request, { key, signal, onText }) {
  const body = JSON.stringify({ ...request, stream: true, stream_options: { include_usage: true } });
  const answer = await ask("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json", ...headers(key) },
    body,
    signal,
  });
  const found = { reason: null, tokens: null, read: null };
  for await (const data of events(answer.body)) {
    if (data === "[DONE]") return found;
    let piece;
    try {
      piece = JSON.parse(data);
    } catch {
      throw new ApiError("The server's stream is not JSON.");
    }
    if (piece.error) throw new ApiError(piece.error.message ?? "The server failed while it answered.", 500);
    if (piece.usage) Object.assign(found, { tokens: piece.usage.completion_tokens, read: piece.usage.prompt_tokens });
    const choice = piece.choices?.[0];
    if (choice?.delta?.reasoning_content) onText(choice.delta.reasoning_content, true);
    if (choice?.delta?.content) onText(choice.delta.content, false);
    if (choice?.finish_reason) found.reason = choice.finish_reason;
  }
  if (found.reason === null) throw new ApiError("The connection ended in the middle of the reply.");
  return found;
}

/** The data of each server-sent event. Lines and characters may be cut anywhere by the network. */
export async function* events(stream) {
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      rest += done ? decoder.decode() + "\n\n" : decoder.decode(value, { stream: true });
      const lines = rest.split("\n");
      rest = lines.pop();
      for (const raw of lines) {
        const line = raw.endsWith("\r") ? raw.slice(0, -1) : raw;
        if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
        else if (line === "" && data.length) {
          yield data.join("\n");
          data = [];
        }
      }
      if (done) return;
    }
  } finally {
    reader.cancel().catch(() => {}); // whoever stops early frees the server's row
  }
}
