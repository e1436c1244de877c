"use strict";
// Details, legend, search, mouse and keys of the graph.

function factsOf(box) {
  const unit = GRAPH.unit === "s" ? "s" : "FLOPs";
  const some = (value, text) => (value ? text : ""); // the net of a saved folder has no costs
  const costs = (one) => [["forward", some(one.flops, quantity(one.flops, "FLOPs"))], ["backward", some(one.backward_flops, quantity(one.backward_flops, "FLOPs"))], ["kept for backward", some(one.keeps, bytesText(one.keeps))]];
  if (box.type === "node") {
    const value = box.shape === null ? "" : `${shapeText(box.shape)} ${box.dtype}`;
    return [["operation", box.operation], ["module", box.target || (box.scope.length ? box.scope[box.scope.length - 1].join(" ") : "")], ["value", value], ...costs(box), ["parameters", box.parameters.concat(box.reads.filter((name) => !box.parameters.includes(name))).join(", ")], ["segment", String(box.segment)]];
  }
  if (box.type === "segment") {
    const facts = box.facts;
    return [["nodes", String(box.members.length)], ["parameters", quantity(facts.parameters, "")], ["forward", quantity(facts.forward, unit)], ["backward", quantity(facts.backward, unit)], ["kept for backward", bytesText(facts.activation_bytes)], ["predicted peak", bytesText(facts.peak_bytes)], ["peak at", `${facts.peak_at}, ${facts.peak_backward ? "backward" : "forward"}`]];
  }
  if (box.type === "module") return [["class", box.cls], ["nodes", String(box.members.length)], ...costs(box.sums), ["parameters", String(box.sums.parameters)], ["segment", String(box.segment)]];
  if (box.type === "cut") return [["after", box.after], ...box.tensors.map((tensor) => [tensor.node, `${shapeText(tensor.shape)} ${tensor.dtype}, ${bytesText(tensor.bytes)}`])];
  const { exit, synthesizers } = box.cut;
  return [["at", `cut ${box.index}`], ["synthesizer", synthesizers.join(", ")], ["runs", exit ? exit.text : ""], ["forward", exit && exit.flops ? quantity(exit.flops, "FLOPs") : ""]];
}

function factList(box) {
  const list = element("dl");
  for (const [name, value] of factsOf(box)) if (value) list.append(element("dt", "", name), element("dd", "", value));
  return list;
}

function sourceOf(box) {
  if (box.type !== "node" || !box.line[0]) return null;
  return element("code", "source", `${box.line[0]}\n${box.line[1]}`);
}

function linkTo(id, text) {
  const link = element("a", "", text);
  link.href = "#graph";
  link.addEventListener("click", (event) => { event.preventDefault(); goTo(id); });
  return link;
}

function describe(id) {
  const panel = $("details");
  panel.replaceChildren();
  if (!id) {
    panel.append(element("h3", "", GRAPH.model), element("p", "note", `${count(GRAPH.nodes.length, "node")} in ${count(GRAPH.segments.length, "segment")}. Click a box to read about it.`));
    for (const type of ["segment", "cut"]) {
      const links = [...NODES.values()].filter((box) => box.type === type).map((box) => linkTo(box.id, linesOf(box).join(": ")));
      panel.append(...links.map((link) => element("div", "", link)));
    }
    return;
  }
  const box = NODES.get(id);
  panel.append(element("h3", "", box.label), sourceOf(box) || "", factList(box));
  if (box.members) {
    const button = element("button", "", OPEN.has(id) ? "Fold" : "Unfold");
    button.type = "button";
    button.addEventListener("click", () => toggle(id));
    panel.append(button);
  }
  const around = cy.$id(id);
  for (const [title, others] of [["takes", around.incomers("node")], ["is used by", around.outgoers("node")]]) {
    if (others.empty()) continue;
    const list = element("p", "", element("span", "note", `${title} `));
    others.slice(0, 12).forEach((one) => {
      list.append(linkTo(one.id(), NODES.get(one.id()).label), " ");
    });
    if (others.length > 12) list.append(`and ${others.length - 12} more`);
    panel.append(list);
  }
}

function drawLegend() {
  const palette = isDark() ? DARK : LIGHT;
  const entries = $("colour").value === "kind" ? Object.entries(palette).map(([name, colour]) => [name === "input" ? "in, out" : name, colour]) : [["less", isDark() ? "hsl(28,15%,18%)" : "hsl(28,90%,97%)"], ["more", isDark() ? "hsl(28,80%,38%)" : "hsl(28,90%,60%)"]];
  $("legend").replaceChildren(...entries.map(([name, colour]) => {
    const swatch = element("i");
    swatch.style.background = colour;
    return element("span", "", swatch, name);
  }));
}

function showTip(box, at) {
  const tip = $("tip");
  tip.replaceChildren(element("b", "", box.label), ...factsOf(box).filter(([, value]) => value).slice(0, 6).map(([name, value]) => element("div", "", `${name}: ${short(value, 90)}`)), sourceOf(box) || "");
  tip.hidden = false;
  const [width, height] = [$("canvas-box").clientWidth, $("canvas-box").clientHeight];
  tip.style.left = `${Math.max(4, Math.min(at.x + 14, width - tip.offsetWidth - 8))}px`;
  tip.style.top = `${Math.max(4, Math.min(at.y + 14, height - tip.offsetHeight - 8))}px`;
}

function addMouse() {
  cy.on("tap", (event) => choose(event.target === cy ? null : event.target.isNode() ? event.target.id() : selected));
  cy.on("dbltap", "node", (event) => toggle(event.target.id()));
  cy.on("mouseover", "node", (event) => {
    const box = NODES.get(event.target.id());
    if (!OPEN.has(box.id)) showTip(box, event.renderedPosition);
    $("graph").style.cursor = "pointer";
  });
  cy.on("mouseout tapdrag zoom pan", (event) => {
    if (event.type === "tapdrag" && event.target !== cy) return;
    $("tip").hidden = true;
    $("graph").style.cursor = "";
  });
  // Without the focus or Ctrl, the wheel scrolls the page.
  $("canvas-box").addEventListener("wheel", (event) => {
    if (document.activeElement !== $("graph") && !event.ctrlKey) event.stopPropagation();
  }, { capture: true });
  $("graph").addEventListener("pointerdown", () => $("graph").focus({ preventScroll: true }));
  $("unfold-all").addEventListener("click", () => unfoldAll(true));
  $("fold-all").addEventListener("click", () => unfoldAll(false));
  $("fit").addEventListener("click", fit);
  $("zoom-in").addEventListener("click", () => zoomBy(1.3));
  $("zoom-out").addEventListener("click", () => zoomBy(1 / 1.3));
  $("colour").addEventListener("change", recolour);
}

function zoomBy(factor) {
  cy.zoom({ level: cy.zoom() * factor, renderedPosition: { x: cy.width() / 2, y: cy.height() / 2 } });
}

// The next box in a direction: along an edge, or beside; from a group to the boxes inside of it.
function neighbour(direction) {
  const here = cy.$id(selected || "");
  if (here.empty()) return cy.nodes().min((one) => one.position("y") - one.height() / 2).ele;
  const x = (one) => Math.abs(one.position("x") - here.position("x"));
  const inside = cy.nodes().filter((one) => NODES.get(one.id()).parent === here.id());
  if (direction === "ArrowDown") {
    const next = inside.nonempty() ? inside.min((one) => one.position("y")) : here.outgoers("node").min(x);
    return next.ele;
  }
  if (direction === "ArrowUp") return here.incomers("node").min(x).ele || cy.$id(NODES.get(here.id()).parent || "");
  const sign = direction === "ArrowRight" ? 1 : -1;
  const beside = cy.nodes().filter((one) => sign * (one.position("x") - here.position("x")) > 1 && !OPEN.has(one.id()));
  return beside.min((one) => x(one) + 4 * Math.abs(one.position("y") - here.position("y"))).ele;
}

function move(direction) {
  const next = neighbour(direction);
  if (!next || next.empty()) return;
  choose(next.id());
  const place = next.renderedBoundingBox();
  if (place.x1 < 0 || place.y1 < 0 || place.x2 > cy.width() || place.y2 > cy.height()) cy.center(next);
}

function addKeys() {
  $("graph").addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const actions = {
      Enter: () => selected && toggle(selected), " ": () => selected && toggle(selected), Escape: () => choose(null),
      "+": () => zoomBy(1.3), "=": () => zoomBy(1.3), "-": () => zoomBy(1 / 1.3), 0: fit,
    };
    if (event.key.startsWith("Arrow")) move(event.key);
    else if (event.key in actions) actions[event.key]();
    else return;
    event.preventDefault();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || /^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName)) return;
    event.preventDefault();
    $("search").focus();
  });
}

function addSearch() {
  const [input, list] = [$("search"), $("found")];
  const texts = [...NODES.values()].map((box) => [box, boxText(box)]);
  let at = 0;
  const pick = (id) => { list.hidden = true; input.setAttribute("aria-expanded", "false"); $("graph").focus({ preventScroll: true }); return goTo(id); };
  const draw = () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    const found = words.length ? texts.filter(([, text]) => words.every((word) => text.includes(word))) : [];
    at = Math.max(0, Math.min(at, found.length - 1, 49));
    list.replaceChildren(...found.slice(0, 50).map(([box], k) => {
      const detail = box.type === "node" ? `${box.operation} ${shapeText(box.shape)} ${box.line[0]}` : box.cls || box.type;
      const row = element("li", "", `${box.label} `, element("small", "", detail));
      row.setAttribute("role", "option");
      row.setAttribute("aria-selected", String(k === at));
      row.id = `found-${k}`;
      row.dataset.id = box.id;
      row.addEventListener("pointerdown", (event) => { event.preventDefault(); pick(box.id); });
      return row;
    }));
    if (words.length && !found.length) list.append(element("li", "", "nothing found"));
    if (found.length > 50) list.append(element("li", "", element("small", "", `and ${found.length - 50} more`)));
    list.hidden = !words.length;
    input.setAttribute("aria-expanded", String(!list.hidden));
    input.setAttribute("aria-activedescendant", found.length ? `found-${at}` : "");
    if (found.length) list.children[at].scrollIntoView({ block: "nearest" });
  };
  input.addEventListener("input", () => { at = 0; draw(); });
  input.addEventListener("blur", () => { list.hidden = true; });
  input.addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown") at += 1;
    else if (event.key === "ArrowUp") at -= 1;
    else if (event.key === "Enter") { const row = list.children[at]; if (row && row.dataset.id) pick(row.dataset.id); return; }
    else if (event.key === "Escape") { list.hidden = true; return; }
    else return;
    event.preventDefault();
    draw();
  });
}

function buildControls() {
  addMouse();
  addKeys();
  addSearch();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour);
  addEventListener("beforeprint", () => {
    document.documentElement.classList.add("printing");
    recolour();
    const box = cy.elements().boundingBox();
    const scale = Math.min(2, 4000 / box.w, 8000 / box.h);
    const width = box.w * Math.min(0.8, scale / 2, 700 / box.w);
    const picture = cy.png({ full: true, scale, bg: "#ffffff" }); // as a background it may go over several sheets
    Object.assign($("printed").style, {
      backgroundImage: `url(${picture})`, width: `${width}px`, height: `${(width * box.h) / box.w}px`,
    });
    $("printed").hidden = false;
  });
  addEventListener("afterprint", () => {
    document.documentElement.classList.remove("printing");
    $("printed").hidden = true;
    recolour();
  });
}
