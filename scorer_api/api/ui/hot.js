// The prefixes that are asked for most, each below the one that it continues.
import { age, by, count, el, named, number, say, svg } from "./dom.js";

/** `prefixes`: of /v1/hot, the hottest first. */
export function showHot(prefixes) {
  say(by("hot-none"), prefixes.length ? "" : "None yet. A service that was started with --hot-prefixes counts which prefixes prompts begin with, by their block keys.");
  const lists = new Map([[null, []]]);
  for (const one of prefixes) {
    const above = lists.get(one.parent) ?? lists.get(null);
    const below = [];
    lists.set(one.prefix, below);
    above.push([one, below]);
  }
  by("prefixes").replaceChildren(...lists.get(null).map(item));
}

function item([one, below]) {
  const share = `${Math.round(one.share * 100)}%`;
  const bar = svg("svg", { class: "bar share", viewBox: "0 0 1 1", preserveAspectRatio: "none", role: "img", "aria-label": `${share} of the prompts` }, svg("rect", { class: "track", width: 1, height: 1 }), svg("rect", { class: "gpu", width: one.share, height: 1 }));
  const held = Object.entries(one.held).sort(([, a], [, b]) => b - a);
  const holders = held.length ? held.flatMap(([pod, tokens], place) => [place ? ", " : "", named(pod), ` ${tokens >= one.tokens ? "all" : number(tokens)}`]) : ["no pod"];
  const head = el("div", { class: "head" }, el("code", {}, one.prefix), named(one.model), el("span", {}, `${count(one.blocks, "block")}, ${count(one.tokens, "token")}`), el("span", { class: "figures" }, `${number(Math.round(one.requests))} asked, ${share}, the last ${age(one.asked_age_s)} ago`));
  const children = below.length ? [el("ol", { class: "ranks" }, ...below.map(item))] : [];
  return el("li", { class: "match" }, head, bar, el("p", { class: "faint" }, "Tokens held by: ", ...holders), ...children);
}
