"use strict";
// Draws the graph with cytoscape, and answers to mouse, keys and search.

buildModel();
if (GRAPH.nodes.length <= LARGE) groups().forEach((group) => OPEN.add(group.id));

const $ = (id) => document.getElementById(id);
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const isDark = () => matchMedia("(prefers-color-scheme: dark)").matches && !isPrinting();
const isPrinting = () => document.documentElement.classList.contains("printing"); // on white paper
const LIGHT = { layer: "#cfe1fa", norm: "#e6d9f5", activation: "#d3efd8", attention: "#fbdfc2", shape: "#e6e9ed", input: "#fdf3c0", other: "#f3f5f7" };
const DARK = { layer: "#234772", norm: "#493767", activation: "#215038", attention: "#6b4419", shape: "#363e4a", input: "#5a5021", other: "#2a313c" };
const SIZE = 12; // of the font
let selected = null;
let layouts = 0;

const cy = cytoscape({
  container: $("graph"), autoungrabify: true, boxSelectionEnabled: false, selectionType: "single", minZoom: 0.02, maxZoom: 4,
  hideEdgesOnViewport: GRAPH.nodes.length > 2000, textureOnViewport: GRAPH.nodes.length > 2000,
});

const pen = document.createElement("canvas").getContext("2d");
const short = (text, most = 34) => (text.length > most ? `${text.slice(0, most / 2 - 1)}…${text.slice(1 - most / 2)}` : text);

function linesOf(box) {
  const sign = box.members ? (OPEN.has(box.id) ? "▾ " : "▸ ") : "";
  if (box.type === "segment") {
    const peak = `${count(box.members.length, "node")}, peak ${bytesText(box.facts.peak_bytes)}`;
    return OPEN.has(box.id) ? [`${sign}${box.label}: ${peak}`] : [`${sign}${box.label}`, peak];
  }
  if (box.type === "module") {
    const title = short(`${sign}${box.label} (${box.cls})`, 44);
    return OPEN.has(box.id) ? [title] : [title, `${count(box.members.length, "node")}, ${quantity(box.sums.flops, "FLOPs")}`];
  }
  if (box.type === "cut") {
    const size = box.tensors.reduce((sum, tensor) => sum + tensor.bytes, 0);
    const what = box.tensors.length === 1 ? `${short(box.tensors[0].node, 24)} ${shapeText(box.tensors[0].shape)}` : count(box.tensors.length, "tensor");
    return [`✂ ${box.label}: ${what}, ${bytesText(size)}`];
  }
  if (box.type === "exit") {
    const cost = box.cut.exit && box.cut.exit.flops ? `${quantity(box.cut.exit.flops, "FLOPs")}` : "gives the gradient";
    return [box.label, cost];
  }
  const same = box.operation.toLowerCase() === box.name.replace(/_\d+$/, "").toLowerCase();
  return [short(box.name), [same ? "" : short(box.operation, 20), shapeText(box.shape)].filter(Boolean).join("  ")].filter(Boolean);
}

function sizeOf(box, lines) {
  pen.font = `${box.type === "node" || box.type === "exit" ? 400 : 600} ${SIZE}px system-ui, sans-serif`;
  const width = Math.max(...lines.map((line) => pen.measureText(line).width));
  return { width: Math.max(70, Math.ceil(width) + 26), height: lines.length * 16 + (box.members ? 20 : 14) };
}

// The title of an open group: as much of it as is within its width.
function titleWithin(box, width) {
  const fits = (text) => sizeOf(box, [text]).width <= width + 20;
  const choices = [linesOf(box)[0], `▾ ${box.label}`, `▾ ${box.cls || ""}`];
  return choices.find(fits) || short(choices[1], Math.max(8, Math.floor(width / 8)));
}

const costOf = (box, what) => {
  const value = (box.sums || box)[what];
  return Array.isArray(value) ? value.length : value || 0;
};

function colourOf(box, most) {
  const palette = isDark() ? DARK : LIGHT;
  const by = $("colour").value;
  if (box.type === "segment" || box.type === "module") {
    if (by === "kind" || OPEN.has(box.id)) return css(OPEN.has(box.id) && box.type === "segment" ? "--panel" : OPEN.has(box.id) ? "--page" : "--panel");
  } else if (box.type !== "node") return css("--panel");
  if (by === "kind") return palette[box.kind];
  const share = Math.sqrt(costOf(box, by) / (most || 1));
  return isDark() ? `hsl(28, ${Math.round(15 + 65 * share)}%, ${Math.round(18 + 20 * share)}%)` : `hsl(28, 90%, ${Math.round(97 - 37 * share)}%)`;
}

function recolour() {
  const folded = cy.nodes().map((one) => NODES.get(one.id())).filter((box) => !OPEN.has(box.id));
  const most = $("colour").value === "kind" ? 1 : Math.max(...folded.map((box) => costOf(box, $("colour").value)));
  cy.batch(() => cy.nodes().forEach((one) => { one.data("fill", colourOf(NODES.get(one.id()), most)); }));
  cy.style(styles());
  drawLegend();
}

function styles() {
  const [text, line, accent, cut, soft] = ["--text", "--line", "--accent", "--cut", "--soft"].map(css);
  return [
    { selector: "node", style: { shape: "round-rectangle", width: "data(width)", height: "data(height)", "background-color": "data(fill)", label: "data(label)", color: text, "font-size": SIZE, "font-family": "system-ui, sans-serif", "text-wrap": "wrap", "text-valign": "center", "text-halign": "center", "line-height": 1.25, "border-width": 1, "border-color": soft, "min-zoomed-font-size": 5, "corner-radius": 6, "z-index": "data(z)", "z-index-compare": "manual" } },
    { selector: ".group", style: { "border-width": 1.5 } },
    { selector: ".open", style: { "text-valign": "top", "text-margin-y": 24, "border-color": line, "font-weight": 600, "text-background-color": css("--page"), "text-background-opacity": 0.85, "text-background-padding": 2, "text-background-shape": "round-rectangle" } },
    { selector: ".segment", style: { "border-color": accent, "font-weight": 600, "border-width": 2 } },
    { selector: ".cut", style: { "border-color": cut, color: cut, "border-width": 2, "font-weight": 600, "corner-radius": 13 } },
    { selector: ".exit", style: { "border-color": cut, "border-style": "dashed", "corner-radius": 13 } },
    { selector: "edge", style: { width: 1.4, "line-color": soft, "target-arrow-color": soft, "target-arrow-shape": "triangle", "arrow-scale": 0.8, "curve-style": "straight", "source-endpoint": "data(start)", "target-endpoint": "data(end)", opacity: 0.85, "z-index": 0, "z-index-compare": "manual" } },
    { selector: "edge.bent", style: { "curve-style": "round-segments", "segment-weights": (e) => e.data("weights"), "segment-distances": (e) => e.data("distances"), "segment-radii": 8, "edge-distances": "endpoints" } },
    { selector: "edge.cut", style: { width: 3, "line-color": cut, "target-arrow-color": cut } },
    { selector: "edge.exit", style: { "line-style": "dashed", "line-color": cut, "target-arrow-color": cut } },
    { selector: "edge.free", style: { "line-style": "dashed" } },
    { selector: "edge.near", style: { width: 3, "line-color": accent, "target-arrow-color": accent, opacity: 1, "z-index": 9 } },
    { selector: ".runs", style: { "border-color": cut, "border-width": 3 } },
    { selector: "node.chosen", style: { "border-color": accent, "border-width": 4 } },
  ];
}

// Shows the boxes that the open groups leave visible; `anchor` stays where it is on the screen.
async function show(anchor) {
  const number = ++layouts;
  $("busy").hidden = false;
  const boxes = visibleBoxes().map((box) => {
    const lines = linesOf(box);
    return { id: box.id, parent: box.parent, label: lines.join("\n"), open: OPEN.has(box.id), ...sizeOf(box, lines) };
  });
  const edges = visibleEdges();
  const { places, routes } = await layOut(boxes, edges);
  if (number !== layouts) return; // another fold came meanwhile
  const before = anchor && cy.$id(anchor).nonempty() ? topOf(anchor) : null;
  const depth = (id) => [...ancestors(id)].length;
  cy.batch(() => {
    cy.elements().remove();
    cy.add(boxes.map((box) => {
      const [place, one] = [places.get(box.id), NODES.get(box.id)];
      const open = OPEN.has(box.id);
      const label = open ? titleWithin(one, place.width) : box.label;
      return {
        group: "nodes", data: { id: box.id, label, width: place.width, height: place.height, fill: "#888", z: open ? depth(box.id) - 99 : 1 },
        position: { x: place.x + place.width / 2, y: place.y + place.height / 2 },
        classes: [one.type, one.members ? "group" : "", open ? "open" : ""].join(" "),
      };
    }));
    cy.add(edges.filter((edge) => routes.has(edge.id)).map((edge) => drawnEdge(edge, routes.get(edge.id), places)));
  });
  recolour();
  $("busy").hidden = true;
  $("count").textContent = `${boxes.length} of ${NODES.size} boxes shown`;
  if (before) keep(anchor, before);
  else if (number === 1) start();
  if (selected && cy.$id(selected).nonempty()) mark(selected);
  $("graph").dataset.layouts = number;
}

function drawnEdge(edge, points, places) {
  const at = (point, id) => {
    const place = places.get(id);
    return `${point.x - place.x - place.width / 2}px ${point.y - place.y - place.height / 2}px`;
  };
  const data = { id: edge.id, source: edge.source, target: edge.target, start: at(points[0], edge.source), end: at(points[points.length - 1], edge.target) };
  return {
    group: "edges", data: points.length > 2 ? { ...data, ...bends(points) } : data,
    classes: `${edge.kind}${points.length > 2 ? " bent" : ""}`,
  };
}

function topOf(id) {
  const box = cy.$id(id).renderedBoundingBox({ includeLabels: false, includeOverlays: false });
  return { x: (box.x1 + box.x2) / 2, y: box.y1 };
}

function keep(id, before) {
  const now = topOf(id);
  cy.panBy({ x: before.x - now.x, y: before.y - now.y });
}

function fit() {
  cy.fit(cy.nodes(), 24);
  if (cy.zoom() > 1.1) { cy.zoom(1.1); cy.center(cy.nodes()); }
}

// A tall graph starts at its top, at a size that can be read.
function start() {
  fit();
  if (cy.zoom() > 0.5) return;
  const box = cy.nodes().boundingBox();
  cy.zoom(Math.min(0.9, Math.max(0.5, cy.width() / (box.w + 48))));
  cy.pan({ x: cy.width() / 2 - ((box.x1 + box.x2) / 2) * cy.zoom(), y: 20 - box.y1 * cy.zoom() });
}

function toggle(id) {
  if (!NODES.get(id).members) return Promise.resolve();
  if (OPEN.has(id)) OPEN.delete(id); else OPEN.add(id);
  return show(id).then(() => describe(selected));
}

function unfoldAll(open) {
  groups().forEach((group) => { if (open) OPEN.add(group.id); else OPEN.delete(group.id); });
  if (!open && selected) selected = NODES.get(selected).members || NODES.get(selected).type === "node" ? shownFor(selected) : selected;
  return show(null).then(() => { start(); describe(selected); });
}

function mark(id) {
  cy.elements(".chosen, .near, .runs").removeClass("chosen near runs");
  if (!id) return;
  cy.$id(id).addClass("chosen");
  cy.$id(id).connectedEdges().addClass("near");
  const box = NODES.get(id);
  const planned = box.type === "exit" ? box.cut.exit : box.exit;
  for (const name of planned ? planned.nodes : []) if (NODES.has(`node ${name}`)) cy.$id(shownFor(`node ${name}`)).addClass("runs");
}

function choose(id) {
  selected = id;
  mark(id);
  describe(id);
}

// Unfolds what hides a box, chooses it, and brings it into view.
async function goTo(id) {
  const hidden = [...ancestors(id)].filter((group) => !OPEN.has(group));
  hidden.forEach((group) => OPEN.add(group));
  if (hidden.length) await show(null);
  choose(id);
  if (cy.zoom() < 0.6) cy.zoom(0.8);
  cy.center(cy.$id(id));
}

buildControls();
const ready = show(null).then(() => describe(null));
