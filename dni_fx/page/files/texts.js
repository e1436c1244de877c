"use strict";
// The data of the page, and numbers and elements as people read them.

const DATA = JSON.parse(document.getElementById("data").textContent);

function quantity(value, unit, base = 1000) {
  const prefixes = base === 1024 ? ["", "Ki", "Mi", "Gi", "Ti"] : ["", "k", "M", "G", "T", "P"];
  if (unit === "s") return value >= 1 ? `${value.toPrecision(3)} s` : `${(value * 1e3).toPrecision(3)} ms`;
  let k = 0;
  while (Math.abs(value) >= base && k < prefixes.length - 1) { value /= base; k += 1; }
  const digits = Number.isInteger(value) && k === 0 ? String(value) : value.toPrecision(Math.abs(value) >= 1000 ? 4 : 3);
  return `${digits} ${prefixes[k]}${unit}`.trim();
}
const bytesText = (value) => quantity(value, "B", 1024);
const shapeText = (shape) => (shape === null ? "" : shape.length ? shape.join("×") : "scalar");
const count = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;

// An element with a class and children; texts are never read as HTML.
function element(tag, kind, ...children) {
  const made = document.createElement(tag);
  if (kind) made.className = kind;
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}
