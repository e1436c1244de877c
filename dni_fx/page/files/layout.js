"use strict";
// The places of boxes and edges: elkjs computes them in a worker, so that the page answers meanwhile.

const elk = new ELK({
  workerUrl: URL.createObjectURL(
    new Blob([document.getElementById("elk-worker").textContent], { type: "text/javascript" })),
});

const ROOT_OPTIONS = {
  "elk.algorithm": "layered",
  "elk.direction": "DOWN",
  "elk.hierarchyHandling": "INCLUDE_CHILDREN",
  "elk.json.edgeCoords": "ROOT",
  "elk.json.shapeCoords": "ROOT",
  "elk.layered.considerModelOrder.strategy": "NODES_AND_EDGES",
  "elk.layered.spacing.nodeNodeBetweenLayers": "34",
  "elk.spacing.nodeNode": "26",
  "elk.spacing.edgeNode": "16",
  "elk.layered.spacing.edgeNodeBetweenLayers": "14",
};

// boxes: {id, parent, width, height, open}, the size of folded ones; edges: {id, source, target}.
async function layOut(boxes, edges) {
  const root = { id: "root", layoutOptions: ROOT_OPTIONS, children: [] };
  const made = new Map([[null, root]]);
  for (const box of boxes) {
    const one = { id: box.id };
    if (!box.open) Object.assign(one, { width: box.width, height: box.height });
    else Object.assign(one, { children: [], layoutOptions: { "elk.padding": "[top=36,left=16,bottom=16,right=16]" } });
    made.set(box.id, one);
  }
  for (const box of boxes) made.get(box.parent).children.push(made.get(box.id));
  root.edges = edges.map((edge) => ({ id: edge.id, sources: [edge.source], targets: [edge.target] }));
  const done = await elk.layout(root);
  const [places, routes] = [new Map(), new Map()];
  const collect = (box) => (box.children || []).forEach((child) => { places.set(child.id, child); collect(child); });
  collect(done);
  for (const edge of done.edges) {
    const [section] = edge.sections || [];
    if (section) routes.set(edge.id, [section.startPoint, ...(section.bendPoints || []), section.endPoint]);
  }
  return { places, routes };
}

// The bends of a route as cytoscape has them: along and across the straight line between its ends.
function bends(points) {
  const [first, last] = [points[0], points[points.length - 1]];
  const [dx, dy] = [last.x - first.x, last.y - first.y];
  const length = Math.hypot(dx, dy) || 1;
  const inner = points.slice(1, -1);
  return {
    weights: inner.map((p) => ((p.x - first.x) * dx + (p.y - first.y) * dy) / (length * length)),
    distances: inner.map((p) => ((p.y - first.y) * dx - (p.x - first.x) * dy) / length),
  };
}
