// The table of pods: a row for each stream, changed in place.
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

/** `pods`: of /v1/pods. */
export function showPods(pods) {
  const seen = new Set();
  const body = by("streams");
  for (const pod of pods) {
    for (const stream of pod.streams.length ? pod.streams : [undefined]) {
      const key = JSON.stringify([pod.pod, stream?.rank]);
      seen.add(key);
      const row = rows.get(key) ?? newRow();
      rows.set(key, row);
      COLUMNS.forEach(([name, , of], place) => show(row.cells[place], name, of(pod, stream) || ""));
      const place = seen.size - 1;
      if (body.rows[place] !== row) body.insertBefore(row, body.rows[place] ?? null);
    }
  }
  for (const [key, row] of rows) {
    if (seen.has(key)) continue;
    row.remove();
    rows.delete(key);
  }
  filter();
}

export function filter() {
  const wanted = by("filter").value.trim().toLowerCase();
  let shown = 0;
  for (const row of rows.values()) {
    row.hidden = wanted !== "" && ![...row.cells].some((cell) => cell.dataset.text.toLowerCase().includes(wanted));
    shown += !row.hidden;
  }
  const all = rows.size;
  say(by("shown"), !all ? "No pod is registered" : wanted ? `${number(shown)} of ${count(all, "stream")}` : count(all, "stream"));
}

/** One line for all pods, and the blocks that they hold by tier. */
export function totals(pods) {
  const streams = pods.flatMap((pod) => pod.streams);
  const held = Object.fromEntries(TIERS.map((tier) => [tier, streams.reduce((sum, stream) => sum + (stream.blocks[tier] ?? 0), 0)]));
  const trusts = ["live", "partial", "stale", "expired"].map((trust) => [trust, streams.filter((stream) => stream.trust === trust).length]);
  const words = trusts.filter(([, many]) => many).map(([trust, many]) => `${number(many)} ${trust}`);
  const unready = pods.filter((pod) => !pod.ready).length;
  return { held, line: [count(pods.length, "pod") + (unready ? `, ${number(unready)} not ready` : ""), count(streams.length, "stream") + (words.length ? `: ${words.join(", ")}` : ""), count(Object.values(held).reduce((a, b) => a + b, 0), "block")].join(" · ") };
}
