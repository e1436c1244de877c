"use strict";
// The graph of the page: nodes in nested groups, cuts and exits, and what of it is visible.

const GRAPH = DATA.graph;
const LARGE = 250; // nodes: a larger graph starts with folded segments
const NODES = new Map(); // by id: nodes, groups, cuts and exits
const OPEN = new Set(); // the ids of open groups

const KINDS = [ // the first pattern that fits the operation
  ["input", /^(input|output)$/i],
  ["attention", /attention/i],
  ["norm", /norm/i],
  ["layer", /conv|linear|embedding|lstm|gru|rnn|matmul|^mm$|bmm|addmm|einsum|bilinear/i],
  ["activation", /relu|gelu|silu|elu|tanh|sigmoid|softmax|dropout|hardtanh|mish|swish|softplus/i],
  ["shape", /view|reshape|permute|transpose|flatten|cat|getitem|split|chunk|expand|slice|select|contiguous|squeeze|^t$|stack|pad/i],
];

function kindOf(node) {
  const found = KINDS.find(([, pattern]) => pattern.test(node.operation));
  return found ? found[0] : "other";
}

function buildModel() {
  const sizes = new Map();
  const pathOf = (node) => node.scope.map((_, depth) => JSON.stringify([node.segment, ...node.scope.slice(0, depth + 1).map(([call]) => call)]));
  for (const node of GRAPH.nodes) for (const path of pathOf(node)) sizes.set(path, (sizes.get(path) || 0) + 1);
  GRAPH.segments.forEach((segment, k) => {
    NODES.set(`segment ${k}`, { id: `segment ${k}`, type: "segment", label: `segment ${k}`, parent: null, segment: k, children: [], members: [], facts: segment });
  });
  for (const node of GRAPH.nodes) {
    let parent = NODES.get(`segment ${node.segment}`);
    pathOf(node).forEach((path, depth) => {
      if (sizes.get(path) === 1) return; // a module with one node is that node
      if (!NODES.has(path)) {
        const [call, cls] = node.scope[depth];
        NODES.set(path, { id: path, type: "module", label: call, cls, parent: parent.id, segment: node.segment, children: [], members: [] });
        parent.children.push(path);
      }
      parent = NODES.get(path);
    });
    const id = `node ${node.name}`;
    NODES.set(id, { ...node, id, type: "node", label: node.name, parent: parent.id, kind: kindOf(node) });
    parent.children.push(id);
    for (let group = parent; group; group = NODES.get(group.parent)) group.members.push(id);
  }
  GRAPH.cuts.forEach((cut, k) => {
    NODES.set(`cut ${k}`, { ...cut, id: `cut ${k}`, type: "cut", label: `cut ${k}`, index: k, parent: null });
    const label = cut.exit ? `exit ${k}` : `synthesizer ${k}`;
    NODES.set(`exit ${k}`, { id: `exit ${k}`, type: "exit", label, index: k, parent: null, cut });
  });
  for (const group of NODES.values()) if (group.members) group.sums = sumsOf(group);
}

function sumsOf(group) {
  const sums = { flops: 0, backward_flops: 0, keeps: 0, parameters: new Set() };
  for (const id of group.members) {
    const node = NODES.get(id);
    sums.flops += node.flops;
    sums.backward_flops += node.backward_flops;
    sums.keeps += node.keeps;
    node.parameters.forEach((name) => sums.parameters.add(name));
  }
  return { ...sums, parameters: sums.parameters.size };
}

function* ancestors(id) { // outermost last
  for (let box = NODES.get(NODES.get(id).parent); box; box = NODES.get(box.parent)) yield box.id;
}

// The box that stands for a node: the outermost folded group around it, or the node itself.
function shownFor(id) {
  let shown = id;
  for (const group of ancestors(id)) if (!OPEN.has(group)) shown = group;
  return shown;
}

const groups = () => [...NODES.values()].filter((box) => box.members);
const boxText = (box) => `${box.type === "node" ? `${box.operation} ${box.target} ${box.dtype} ${shapeText(box.shape)} ${box.line.join(" ")}` : box.cls || ""} ${box.label}`.toLowerCase();

function visibleBoxes() {
  return [...NODES.values()].filter((box) => [...ancestors(box.id)].every((group) => OPEN.has(group)));
}

// Edges between visible boxes: inside of segments; through each cut that a tensor with gradient crosses; and others.
function visibleEdges() {
  const edges = new Map();
  const add = (source, target, kind) => {
    if (source !== target) edges.set(`${source}\n${target}`, { id: `edge ${source}\n${target}`, source, target, kind });
  };
  const crossing = GRAPH.cuts.map((cut) => new Set(cut.tensors.map((tensor) => tensor.node)));
  for (const node of GRAPH.nodes) {
    for (const name of node.sources) {
      const source = NODES.get(`node ${name}`);
      let from = shownFor(source.id);
      const to = shownFor(`node ${node.name}`);
      const cuts = crossing.map((names, k) => k).filter((k) => k >= source.segment && k < node.segment && crossing[k].has(name));
      for (const k of cuts) { add(from, `cut ${k}`, "cut"); from = `cut ${k}`; }
      add(from, to, cuts.length ? "cut" : source.segment === node.segment ? "flow" : "free");
    }
  }
  crossing.forEach((names, k) => { // also what no node above takes, such as an output
    for (const name of names) add(k && crossing[k - 1].has(name) ? `cut ${k - 1}` : shownFor(`node ${name}`), `cut ${k}`, "cut");
    add(`cut ${k}`, `exit ${k}`, "exit");
  });
  return [...edges.values()];
}
