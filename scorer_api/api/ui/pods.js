// The table of pods: a row for each stream, changed in place, in the order that is chosen.
import { age, by, count, el, named, number, say, swatch, TIERS, trusted } from "./dom.js";

const rows = new Map();
const blocks = (stream) => TIERS.filter((tier) => stream.blocks[tier]).map((tier) => `${tier} ${number(stream.blocks[tier])}`);
const group = (one) => `${one.group} ${one.kind}${one.window ? ` of ${count(one.window, "token")}` : ""}`;
const COLUMNS = [
  ["Pod", "", (pod) => pod.pod],
  ["Name", "text", (pod) => pod.name],
  ["Model", "text", (pod) => pod.model],
  ["Aliases", "text", (pod) => pod.aliases],
  ["Rank", "number", (_, stream) => stream && String(stream.rank)],
  ["Trust", "", (_, stream) => stream?.trust],
  ["Ready", "", (pod) => (pod.ready ? "yes" : "no")],
  ["Connected", "", (_, stream) => stream && (stream.connected ? "yes" : "no")],
  ["Blocks", "number", (_, stream) => stream && (blocks(stream).join(", ") || "0")],
  ["Groups", "text", (_, stream) => stream?.groups?.map(group).join(", ")],
  ["Drops", "number", (_, stream) => stream?.drops_last_block && count(stream.drops_last_block, "block")],
  ["Last batch", "number", (_, stream) => stream && (stream.last_batch_age_s === null ? "never" : `${age(stream.last_batch_age_s)} ago`)],
  ["Sequence", "number", (_, stream) => stream?.sequence !== undefined && stream.sequence !== null && number(stream.sequence)],
  ["Owner", "text", (_, stream) => stream?.owner],
  ["Last error", "text", (_, stream) => (stream ? stream.last_error : "no stream of it is known yet")],
];
const NAMES = new Set(["Pod", "Name", "Model", "Owner"]);

by("columns").append(...COLUMNS.map(([name, kind]) => el("th", { role: "columnheader", scope: "col", class: kind }, name)));

function newRow() {
  return el("tr", { role: "row" }, ...COLUMNS.map(([name, kind], place) => (place ? el("td", { role: "cell", class: kind, "data-name": name }) : el("th", { role: "rowheader", scope: "row" }))));
}

const listed = (names) => names.flatMap((name, place) => (place ? [", ", named(name)] : [named(name)]));

/** `value`: a text, or a list of names. */
function show(cell, name, value) {
  const text = Array.isArray(value) ? value.join(", ") : value;
  if (cell.dataset.text === text) return;
  cell.dataset.text = text;
  cell.replaceChildren(...(!text ? ["–"] : Array.isArray(value) ? listed(value) : [name === "Trust" ? trusted(text) : NAMES.has(name) ? named(text) : text]));
}

/** How many rows there are at first, and how many more each time that the end of the list comes into view: thousands would make each round slow. */
const STEP = 250;
let entries = [];
let limit = STEP;
let wanting = 0;

const sum = (blocks) => Object.values(blocks).reduce((a, b) => a + b, 0);
// What is in order by another value than its text.
const ORDER = {
  Rank: (_, stream) => stream?.rank,
  Blocks: (_, stream) => stream && sum(stream.blocks),
  Drops: (_, stream) => stream?.drops_last_block,
  "Last batch": (_, stream) => stream?.last_batch_age_s,
  Sequence: (_, stream) => stream?.sequence,
};
by("sort").append(el("option", { value: "" }, "registration"), ...COLUMNS.map(([name]) => el("option", { value: name }, name.toLowerCase())));

/** What is not known comes last, in either direction. */
function compare(one, other) {
  const missing = (value) => value === undefined || value === null || value === "";
  if (missing(one.order) || missing(other.order)) return missing(one.order) - missing(other.order);
  const found = typeof one.order === "number" ? one.order - other.order : one.order.localeCompare(other.order, "en", { numeric: true });
  return by("backwards").checked ? -found : found;
}

/** `pods`: of /v1/pods. */
export function showPods(pods) {
  entries = pods.flatMap((pod) =>
    (pod.streams.length ? pod.streams : [undefined]).map((stream) => ({ key: JSON.stringify([pod.model, pod.pod, stream?.rank]), pod, stream, values: COLUMNS.map(([, , of]) => of(pod, stream) || "") })),
  );
  render();
}

function render() {
  const wanted = by("filter").value.trim().toLowerCase();
  const texts = (entry) => entry.values.map((value) => (Array.isArray(value) ? value.join(", ") : value).toLowerCase());
  let found = wanted ? entries.filter((entry) => texts(entry).some((text) => text.includes(wanted))) : entries;
  const chosen = COLUMNS.findIndex(([name]) => name === by("sort").value);
  if (chosen >= 0) {
    const of = ORDER[COLUMNS[chosen][0]];
    found = found.map((entry) => ({ ...entry, order: of ? of(entry.pod, entry.stream) : String(entry.values[chosen]) })).sort(compare);
  }
  [...by("columns").children].forEach((head, place) => {
    if (place === chosen) head.setAttribute("aria-sort", by("backwards").checked ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  });
  wanting = found.length - limit;
  place(found.slice(0, limit));
  by("table").setAttribute("aria-rowcount", found.length + 1);
  const all = entries.length;
  say(by("shown"), !all ? "No pod is registered" : wanted ? `${number(found.length)} of ${count(all, "stream")}` : count(all, "stream"));
}

/** Change the rows in place, so that the focus and what is selected stay. */
function place(shown) {
  const body = by("streams");
  const seen = new Set();
  for (const { key, values } of shown) {
    const row = rows.get(key) ?? newRow();
    rows.set(key, row);
    COLUMNS.forEach(([name], cell) => show(row.cells[cell], name, values[cell]));
    row.setAttribute("aria-rowindex", seen.size + 2);
    if (body.rows[seen.size] !== row) body.insertBefore(row, body.rows[seen.size] ?? null);
    seen.add(key);
  }
  for (const [key, row] of rows) {
    if (seen.has(key)) continue;
    row.remove();
    rows.delete(key);
  }
}

/** Another filter or order: from the top again. */
export function rearrange() {
  limit = STEP;
  by("list").scrollTop = 0;
  render();
}

new IntersectionObserver(
  ([end]) => {
    if (!end.isIntersecting || wanting <= 0) return;
    limit += STEP;
    render();
  },
  { root: by("list"), rootMargin: "400px" },
).observe(by("end"));

/** One line for all pods, and the blocks that they hold by tier. */
export function totals(pods) {
  const streams = pods.flatMap((pod) => pod.streams);
  const held = Object.fromEntries(TIERS.map((tier) => [tier, streams.reduce((sum, stream) => sum + (stream.blocks[tier] ?? 0), 0)]));
  const trusts = ["live", "partial", "stale", "expired"].map((trust) => [trust, streams.filter((stream) => stream.trust === trust).length]);
  const words = trusts.filter(([, many]) => many).map(([trust, many]) => `${number(many)} ${trust}`);
  const unready = pods.filter((pod) => !pod.ready).length;
  return { held, line: [count(pods.length, "pod") + (unready ? `, ${number(unready)} not ready` : ""), count(streams.length, "stream") + (words.length ? `: ${words.join(", ")}` : ""), count(Object.values(held).reduce((a, b) => a + b, 0), "block")].join(" · ") };
}
