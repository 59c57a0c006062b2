"use strict";
// Asks the server for its state and pictures, and shows them. All text from the server is set as text.

const STATE_PERIOD_MS = 500;
const RETRY_MS = 1500;
const SAMPLES_KEPT = 300;
const PILLS = {
  ok: "good", live: "good", finished: "", interrupted: "", starting: "warn",
  stalled: "bad", failing: "bad", failed: "bad",
};

class Tiles {
  constructor(list) {
    this.list = list;
    this.values = [];
  }

  // rows: [[label, value, unit], ...], always as many.
  show(rows) {
    if (this.values.length !== rows.length) {
      this.values = rows.map(() => ({ label: document.createElement("dt"), value: document.createElement("dd") }));
      this.list.replaceChildren(...this.values.map(({ label, value }) => {
        const group = document.createElement("div");
        group.append(label, value);
        return group;
      }));
    }
    rows.forEach(([name, number, unit], index) => {
      const { label, value } = this.values[index];
      label.textContent = name;
      const small = document.createElement("small");
      small.textContent = unit;
      value.replaceChildren(String(number), small);
    });
  }
}

class StreamCard {
  constructor(index) {
    this.index = index;
    this.element = document.getElementById("stream-template").content.firstElementChild.cloneNode(true);
    const find = (selector) => this.element.querySelector(selector);
    this.canvas = find("canvas");
    this.overlay = find(".overlay");
    this.name = find("h2");
    this.pill = find(".pill");
    this.events = find(".events");
    this.tiles = new Tiles(find(".tiles"));
    this.rate = new Chart(find(".rate"), { title: "frames per second" });
    this.latency = new Chart(find(".latency"), { title: "latency", unit: "ms", keys: ["p50", "p99"] });
    this.samples = [];
    this.sequence = 0;
    this.state = "";
  }

  show(record, now) {
    append(this.samples, record.samples);
    this.state = record.state;
    this.name.textContent = record.name;
    setPill(this.pill, record.state);
    const dropped = total(record.dropped);
    this.tiles.show([
      ["frames/s", number(record.frames_per_second, 1), ""],
      ["p50", number(record.p50_ms, 0), "ms"],
      ["p99", number(record.p99_ms, 0), "ms"],
      ["frames", compact(record.frames), ""],
      ["dropped", compact(dropped), ""],
    ]);
    this.rate.draw(this.samples, [2], now);
    this.latency.draw(this.samples, [3, 4], now);
    this.events.textContent = [
      listed("dropped", record.dropped), listed("source faults", record.faults), listed("gaps", record.gaps),
    ].filter(Boolean).join(" · ");
    const silent = `${Math.round(record.silent_seconds)} s`;
    const words = {
      starting: "waiting for the first frame", stalled: `no frame for ${silent}`, failed: "this stream failed",
      finished: "the end of the source", interrupted: "stopped", live: this.sequence ? "" : "waiting for a picture",
    };
    this.overlay.textContent = words[record.state];
    this.overlay.hidden = !this.overlay.textContent;
    this.canvas.setAttribute("aria-label", `newest picture of ${record.name}`);
  }

  // One request at a time: a slow connection gets fewer pictures, never old ones.
  async follow() {
    for (;;) {
      if (document.hidden || !this.element.isConnected || ["finished", "failed", "interrupted"].includes(this.state)) {
        await pause(500);
        continue;
      }
      try {
        const answer = await fetch(`picture?source=${this.index}&after=${this.sequence}`);
        if (answer.status === 200) {
          await this.paint(await answer.blob(), Number(answer.headers.get("X-Sequence")));
        } else if (answer.status !== 204) {
          this.sequence = 0;
          await pause(RETRY_MS);
        }
      } catch {
        this.sequence = 0; // perhaps another server by the next time
        await pause(RETRY_MS);
      }
    }
  }

  async paint(blob, sequence) {
    const picture = await createImageBitmap(blob);
    if (this.canvas.width !== picture.width || this.canvas.height !== picture.height) {
      this.canvas.width = picture.width;
      this.canvas.height = picture.height;
    }
    this.canvas.getContext("2d").drawImage(picture, 0, 0);
    picture.close();
    this.sequence = sequence;
  }
}

class Page {
  constructor() {
    this.cards = [];
    this.committee = new CommitteeView(document.getElementById("committee"));
    this.streams = document.getElementById("streams");
    this.status = document.getElementById("status");
    this.notice = document.getElementById("notice");
    this.run = "";
    this.sample = 0;
  }

  async follow() {
    for (;;) {
      if (document.hidden) {
        await pause(STATE_PERIOD_MS);
        continue;
      }
      try {
        const answer = await fetch(`state?after=${this.sample}`);
        if (answer.ok) this.show(await answer.json());
        else this.lost((await answer.text()).trim());
      } catch {
        this.lost("The program does not answer. It has ended, or the connection is lost; still trying.");
      }
      await pause(STATE_PERIOD_MS);
    }
  }

  lost(sentence) {
    this.notice.hidden = false;
    this.notice.textContent = sentence;
    setPill(this.status, "no connection", "bad");
  }

  show(record) {
    if (this.run && this.run !== record.run) { // another run of the program: its samples begin anew
      location.reload();
      return;
    }
    this.run = record.run;
    this.sample = record.sample;
    this.notice.hidden = record.sources.length > 0;
    this.notice.textContent = "No stream yet: the model is being loaded.";
    setPill(this.status, record.status);
    document.getElementById("uptime").textContent = `up ${duration(record.seconds)}`;
    while (this.cards.length < record.sources.length) {
      const card = new StreamCard(this.cards.length);
      this.cards.push(card);
      this.streams.append(card.element);
      card.follow();
    }
    this.streams.classList.toggle("single", this.cards.length === 1);
    record.sources.forEach((source, index) => this.cards[index].show(source, record.seconds));
    this.committee.show(record.committee, record.seconds);
  }
}

function append(kept, added) {
  kept.push(...added);
  kept.splice(0, Math.max(0, kept.length - SAMPLES_KEPT));
}

function setPill(pill, text, kind = PILLS[text] || "") {
  pill.textContent = text;
  pill.className = `pill ${kind}`;
}

function listed(name, counts) {
  const parts = Object.entries(counts).map(([cause, count]) => `${count} ${cause.replaceAll("_", " ")}`);
  return parts.length ? `${name}: ${parts.join(", ")}` : "";
}

function total(counts) {
  return Object.values(counts).reduce((sum, count) => sum + count, 0);
}

function number(value, digits) {
  if (value === null || value === undefined) return "-";
  return value.toFixed(value < 10 && digits === 0 ? 1 : digits);
}

function compact(value) {
  return value < 10000 ? String(value) : new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 2 }).format(value);
}

function bytes(value) {
  let unit = 0;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return [value.toFixed(unit && value < 100 ? 1 : 0), units[unit]];
}

function duration(seconds) {
  const whole = Math.floor(seconds), minutes = Math.floor(whole / 60), hours = Math.floor(minutes / 60);
  if (hours) return `${hours} h ${minutes % 60} min`;
  return minutes ? `${minutes} min ${whole % 60} s` : `${whole} s`;
}

function pause(milliseconds) {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}

new Page().follow();
