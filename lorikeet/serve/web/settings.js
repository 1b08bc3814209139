// How replies are made: the form's numbers, and what the server does where one is empty.

const $ = (id) => document.getElementById(id);
const MORE = ["top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"]; // folded away
export const NUMBERS = ["temperature", "top_p", "max_tokens", "seed", ...MORE];

/** What is asked for: what is set, and nothing else. */
export function options() {
  const made = {};
  for (const name of NUMBERS) if ($(name).value !== "") made[name] = Number($(name).value);
  const stop = $("stop").value.split("\n").filter((line) => line !== "");
  if (stop.length) made.stop = stop;
  return made;
}

export function setOptions(given) {
  for (const name of NUMBERS) $(name).value = given[name] ?? "";
  $("stop").value = [given.stop ?? []].flat().join("\n"); // one text may stand alone
  unfold();
}

/** What is set is seen. */
export function unfold() {
  $("more").open ||= MORE.some((name) => $(name).value !== "");
}

/** In each empty field the number that the server takes then. */
export function showUsual(usual) {
  for (const name of NUMBERS) if (usual[name] !== undefined) $(name).placeholder = usual[name];
}
