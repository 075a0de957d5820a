// What /v1/explain answered, drawn: each pod's match as a bar over the prompt.
import { age, by, count, el, named, number, say, svg, swatch, TIERS, trusted } from "./dom.js";

const FIRST = 20;
// Boundaries between more blocks than these cannot be seen, on a narrow screen and on any.
const FEW = 48;
const BOUNDARIES_MAX = 128;

/** How many blocks of each run's tier, in words. */
const inWords = (runs) => runs.map(([tier, blocks]) => `${tier} ${number(blocks)}`).join(", then ");

/** A bar whose length is the whole prompt, in tokens. What can never be reused is left blank at its end. */
function bar(rank, tokens) {
  const size = rank.block_size ?? 0;
  const width = Math.max(tokens, 1);
  const label = rank.usable_blocks ? `${rank.matched_blocks} of ${count(rank.usable_blocks, "block")} match${rank.runs.length ? `: ${inWords(rank.runs)}` : ""}` : "no block can match";
  const rect = (kind, from, blocks) => svg("rect", { class: kind, x: from * size, y: 0, width: blocks * size, height: 1, "data-blocks": blocks });
  const drawn = svg("svg", { class: "bar", viewBox: `0 0 ${width} 1`, preserveAspectRatio: "none", role: "img", "aria-label": label }, rect("track", 0, rank.usable_blocks));
  let from = 0;
  const ends = [];
  for (const [tier, blocks] of rank.runs) {
    drawn.append(rect(TIERS.includes(tier) ? tier : "other", from, blocks));
    ends.push((from += blocks));
  }
  const lines = (kind, edges) => svg("path", { class: kind, d: edges.map((block) => `M${block * size} 0v1`).join("") });
  const all = rank.usable_blocks <= BOUNDARIES_MAX ? Array.from({ length: rank.usable_blocks }, (_, block) => block) : [];
  drawn.append(lines(all.length > FEW ? "dense" : "few", all), lines("runs", ends));
  if (rank.end.block !== null && rank.end.block < rank.usable_blocks) drawn.append(lines("end", [rank.end.block]));
  return drawn;
}

const figures = (one) => `${number(one.matched_blocks)} of ${count(one.usable_blocks, "block")}${one.block_size ? ` of ${count(one.block_size, "token")}` : ""}`;

function ended(end) {
  const where = end.block === null ? "" : ` at block ${number(end.block)}`;
  return el("p", {}, el("code", {}, end.reason), `${where}: ${end.detail}`);
}

function ofRank(rank, tokens) {
  const head = el("div", { class: "head" }, el("b", {}, `rank ${rank.rank}`), trusted(rank.trust), el("span", { class: "figures" }, figures(rank)));
  return el("li", { class: "match" }, head, bar(rank, tokens), ended(rank.end));
}

/** How busy it is. `load`: null where nobody knows it now. */
function busy(load) {
  if (!load) return "load not known";
  const cache = load.kv_usage === null ? "cache use not known" : `${Math.round(load.kv_usage * 100)}% of the cache in use`;
  return `${number(load.running)} running · ${number(load.waiting)} waiting · ${cache} · ${age(load.age_s)} ago`;
}

function ofPod(pod, tokens) {
  const best = pod.ranks.find((rank) => rank.rank === pod.rank) ?? pod.ranks[0];
  const shown = `score ${pod.score.toFixed(4)} · ${count(pod.matched_tokens, "token")} · ${figures(pod)}`;
  const head = el("div", { class: "head" }, el("h3", {}, named(pod.pod)), trusted(pod.trust), ...(pod.ready ? [] : [el("b", {}, "not ready")]), el("span", { class: "load" }, busy(pod.load)), el("span", { class: "figures" }, shown));
  const ranks = el("details", {}, el("summary", {}, count(pod.ranks.length, "rank")), el("ul", { class: "ranks" }, ...pod.ranks.map((rank) => ofRank(rank, tokens))));
  return el("li", { class: "match" }, head, ...(best ? [bar(best, tokens)] : []), el("p", {}, pod.why), ranks);
}

/** `answer`: of /v1/explain. */
export function showAnswer(answer) {
  const { pods, tokens, about, view } = answer;
  const best = pods.find((pod) => pod.matched_blocks);
  const sizes = about.block_sizes;
  const tiers = TIERS.filter((tier) => pods.some((pod) => pod.ranks.some((rank) => rank.runs.some(([of]) => of === tier))));
  say(by("facts"), `${answer.model} · ${count(tokens, "token")} from ${answer.source} · ${count(about.pods, "pod")} · last event ${about.last_event_age_s === null ? "never" : `${age(about.last_event_age_s)} ago`} · view of ${view.source}, ${age(view.age_s)} old`);
  by("hints").replaceChildren(...answer.hints.map((hint) => el("li", {}, el("b", {}, `${hint.code}: `), hint.detail)));
  const legend = el("span", { class: "legend" }, ...tiers.map((tier) => el("span", {}, swatch(tier), tier)));
  by("scale").replaceChildren(el("span", {}, "token 0"), legend, el("span", {}, count(tokens, "token") + (sizes.length === 1 ? `, blocks of ${sizes[0]}` : "")));
  by("adapters").replaceChildren(...about.adapters.map((name) => el("option", { value: name })));
  const list = (some) => by("matches").replaceChildren(...some.map((pod) => ofPod(pod, tokens)));
  list(pods.slice(0, FIRST));
  const more = by("more");
  more.hidden = pods.length <= FIRST;
  say(more, `Show the other ${number(pods.length - FIRST)} pods`);
  more.onclick = () => {
    list(pods);
    more.hidden = true;
    // The button is gone: go on where it was.
    by("matches").children[FIRST].querySelector("summary").focus();
  };
  by("answer").hidden = false;
  say(by("said"), best ? `${best.pod} is the best: ${figures(best)}, score ${best.score.toFixed(4)}.` : `No pod holds the beginning of it.`);
}
