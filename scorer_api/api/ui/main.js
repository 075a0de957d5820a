// The page: what it asks for by itself, and what the user asks.
import { by, count, el, say } from "./dom.js";
import { showAnswer } from "./answer.js";
import { sample } from "./chart.js";
import { showHistory } from "./history.js";
import { showHot } from "./hot.js";
import { rearrange, showPods, totals } from "./pods.js";
import { ask, askText, Refusal, token } from "./service.js";

const EVERY_MS = 2_000;
const KINDS = {
  prompt: ["Prompt", "", ""],
  chat: ["Chat", "A line for each turn, which begins with system:, user: or assistant:; other lines continue the one before.", "user: Hello"],
  messages: ["Messages", 'A JSON list of messages, or an object with messages and tools, chat_template_kwargs or add_generation_prompt.', '[{"role": "user", "content": "Hello"}]'],
  token_ids: ["Token ids", "A JSON list, or numbers with spaces or commas between them.", "1 2 3 …"],
};
const BESIDE_MESSAGES = ["messages", "tools", "chat_template_kwargs", "add_generation_prompt"];
const TOKEN_MAX = 2 ** 32 - 1;

// Pods and models, again and again

let timer;
let round = 0;
let awaySince = null;

async function poll() {
  clearTimeout(timer);
  const mine = ++round;
  try {
    const [{ pods }, { models }, metrics] = await Promise.all([ask("v1/pods"), ask("v1/models"), askText("metrics")]);
    awaySince = null;
    say(by("trouble"), "");
    const { held, line } = totals(pods);
    say(by("summary"), line);
    showPods(pods);
    showModels(models.map((one) => one.model));
    sample(held);
    const { prefixes } = showHistory(metrics, pods);
    // One that does not count would refuse.
    showHot(prefixes ? (await ask("v1/hot?limit=20")).prefixes : []);
    by("forget").hidden = !token.get();
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    sample(null);
    showHistory(null);
    if (error.status === 401) return wantToken(error.detail);
    awaySince ??= new Date();
    say(by("trouble"), `${error.message}. What is shown is from before ${awaySince.toLocaleTimeString()}; the page goes on when the service is back.`);
  }
  if (mine === round) timer = setTimeout(poll, EVERY_MS);
}

function showModels(names) {
  const select = by("model");
  if (JSON.stringify([...select.options].map((option) => option.value)) === JSON.stringify(names)) return;
  const chosen = select.value;
  select.replaceChildren(...names.map((name) => el("option", { value: name }, name)));
  if (names.includes(chosen)) select.value = chosen;
}

// The token: asked for once the service wants one; until then nothing is asked in vain

function wantToken(why) {
  if (token.get()) return poll(); // another one than was refused
  by("forget").hidden = true;
  say(by("summary"), "The service asks for a token");
  say(by("token-why"), `The service says: ${why}.`);
  if (by("token-form").hidden) {
    by("token-form").hidden = false;
    by("token").focus();
  }
}

by("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const given = by("token").value.trim();
  if (!/^[!-~]+$/.test(given)) return say(by("token-why"), "A token has no spaces, and no letters beyond ASCII");
  token.set(given);
  by("token").value = "";
  by("token-form").hidden = true;
  by("given").focus();
  poll();
});

by("forget").addEventListener("click", () => {
  token.forget();
  by("answer").hidden = true;
  poll();
});

// Asking

class Mistake extends Error {
  constructor(id, message) {
    super(message);
    this.id = id;
  }
}

const source = () => document.querySelector("[name=source]:checked").value;

function parsed(text, what) {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Mistake("given", `${what} should be JSON: ${error.message}`);
  }
}

const READ = {
  prompt: (text) => ({ prompt: text }),
  chat(text) {
    const messages = [];
    for (const line of text.split("\n")) {
      const turn = /^\s*(system|user|assistant):\s?(.*)$/i.exec(line);
      if (turn) messages.push({ role: turn[1].toLowerCase(), content: turn[2] });
      else if (messages.length) messages.at(-1).content += `\n${line}`;
      else if (line.trim()) throw new Mistake("given", "The first line should begin with system:, user: or assistant:");
    }
    for (const message of messages) message.content = message.content.trimEnd();
    return { messages };
  },
  messages(text) {
    const found = parsed(text, "Messages");
    const given = Array.isArray(found) ? { messages: found } : found;
    if (!Array.isArray(given?.messages)) throw new Mistake("given", "Messages should be a JSON list, or an object with such a list under messages");
    const other = Object.keys(given).filter((key) => !BESIDE_MESSAGES.includes(key));
    if (other.length) throw new Mistake("given", `Beside messages there can be ${BESIDE_MESSAGES.slice(1).join(", ")}, not ${other.join(", ")}`);
    return given;
  },
  token_ids(text) {
    const ids = /^\s*\[/.test(text) ? parsed(text, "A list of token ids") : text.split(/[\s,]+/).filter(Boolean).map((word) => (/^\d+$/.test(word) ? Number(word) : word));
    const wrong = ids.findIndex((id) => !Number.isInteger(id) || id < 0 || id > TOKEN_MAX);
    if (wrong >= 0) throw new Mistake("given", `Token ${wrong} is ${JSON.stringify(ids[wrong])}; it should be a whole number from 0 to ${TOKEN_MAX}`);
    return { token_ids: ids };
  },
};

function request() {
  const text = by("given").value;
  if (!by("model").value) throw new Mistake("model", "There is no model yet: one is known once a pod of it is registered");
  if (!text.trim()) throw new Mistake("given", `${KINDS[source()][0]}: there is nothing to ask about yet`);
  const more = Object.entries({ lora_name: by("lora").value, cache_salt: by("salt").value }).filter(([, value]) => value);
  return { model: by("model").value, ...READ[source()](text), ...Object.fromEntries(more) };
}

let running = null;

function wrong(message, id) {
  for (const name of ["given", "model"]) by(name).setAttribute("aria-invalid", name === id);
  say(by("ask-error"), message);
  if (id) by(id).focus();
}

/** Ask about the prompt that the form has, in place of what is still being asked. `answer`: gets the request and a signal that ends it. */
async function askFor(answer) {
  running?.abort();
  const mine = (running = new AbortController());
  try {
    const body = request();
    wrong("");
    say(by("said"), "Asking …");
    await answer(body, mine.signal);
  } catch (error) {
    failed(error, mine);
  } finally {
    if (mine === running) running = null;
  }
}

async function explain(body, signal) {
  showAnswer(await ask("v1/explain", body, signal));
  by("said").scrollIntoView({ block: "nearest" });
}

/** The pick counts as a request until it is reported as done, so that is said at once. */
async function pick(body, signal) {
  const picked = await ask("v1/route", body, signal);
  await ask("v1/route/done", { id: picked.id }, signal);
  const { matched_tokens } = picked.reason[picked.pod];
  const others = picked.fallbacks.length ? ` The next ones: ${picked.fallbacks.slice(0, 3).join(", ")}.` : "";
  say(by("said"), `It would go to ${picked.pod}, for ${picked.picked_for.replaceAll("_", " ")}: ${matched_tokens} of ${count(picked.tokens, "token")} are in its cache.${others}`);
}

function failed(error, mine) {
  if (mine !== running) return;
  say(by("said"), "");
  if (mine.signal.aborted) return say(by("said"), "Not asked any more.");
  by("answer").hidden = true;
  if (error instanceof Mistake) return wrong(error.message, error.id);
  if (!(error instanceof Refusal)) throw error;
  wrong(error.message);
  if (error.status === 401) wantToken(error.detail);
}

by("pick").addEventListener("click", () => askFor(pick));
by("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  askFor(explain);
});
by("ask").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && event.ctrlKey) askFor(explain);
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
});

function showKind() {
  const [label, hint, example] = KINDS[source()];
  say(by("given-label"), label);
  say(by("given-hint"), hint);
  by("given").placeholder = example;
  wrong("");
}
for (const radio of document.querySelectorAll("[name=source]")) radio.addEventListener("change", showKind);
showKind();
for (const name of ["filter", "sort", "backwards"]) by(name).addEventListener("input", rearrange);

// Light and dark

const THEME = "kv-indexer-theme";
function showTheme() {
  document.documentElement.dataset.theme = by("theme").value;
}
by("theme").value = localStorage.getItem(THEME) ?? "";
if (by("theme").selectedIndex < 0) by("theme").value = "";
by("theme").addEventListener("change", () => {
  localStorage.setItem(THEME, by("theme").value);
  showTheme();
});
showTheme();

poll();
