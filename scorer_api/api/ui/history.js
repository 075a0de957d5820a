// Hit share and trust over time, and what requests are picked for, from the metrics that this page took.
import { by, el, number, say, svg } from "./dom.js";

const KEPT_MS = 15 * 60_000;
const SHOWN_MIN_MS = 60_000;
const SERIES = { share: "hit share", live: "live streams" };
const samples = [];
let before = null;

/** Metric → sum over all its series; of picks also by what they were picked for. */
function read(text) {
  const totals = {};
  const picks = {};
  for (const line of text.split("\n")) {
    const found = /^kv_indexer_(\w+)(?:\{(.*)\})? (\S+)/.exec(line);
    if (!found) continue;
    const [, name, labels, value] = found;
    totals[name] = (totals[name] ?? 0) + Number(value);
    const why = name === "route_picks_total" && /picked_for="(\w+)"/.exec(labels)?.[1];
    if (why) picks[why] = (picks[why] ?? 0) + Number(value);
  }
  return { at: Date.now(), totals, picks };
}

/** `text`: of /metrics, null where the service is away. Returns how many prefixes are counted. */
export function showHistory(text, pods = []) {
  const now = text === null ? null : read(text);
  const streams = pods.flatMap((pod) => pod.streams);
  const grown = (name) => (before && now && now.totals[name] >= before.totals[name] ? now.totals[name] - before.totals[name] : null);
  const asked = grown("prompt_tokens_total");
  samples.push({
    at: Date.now(),
    share: asked ? grown("matched_tokens_total") / asked : null,
    live: now && streams.length ? streams.filter((stream) => stream.trust === "live").length / streams.length : null,
  });
  while (samples[0].at < Date.now() - KEPT_MS) samples.shift();
  draw();
  if (now) showPicks(now);
  before = now;
  return { prefixes: now?.totals.hot_prefixes ?? 0 };
}

function showPicks(now) {
  const seconds = before ? (now.at - before.at) / 1000 : 0;
  const rate = (why) => Math.max(0, (now.picks[why] - (before?.picks[why] ?? 0)) / seconds);
  const known = Object.entries(now.picks).filter(([, count]) => count);
  const words = known.sort(([, one], [, other]) => other - one).map(([why, count]) => `${why.replaceAll("_", " ")} ${number(count)}${seconds ? ` (${rate(why).toFixed(1)}/s)` : ""}`);
  say(by("picks"), words.length ? `Picks, by what they were picked for: ${words.join(", ")}` : "Nothing was picked yet");
}

/** Lines without their gaps. A single sample is a short line: a dot could not be seen. */
function pieces(name) {
  const found = [[]];
  for (const one of samples) one[name] === null ? found.push([]) : found.at(-1).push(one);
  return found.filter((piece) => piece.length).map((piece) => [{ ...piece[0], at: piece[0].at - 1000 }, ...piece]);
}

function draw() {
  const now = Date.now();
  const since = Math.min(samples[0].at, now - SHOWN_MIN_MS);
  const point = (one, name) => `${(((one.at - since) / (now - since)) * 1000).toFixed(1)},${(100 - one[name] * 100).toFixed(2)}`;
  const line = (piece, name) => svg("polyline", { class: name, points: piece.map((one) => point(one, name)).join(" ") });
  const last = (name) => samples.findLast((one) => one[name] !== null)?.[name];
  const words = Object.entries(SERIES).map(([name, label]) => `${label} ${last(name) === undefined ? "not known" : `${Math.round(last(name) * 100)}%`}`);
  const minutes = (now - since) / 60_000;
  by("history").replaceChildren(
    el("div", { class: "faint" }, "100%"),
    svg("svg", { viewBox: "0 0 1000 100", preserveAspectRatio: "none", role: "img", "aria-label": `${words.join(", ")}; over ${minutes.toFixed(1)} minutes` }, ...Object.keys(SERIES).flatMap((name) => pieces(name).map((piece) => line(piece, name)))),
    el("div", { class: "faint spread" }, el("span", {}, `${minutes < 1.5 ? "1 minute" : `${Math.round(minutes)} minutes`} ago`), el("span", {}, "now")),
    el("ul", { class: "legend" }, ...Object.keys(SERIES).map((name, place) => el("li", {}, el("span", { class: `stroke ${name}`, "aria-hidden": "true" }), words[place]))),
  );
}
