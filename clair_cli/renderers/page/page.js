"use strict";
(() => {
  const root = document.documentElement;
  const one = (id) => document.getElementById(id);
  root.classList.add("js");

  // --- cards: find, filter, sort

  const holder = one("cards");
  const cards = [...holder.children].map((card) => {
    const [rank, score, stability] = card.dataset.order.split(" ").map(Number);
    const name = card.querySelector(".who").textContent;
    return { card, rank, score, stability, name };
  });
  const textOf = (c) => (c.text ??= c.card.textContent.toLowerCase()); // at the first search, not at load
  const compare = new Intl.Collator(undefined, { numeric: true }).compare;
  const orders = {
    verdict: (a, b) => a.rank - b.rank || b.score - a.score,
    score: (a, b) => b.score - a.score,
    stability: (a, b) => a.stability - b.stability,
    name: (a, b) => compare(a.name, b.name),
  };
  const find = one("find");
  const sort = one("sort");
  const boxes = [...document.querySelectorAll("input[name=verdict]")];

  const filter = () => {
    const wanted = find.value.trim().toLowerCase();
    const kinds = new Set(boxes.filter((b) => b.checked).map((b) => b.value));
    let shown = 0;
    for (const c of cards) {
      const fits = kinds.has(c.card.dataset.verdict) && (!wanted || textOf(c).includes(wanted));
      c.card.classList.toggle("hidden", !fits);
      shown += fits;
    }
    one("shown").textContent = `${shown} of ${cards.length} clients`;
  };
  find.form.addEventListener("submit", (event) => event.preventDefault());
  find.addEventListener("input", filter);
  for (const box of boxes) box.addEventListener("change", filter);
  sort.addEventListener("change", () => {
    holder.append(...cards.slice().sort(orders[sort.value]).map((c) => c.card));
  });

  const open = () => {
    const card = location.hash.startsWith("#client-") && one(location.hash.slice(1));
    if (!card) return;
    card.classList.remove("hidden");
    card.open = true;
    card.querySelector("summary").focus();
    card.scrollIntoView({ block: "center" });
  };
  addEventListener("hashchange", open);

  let closed = [];
  addEventListener("beforeprint", () => {
    closed = cards.map((c) => c.card).filter((c) => !c.open && c.dataset.verdict !== "benign");
    for (const card of closed) card.open = true;
  });
  addEventListener("afterprint", () => {
    for (const card of closed) card.open = false;
  });

  // --- tables whose columns sort

  const value = (row, column) => {
    const text = row.cells[column].textContent.trim();
    const number = parseFloat(text);
    return column && !Number.isNaN(number) ? number : text;
  };
  const sortTable = (table, column, head) => {
    const down = head.getAttribute("aria-sort") !== "descending";
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const rows = [...table.tBodies[0].rows];
    rows.sort((a, b) => {
      const x = value(a, column);
      const y = value(b, column);
      const way = typeof x === "number" && typeof y === "number" ? x - y : compare(x, y);
      return down ? -way : way;
    });
    table.tBodies[0].append(...rows);
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      head.replaceChildren(button);
      button.addEventListener("click", () => sortTable(table, column, head));
    });
  }

  // --- grids: the levels are read from the picture, so that the page holds them once

  const told = JSON.parse(one("told").textContent);

  const chunks = (bytes) => {
    const view = new DataView(bytes.buffer);
    const found = {};
    for (let at = 8; at < bytes.length; ) {
      const size = view.getUint32(at);
      const kind = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
      found[kind] = bytes.subarray(at + 8, at + 8 + size);
      at += size + 12;
    }
    return found;
  };
  const bytes = (base64) => {
    const text = atob(base64);
    const found = new Uint8Array(text.length);
    for (let k = 0; k < text.length; k++) found[k] = text.charCodeAt(k);
    return found;
  };
  const inflate = async (data) => {
    const stream = new Blob([data]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  };
  const read = async (img) => {
    const found = chunks(bytes(img.getAttribute("src").split(",")[1]));
    const header = new DataView(found.IHDR.buffer, found.IHDR.byteOffset);
    const width = header.getUint32(0);
    const height = header.getUint32(4);
    const data = await inflate(found.IDAT);
    const levels = new Uint8Array(width * height);
    for (let y = 0; y < height; y++) {
      const from = y * (width + 1) + 1;
      levels.set(data.subarray(from, from + width), y * width);
    }
    return { width, height, levels, colours: found.PLTE, opacity: found.tRNS };
  };
  const paint = ({ width, height, levels, colours, opacity }) => {
    const canvas = document.createElement("canvas");
    canvas.width = width;
    canvas.height = height;
    const context = canvas.getContext("2d");
    const image = context.createImageData(width, height);
    const dots = new Uint32Array(image.data.buffer);
    const palette = new Uint8Array(4 * opacity.length);
    opacity.forEach((o, k) => palette.set([...colours.subarray(3 * k, 3 * k + 3), o], 4 * k));
    const words = new Uint32Array(palette.buffer);
    levels.forEach((level, k) => (dots[k] = words[level]));
    context.putImageData(image, 0, 0);
    return canvas;
  };

  const grid = async (holder) => {
    const img = holder.querySelector("img");
    const key = holder.dataset.grid;
    const { names, columns, values } = told[key];
    const table = await read(img);
    const { width, height, levels } = table;
    const canvas = paint(table);
    const here = document.createElement("div");
    const readout = document.querySelector(`[data-readout=${key}]`);
    let at = [0, 0];
    here.className = "here hidden";
    canvas.style.height = `${img.getAttribute("height")}px`; // img.height would lay the page out
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `${img.alt}. Arrow keys move from cell to cell.`);
    img.replaceWith(canvas);
    holder.append(here);

    const show = (x, y) => {
      at = [Math.min(Math.max(x, 0), width - 1), Math.min(Math.max(y, 0), height - 1)];
      const said = values[levels[at[1] * width + at[0]]];
      readout.textContent = `${names[at[1]]} \u00b7 ${(columns || names)[at[0]]} \u00b7 ${said}`;
      here.classList.remove("hidden");
      here.style.left = `${(100 * at[0]) / width}%`;
      here.style.top = `${(100 * at[1]) / height}%`;
      here.style.width = `max(${100 / width}%, 6px)`;
      here.style.height = `max(${100 / height}%, 6px)`;
    };
    canvas.addEventListener("pointermove", (event) => {
      const box = canvas.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width) * width;
      const y = ((event.clientY - box.top) / box.height) * height;
      show(Math.floor(x), Math.floor(y));
    });
    canvas.addEventListener("keydown", (event) => {
      const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
      const step = steps[event.key];
      if (!step) return;
      event.preventDefault();
      show(at[0] + step[0], at[1] + step[1]);
    });
    canvas.addEventListener("focus", () => show(...at));
    canvas.addEventListener("blur", () => here.classList.add("hidden"));
  };

  // --- the report as a file

  const report = async () => {
    const found = JSON.parse(one("report").textContent);
    const packed = typeof found === "string"; // a large one is deflated
    return packed ? JSON.parse(new TextDecoder().decode(await inflate(bytes(found)))) : found;
  };
  one("download").addEventListener("click", async () => {
    const text = JSON.stringify(await report(), null, 1);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text, "\n"], { type: "application/json" }));
    link.download = "report.json";
    link.click();
    URL.revokeObjectURL(link.href);
  });

  open();
  const grids = [...document.querySelectorAll("[data-grid]")].map((g) => grid(g).catch(() => {}));
  Promise.all(grids).then(() => {
    root.classList.add("ready");
    performance.mark("ready");
  });
})();
