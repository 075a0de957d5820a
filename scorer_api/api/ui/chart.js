// Blocks by tier over time, stacked, from the samples that this page took.
import { by, count, el, number, svg, swatch, TIERS } from "./dom.js";

const KEPT_MS = 15 * 60_000;
const SHOWN_MIN_MS = 60_000;
const samples = [];

/** `held`: blocks by tier now, or null where the service is away. */
export function sample(held, now = Date.now()) {
  samples.push({ at: now, held });
  while (samples[0].at < now - KEPT_MS) samples.shift();
  draw(now);
}

/** The least 1, 2 or 5 times a power of ten that is not below `value`. */
function roof(value) {
  const power = 10 ** Math.floor(Math.log10(Math.max(value, 1)));
  return [1, 2, 5, 10].find((times) => times * power >= value) * power;
}

/** Pieces without a gap. Each begins a little before its first sample, which could not be seen on its own. */
function pieces() {
  const found = [[]];
  for (const one of samples) one.held ? found.at(-1).push(one) : found.push([]);
  return found.filter((piece) => piece.length).map((piece) => [{ ...piece[0], at: piece[0].at - 1000 }, ...piece]);
}

function draw(now) {
  const since = Math.min(samples[0].at, now - SHOWN_MIN_MS);
  const known = samples.filter((one) => one.held);
  const sum = (held, tiers) => tiers.reduce((total, tier) => total + held[tier], 0);
  const top = roof(Math.max(0, ...known.map((one) => sum(one.held, TIERS))));
  const x = (at) => (((at - since) / (now - since)) * 1000).toFixed(1);
  const y = (blocks) => (100 - (blocks / top) * 100).toFixed(2);
  const used = TIERS.filter((tier) => tier === "gpu" || known.some((one) => one.held[tier]));
  const area = (piece, tier) => {
    const below = TIERS.slice(0, TIERS.indexOf(tier));
    const upper = piece.map((one) => `${x(one.at)},${y(sum(one.held, [...below, tier]))}`);
    const lower = piece.map((one) => `${x(one.at)},${y(sum(one.held, below))}`).reverse();
    return svg("polygon", { class: tier, points: [...upper, ...lower].join(" ") });
  };
  const last = known.at(-1)?.held ?? Object.fromEntries(TIERS.map((tier) => [tier, 0]));
  const minutes = (now - since) / 60_000;
  const label = `${used.map((tier) => `${tier} ${number(last[tier])}`).join(", ")}; at most ${count(top, "block")} shown, over ${minutes.toFixed(1)} minutes`;
  by("chart").replaceChildren(
    el("div", { class: "faint" }, count(top, "block")),
    svg("svg", { viewBox: "0 0 1000 100", preserveAspectRatio: "none", role: "img", "aria-label": label }, ...pieces().flatMap((piece) => used.map((tier) => area(piece, tier)))),
    el("div", { class: "faint spread" }, el("span", {}, `${minutes < 1.5 ? "1 minute" : `${Math.round(minutes)} minutes`} ago`), el("span", {}, "now")),
    el("ul", { class: "legend" }, ...used.map((tier) => el("li", {}, swatch(tier), `${tier} ${count(last[tier], "block")}`))),
  );
}
