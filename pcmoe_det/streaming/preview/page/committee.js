"use strict";
// The grid of experts: one row a layer, one cell an expert.

const CHANGED_MS = 1500; // a swap is over sooner than it is seen

class CommitteeView {
  constructor(section) {
    this.section = section;
    this.grid = section.querySelector("#grid");
    this.tiles = new Tiles(section.querySelector("#committee-tiles"));
    this.chart = new Chart(section.querySelector("#hit-chart"), {
      title: "tokens that found their expert", top: 1, format: (value) => `${100 * value} %`,
    });
    this.shape = "";
    this.rows = [];
    this.samples = [];
  }

  clear() {
    this.samples = [];
    this.shape = "";
  }

  show(record, now) {
    this.section.hidden = record === null;
    if (record === null) return;
    append(this.samples, record.samples);
    const last = this.samples.length ? this.samples[this.samples.length - 1] : null;
    this.section.querySelector("#policy").textContent =
      `${record.policy}${record.on_miss ? `, on a miss: ${record.on_miss.replaceAll(",", ", ")}` : ""}`;
    this.tiles.show([
      ["hit rate, last 5 s", last && last[2] !== null ? (100 * last[2]).toFixed(1) : "-", "%"],
      ["hits", compact(record.hit_tokens), "tokens"],
      ["misses", compact(record.miss_tokens), "tokens"],
      ["swaps", compact(record.swaps), ""],
      ["read", ...bytes(record.bytes_read)],
    ]);
    this.showMemory(record);
    this.chart.draw(this.samples, [2], now);
    this.showGrid(record.layers);
  }

  showMemory(record) {
    const text = (value) => bytes(value).join(" ");
    const scale = Math.max(record.expert_bytes, record.budget_bytes, record.resident_bytes, 1);
    this.section.querySelector("#memory-text").textContent =
      `${text(record.resident_bytes)} of ${text(record.budget_bytes)} budget`;
    this.section.querySelector("#memory-total").textContent = `all experts ${text(record.expert_bytes)}`;
    this.section.querySelector("#memory-resident").style.width = `${(100 * record.resident_bytes) / scale}%`;
    this.section.querySelector("#memory-budget").style.left = `${(100 * record.budget_bytes) / scale}%`;
  }

  showGrid(layers) {
    const shape = layers.map((layer) => `${layer.name}:${layer.num_experts}`).join("|");
    if (shape !== this.shape) this.build(layers);
    this.shape = shape;
    const time = performance.now();
    layers.forEach((layer, index) => {
      const row = this.rows[index];
      const resident = new Set(layer.resident), used = new Set(layer.used || []), incoming = new Set(layer.incoming);
      row.cells.forEach((cell, expert) => {
        const isResident = resident.has(expert);
        if (row.resident[expert] !== undefined && row.resident[expert] !== isResident) row.changedAt[expert] = time;
        row.resident[expert] = isResident;
        const changed = time - (row.changedAt[expert] ?? -Infinity) < CHANGED_MS;
        const words = [
          isResident && "resident", used.has(expert) && "used", incoming.has(expert) && "incoming", changed && "changed",
        ].filter(Boolean);
        cell.className = ["cell", ...words].join(" ");
        cell.title = `expert ${expert}: ${describe(isResident, used.has(expert), incoming.has(expert))}`;
      });
      const tokens = layer.hit_tokens + layer.miss_tokens;
      const rate = tokens ? `${((100 * layer.hit_tokens) / tokens).toFixed(1)} % hits` : "no tokens yet";
      row.numbers.textContent = `${resident.size} of ${layer.num_experts} · ${rate}`;
      row.strip.setAttribute("aria-label", `${row.name}: ${resident.size} of ${layer.num_experts} experts resident`);
    });
  }

  build(layers) {
    this.rows = layers.map((layer) => {
      const strip = document.createElement("div");
      strip.className = "cells";
      strip.setAttribute("role", "img");
      const cells = Array.from({ length: layer.num_experts }, () => document.createElement("i"));
      strip.append(...cells);
      return {
        name: layerName(layer.name), strip, cells, numbers: span("", "layer-numbers"),
        resident: [], changedAt: [],
      };
    });
    const narrow = window.matchMedia("(max-width: 640px)");
    const place = () =>
      this.grid.replaceChildren(
        ...this.rows.flatMap((row) =>
          narrow.matches ? [span(row.name), row.numbers, row.strip] : [span(row.name), row.strip, row.numbers]),
      );
    narrow.onchange = place;
    place();
  }
}

function describe(resident, used, incoming) {
  if (incoming) return "being swapped in";
  if (resident) return used ? "resident, used in the last frame" : "resident";
  return used ? "wanted by the last frame, not resident" : "not resident";
}

// Detectors name them backbone.stages.2.blocks.1.mlp.
function layerName(path) {
  const match = /stages\.(\d+)\.blocks\.(\d+)/.exec(path);
  return match ? `stage ${Number(match[1]) + 1}, block ${match[2]}` : path;
}
