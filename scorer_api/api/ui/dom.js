// Making elements. What comes from the service becomes text, never markup.
const SVG = "http://www.w3.org/2000/svg";
const fill = (node, attributes, children) => {
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
};

export const by = (id) => document.getElementById(id);
export const el = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
export const svg = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);
// A name may be in any script and direction: it must not turn what stands beside it around.
export const named = (name) => el("bdi", {}, name);

/** Set a text only where it changes, so that nothing is read out or deselected without need. */
export const say = (node, text) => {
  if (node.textContent !== text) node.textContent = text;
};

const whole = new Intl.NumberFormat("en-US");
export const number = (value) => whole.format(value);
export const count = (value, noun) => `${number(value)} ${noun}${value === 1 ? "" : "s"}`;

export const age = (seconds) => {
  if (seconds === null) return "never";
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86400)} d`;
};

export const TIERS = ["gpu", "cpu", "disk", "other", "remote"];
const SIGNS = { live: "●", partial: "◐", stale: "○", expired: "✕" };
export const trusted = (trust) => el("span", { class: `trust ${trust in SIGNS ? trust : ""}` }, el("span", { "aria-hidden": "true" }, `${SIGNS[trust] ?? "?"} `), trust);
export const swatch = (tier) => el("span", { class: `swatch ${tier}`, "aria-hidden": "true" });
