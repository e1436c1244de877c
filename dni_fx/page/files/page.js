"use strict";
// The rest of the page: sentences, charts, tables and the diff.

const COLOURS = ["#8a94a3", "#2f7de1", "#e0662d", "#2f9e63", "#a25bd0", "#d1a01f", "#1fa7a7", "#d64c78"];

function section(name, ...children) {
  const place = $(name);
  place.append(element("h2", "", place.dataset.title), ...children);
}

function table(columns, rows) { // columns: [title, "number" or ""]
  const head = element("tr", "", ...columns.map(([title, kind]) => element("th", kind, title)));
  const body = rows.map((row) => element("tr", "", ...row.map((cell, k) => element("td", columns[k][1], cell))));
  return element("table", "", element("thead", "", head), element("tbody", "", ...body));
}

function bar(value, most) {
  const made = element("span", "bar");
  made.style.width = `${(100 * value) / (most || 1)}%`;
  return made;
}

const POWERS = [...Array(50).keys()].map((k) => 2 ** k); // the steps of an axis of bytes

function chart(place, series, xLabel, yText) {
  const grid = [...new Set(series.flatMap((one) => one.x))].sort((a, b) => a - b);
  const at = (one) => {
    const known = new Map(one.x.map((x, k) => [x, one.y[k]]));
    return grid.map((x) => (known.has(x) ? known.get(x) : null));
  };
  const axis = { stroke: css("--soft"), grid: { stroke: css("--line"), width: 1 }, ticks: { stroke: css("--line") } };
  return new uPlot({
    width: Math.max(300, Math.min(1100, place.clientWidth || 900)), height: 280,
    scales: { x: { time: false }, y: { range: (_, low, high) => [Math.min(0, low), high * 1.05 || 1] } },
    axes: [{ ...axis, label: xLabel, labelSize: 24 }, { ...axis, size: 78, values: (_, ticks) => ticks.map(yText), ...(yText === bytesText ? { incrs: POWERS } : {}) }],
    series: [{ label: xLabel, value: (_, x) => (x === null ? "" : String(Number(x.toPrecision(3)))) }, ...series.map((one, k) => ({
      label: one.name, stroke: COLOURS[k % COLOURS.length], width: 2, spanGaps: true, points: { show: false },
      value: (_, y) => (y === null ? "" : yText(y)),
    }))],
  }, [grid, ...series.map(at)], place);
}

// Charts are drawn again where the width or the colours change.
function addChart(parent, series, xLabel, yText) {
  const place = element("div", "chart");
  parent.append(place);
  let drawn = chart(place, series, xLabel, yText);
  const again = () => { drawn.destroy(); drawn = chart(place, series, xLabel, yText); };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
  for (const event of ["resize", "beforeprint", "afterprint"]) addEventListener(event, again);
}

function showMemory() {
  const { series, measured } = DATA.memory;
  if (!series.length) return;
  section("memory", element("p", "note", `Bytes that a training step allocates, over the step, ${measured ? "as measured" : "as the plan predicts them"}: without parameters, optimizer state and batch${measured ? "" : ", and before the optimizer steps"}.`));
  const points = 400; // all curves on one axis: the share of the step
  addChart($("memory"), series.map((one) => ({ name: one.name, x: [...Array(points + 1).keys()].map((i) => i / points), y: [...Array(points + 1).keys()].map((i) => one.y[Math.min(one.y.length - 1, Math.floor((i * one.y.length) / points))]) })), "share of the step", bytesText);
}

function showSegments() {
  const { segments, cuts, unit } = GRAPH;
  const time = (value) => quantity(value, unit === "s" ? "s" : "");
  const most = Math.max(...segments.map((one) => one.peak_bytes));
  const columns = [["segment", "number"], ["parameters", "number"], [`forward (${unit})`, "number"], [`backward (${unit})`, "number"], [`synthesizers (${unit})`, "number"], ["kept", "number"], ["predicted peak", "number"], ["", "bar-cell"]];
  section("segments", table(columns, segments.map((one, k) => [String(k), quantity(one.parameters, ""), time(one.forward), time(one.backward), time(one.synthesizers), bytesText(one.activation_bytes), bytesText(one.peak_bytes), bar(one.peak_bytes, most)])));
  if (!cuts.length) return;
  const rows = cuts.flatMap((cut, k) => cut.tensors.map((tensor, i) => [i ? "" : String(k), tensor.node, shapeText(tensor.shape), tensor.dtype, bytesText(tensor.bytes), i ? "" : cut.exit ? `exit: ${cut.exit.text}` : cut.synthesizers.join(", ") || "a synthesizer"]));
  section("cuts", table([["cut", "number"], ["tensor", ""], ["shape", ""], ["dtype", ""], ["bytes", "number"], ["gradient from", ""]], rows));
}

function showChecks() {
  if (!DATA.checks.length) return;
  const rows = DATA.checks.map((one) => [one.name, element("span", one.passed ? "pass" : "fail", one.passed ? "pass" : "FAIL"), one.figure]);
  section("checks", table([["check", ""], ["result", ""], ["figure", ""]], rows));
}

function showBench() {
  if (!DATA.bench.length) return;
  const rows = DATA.bench.map((row) => row.failed ? [row.name, "", "", "", `not measured: ${row.failed}`] : [row.name, bytesText(row.activation_bytes), bytesText(row.peak_bytes), `${row.milliseconds.toPrecision(3)} ms`, `${row.time_ratio.median.toFixed(2)}× (${row.time_ratio.low.toFixed(2)}–${row.time_ratio.high.toFixed(2)})`]);
  section("bench", table([["trained with", ""], ["activations", "number"], ["with gradients", "number"], ["step", "number"], ["time beside backprop", ""]], rows));
}

function showFigures() {
  if (!DATA.figures.length) return;
  const columns = Object.keys(DATA.figures[0]);
  section("figures", table(columns.map((name, i) => [name, i ? "number" : ""]), DATA.figures.map((row) => columns.map((name) => row[name]))));
}

function showCurves() {
  if (!DATA.curves.length) return;
  section("curves");
  for (const one of DATA.curves) {
    $("curves").append(element("h3", "", one.title));
    const spread = (y) => y.map((_, i) => (y.length > 1 ? i / (y.length - 1) : 0));
    addChart($("curves"), one.series.map((line) => ({ name: line.name, x: line.x.length ? line.x : spread(line.y), y: line.y })), one.x_label, (y) => String(Number(y.toPrecision(4))));
  }
}

function showDiff() {
  if (!DATA.diff) return;
  const kinds = { "+": "added", "-": "removed", "=": "place", ">": "moved" };
  const lines = DATA.diff.trimEnd().split("\n").map((line) => element("span", kinds[line[0]] || "", line));
  section("diff", element("pre", "", ...lines));
}

$("facts").append(...DATA.facts.map((fact) => element("li", "", fact)));
if (DATA.verdict.length) {
  $("verdict").append(...DATA.verdict.map((sentence) => element("p", "", sentence)));
  $("verdict").hidden = false;
}
showMemory();
showSegments();
showChecks();
showBench();
showFigures();
showCurves();
showDiff();
for (const one of document.querySelectorAll("section[data-title]")) {
  if (!one.childElementCount) continue;
  const link = element("a", "", one.dataset.title);
  link.href = `#${one.id}`;
  $("contents").append(link);
}
