"use strict";
// Sorting: each body of a sortable table is one arm, its seeds below it; empty cells come last.
for (const button of document.querySelectorAll("table.sortable th button")) button.onclick = () => {
  const head = button.parentNode, table = head.closest("table");
  const key = body => body.rows[0].cells[head.cellIndex].dataset.sort, empty = body => key(body) === "";
  const down = head.ariaSort === "ascending" ? -1 : 1;
  for (const other of head.parentNode.cells) other.ariaSort = null;
  head.ariaSort = down > 0 ? "ascending" : "descending";
  table.append(...[...table.tBodies].sort((a, b) => empty(a) - empty(b) || down * (key(a) - key(b) || key(a).localeCompare(key(b), "en", { numeric: true }))));
};
const singles = document.getElementById("singles");
if (singles) singles.onchange = () => document.getElementById("summary").classList.toggle("singles-hidden", !singles.checked);

// Documents: choose a run, then a document of it. Texts are only ever set as text.
const runs = JSON.parse(document.getElementById("documents-data").textContent);
const [run, show, order, list, shown] = ["run", "show", "order", "list", "shown"].map(id => document.getElementById(id));
const kinds = {
  all: () => true, injected: d => d.split === "injected", exact: d => d.split === "injected" && d.exact,
  wrong: d => d.split === "injected" && !d.exact, never_seen: d => d.split === "never_seen",
};
const orders = {
  file: () => 0, high: (a, b) => b.rouge - a.rouge, low: (a, b) => a.rouge - b.rouge, right: (a, b) => b.right - a.right,
};
const make = (name, text, kind) => Object.assign(document.createElement(name), { textContent: text, className: kind || "" });
let chosen = [];
function fill() {
  const before = chosen[list.selectedIndex]?.id;
  chosen = runs[run.value].documents.filter(kinds[show.value]).sort(orders[order.value]);
  list.replaceChildren(...chosen.map(d => make("option", `${d.exact ? "●" : "○"} ${d.rouge.toFixed(2)}  ${d.id}${d.split === "injected" ? "" : " (never seen)"}`)));
  list.selectedIndex = Math.max(0, chosen.findIndex(d => d.id === before));  // the same document under another run
  tell();
}
function tell() {
  const d = chosen[list.selectedIndex];
  if (!d) return shown.replaceChildren(make("p", "No such document in this run."));
  const line = (name, spans) => { const p = document.createElement("p"); p.append(make("b", name), ...spans); return p; };
  const right = d.exact ? "verbatim" : `not verbatim, first ${d.right} of ${d.tokens} tokens right`;
  const [same, wrong, after] = d.generated;
  shown.replaceChildren(
    make("div", `${d.id}: ${d.split === "injected" ? `seen ${d.exposures} times` : "never seen"}; ${right}, RougeL ${d.rouge.toFixed(2)}`, "note"),
    line("prefix (the prompt's end)", [make("span", d.prefix)]),
    line("true suffix", d.true.map(([dropped, text]) => make("span", text, dropped ? "dropped" : "kept"))),
    line("generated suffix", [make("span", same, "same"), ...(wrong === undefined ? [] : [make("mark", wrong), make("span", after, "after")])]),
  );
}
if (runs.length) {
  run.append(...runs.map((one, place) => Object.assign(make("option", one.run), { value: place })));
  // First a run that shows what the page is about: a document that went wrong, and what was dropped of it.
  run.value = Math.max(0, runs.findIndex(one => one.documents.some(d => !d.exact && d.true.some(([dropped]) => dropped))));
  run.onchange = show.onchange = order.onchange = fill;
  list.onchange = tell;
  fill();
}
