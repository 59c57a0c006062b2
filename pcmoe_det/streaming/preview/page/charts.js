"use strict";
// Curves over the last minutes, drawn as SVG: sharp on any screen, and coloured by the style sheet.

const SVG = "http://www.w3.org/2000/svg";
const CHART = { width: 300, height: 84, left: 30, right: 4, top: 6, bottom: 14, seconds: 300 };

class Chart {
  // figure: where to draw. title: text above. keys: names of the curves, at most two. unit: behind the top value.
  constructor(figure, { title, keys = [], unit = "", top = null, format = axisNumber }) {
    this.fixedTop = top;
    this.format = format;
    const caption = document.createElement("figcaption");
    caption.append(span(unit ? `${title}, ${unit}` : title));
    if (keys.length) {
      const names = span("");
      keys.forEach((key, index) => names.append(span(key, index ? "key second" : "key")));
      caption.append(names);
    }
    this.svg = svg("svg", { viewBox: `0 0 ${CHART.width} ${CHART.height}`, preserveAspectRatio: "none", role: "img" });
    this.title = title;
    const base = CHART.height - CHART.bottom;
    this.svg.append(
      svg("line", { class: "axis", x1: CHART.left, x2: CHART.width - CHART.right, y1: base, y2: base }),
      svg("line", { class: "axis", x1: CHART.left, x2: CHART.width - CHART.right, y1: CHART.top, y2: CHART.top }),
    );
    this.topLabel = svg("text", { x: CHART.left - 4, y: CHART.top + 4, "text-anchor": "end" });
    this.baseLabel = svg("text", { x: CHART.left - 4, y: base + 3, "text-anchor": "end" });
    this.startLabel = svg("text", { x: CHART.left, y: CHART.height - 2 });
    this.endLabel = svg("text", { x: CHART.width - CHART.right, y: CHART.height - 2, "text-anchor": "end" });
    this.baseLabel.textContent = "0";
    this.endLabel.textContent = "now";
    this.area = svg("path", { class: "area" });
    this.curves = [0, 1].map((index) => svg("path", { class: index ? "curve second" : "curve" }));
    this.svg.append(this.topLabel, this.baseLabel, this.startLabel, this.endLabel, this.area, ...this.curves);
    figure.replaceChildren(caption, this.svg);
  }

  // samples: [[number, seconds, value, value], ...]; columns: which values; now: seconds of the right edge.
  draw(samples, columns, now) {
    // As wide as it is drawn, so that letters keep their shape.
    const width = Math.max(120, Math.round(this.svg.clientWidth || CHART.width));
    this.svg.setAttribute("viewBox", `0 0 ${width} ${CHART.height}`);
    const right = width - CHART.right;
    for (const line of this.svg.querySelectorAll("line")) line.setAttribute("x2", right);
    this.endLabel.setAttribute("x", right);
    const span = Math.min(CHART.seconds, Math.max(30, now - (samples.length ? samples[0][1] : now)));
    const largest = Math.max(0, ...samples.flatMap((row) => columns.map((column) => row[column] ?? 0)));
    const top = this.fixedTop ?? niceTop(largest);
    this.topLabel.textContent = this.format(top);
    this.startLabel.textContent = span >= 120 ? `-${Math.round(span / 60)} min` : `-${Math.round(span)} s`;
    const base = CHART.height - CHART.bottom;
    const x = (seconds) => right - ((now - seconds) / span) * (right - CHART.left);
    const y = (value) => base - (Math.min(value, top) / top) * (base - CHART.top);
    const visible = samples.filter((row) => now - row[1] <= span);
    columns.forEach((column, index) => this.curves[index].setAttribute("d", path(visible, column, x, y)));
    this.area.setAttribute("d", columns.length === 1 ? filled(visible, columns[0], x, y, base) : "");
    const last = samples.length ? samples[samples.length - 1][columns[0]] : null;
    this.svg.setAttribute("aria-label", `${this.title}: ${last === null ? "none" : last}`);
  }
}

// Pieces between missing values.
function pieces(samples, column) {
  const found = [[]];
  for (const row of samples) {
    if (row[column] === null || row[column] === undefined) found.push([]);
    else found[found.length - 1].push(row);
  }
  return found.filter((piece) => piece.length);
}

function path(samples, column, x, y) {
  return pieces(samples, column)
    .map((piece) => "M" + piece.map((row) => `${x(row[1]).toFixed(1)},${y(row[column]).toFixed(1)}`).join("L"))
    .join("");
}

function filled(samples, column, x, y, base) {
  return pieces(samples, column)
    .map((piece) => {
      const points = piece.map((row) => `${x(row[1]).toFixed(1)},${y(row[column]).toFixed(1)}`).join("L");
      return `M${x(piece[0][1]).toFixed(1)},${base}L${points}L${x(piece[piece.length - 1][1]).toFixed(1)},${base}Z`;
    })
    .join("");
}

// 1, 2 or 5 times a power of ten, not below the value.
function niceTop(value) {
  if (value <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  for (const step of [1, 2, 5, 10]) if (value <= step * power) return step * power;
  return 10 * power;
}

function axisNumber(value) {
  return value >= 10000 ? `${Math.round(value / 1000)}k` : String(value);
}

function svg(name, attributes) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

function span(text, className = "") {
  const element = document.createElement("span");
  element.textContent = text;
  if (className) element.className = className;
  return element;
}
