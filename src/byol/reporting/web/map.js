"use strict";
/* A map of images: canvas, hover, zoom, lasso, keyboard. `data` gives
     count, name(row), columns [{name, classes, values}], thumb(row, size) -> element,
     near(row) -> Promise of [{row, similarity}], layouts Map of title -> Uint16Array of x, y; 65535, 65535: nowhere.
   Names of files only ever become text nodes. */
function createMap(root, data) {
  const NOWHERE = 65535, CELLS = 64, REACH_PX = 14, MOST_LISTED = 300, MOST_ROUND = 12000, MOST_COLOURS = 12;
  const state = { layout: null, column: null, focus: -1, mode: "lasso", scale: 1, x: 0, y: 0, hover: -1, pinned: -1,
    chosen: new Set(), lasso: [] };

  function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) {
      if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
      else if (value !== null && value !== false) element.setAttribute(key, value === true ? "" : value);
    }
    element.append(...children);
    return element;
  }
  const printable = (text) => /[\u0000-\u001f\u007f-\u009f\u2028-\u202e\u2066-\u2069\ud800-\udfff]/u.test(text)
    ? JSON.stringify(text) : text;
  const label = (row) => printable(data.name(row));
  const plural = (number) => `${number.toLocaleString("en")} image${number === 1 ? "" : "s"}`;

  // ---- elements

  const layoutButtons = make("span", { role: "group", "aria-label": "map" });
  const columnChoice = make("select", { "aria-label": "colour by", onchange: () => colourBy(columnChoice.value) });
  const lassoButton = make("button", { type: "button", onclick: () => setMode("lasso") }, "Lasso");
  const moveButton = make("button", { type: "button", onclick: () => setMode("move") }, "Move");
  const zoomButton = (text, name, action) => make("button", { type: "button", "aria-label": name, onclick: action }, text);
  const find = make("input", { type: "search", placeholder: "name contains …", "aria-label": "select by name", size: 16,
    onkeydown: (event) => { if (event.key === "Enter") findNames(find.value); } });
  const canvas = make("canvas", { class: "plane", tabindex: "0", role: "application",
    "aria-label": `Map of ${plural(data.count)}. Arrow keys go from image to image, Enter selects one, ` +
      "plus and minus zoom, Escape clears." });
  const tip = make("div", { class: "tip", hidden: true });
  const spoken = make("div", { class: "visually-hidden", "aria-live": "polite" });
  const panel = make("div", { class: "panel" });
  const legend = make("div", { class: "legend", role: "group", "aria-label": "classes" });
  const chosenTitle = make("strong");
  const copyButton = make("button", { type: "button", onclick: copyNames }, "Copy names");
  const saveButton = make("button", { type: "button", onclick: saveNames }, "Download CSV");
  const clearButton = make("button", { type: "button", onclick: clear }, "Clear");
  const names = make("ul", { class: "names", "aria-label": "selected images" });
  const chosenPart = make("div", { class: "chosen" },
    make("div", { class: "bar-row" }, chosenTitle, copyButton, saveButton, clearButton), names);
  root.classList.add("map");
  root.replaceChildren(
    make("div", { class: "bar-row" }, layoutButtons, make("span", {}, "colour by ", columnChoice),
      make("span", { role: "group", "aria-label": "what dragging does" }, lassoButton, moveButton),
      make("span", {}, zoomButton("−", "zoom out", () => zoom(1 / 1.5)), zoomButton("+", "zoom in", () => zoom(1.5)),
        zoomButton("Whole", "show everything", showAll)), make("span", {}, find)),
    canvas, panel, legend, chosenPart, tip, spoken);
  const context = canvas.getContext("2d");

  // ---- colours

  function css(name) { return getComputedStyle(document.documentElement).getPropertyValue(name).trim(); }

  function prepareColumn(column) {  // ranks: colour index of each class, or -1: no colour of its own
    if (column.ranks) return column;
    const counts = new Array(column.classes.length).fill(0);
    for (const value of column.values) if (value >= 0) counts[value] += 1;
    const numbers = column.classes.map(Number);
    column.isNumber = column.classes.length > MOST_COLOURS && numbers.every(Number.isFinite);
    column.numbers = numbers;
    column.low = numbers.reduce((a, b) => Math.min(a, b), Infinity);
    column.high = numbers.reduce((a, b) => Math.max(a, b), -Infinity);
    const order = counts.map((_, at) => at).sort((a, b) => counts[b] - counts[a]);
    const most = column.classes.length <= MOST_COLOURS ? MOST_COLOURS : MOST_COLOURS - 1;
    const kept = order.slice(0, most).sort((a, b) => a - b);
    column.ranks = new Int32Array(column.classes.length).fill(-1);
    kept.forEach((at, rank) => { column.ranks[at] = rank; });
    column.counts = counts;
    column.order = column.classes.length <= MOST_COLOURS ? kept : order.slice(0, MOST_LISTED);
    return column;
  }

  function ramp(share) {  // from the page's first colour to its second, through both
    const stops = [[68, 60, 140], [45, 125, 160], [60, 175, 115], [230, 190, 50]];
    const place = Math.min(0.9999, Math.max(0, share)) * (stops.length - 1), at = Math.floor(place), part = place - at;
    return `rgb(${stops[at].map((value, i) => Math.round(value + part * (stops[at + 1][i] - value))).join(",")})`;
  }

  function group() {  // rows by colour, in the order they are drawn: quiet ones first
    const column = state.column, groups = new Map();
    const push = (colour, row) => { const rows = groups.get(colour); if (rows) rows.push(row); else groups.set(colour, [row]); };
    const quiet = css("--point"), main = css("--main");
    groups.set(quiet, []);
    const palette = Array.from({ length: MOST_COLOURS }, (_, at) => css(`--c${at}`));
    for (let row = 0; row < data.count; row++) {
      const value = column ? column.values[row] : -1;
      if (!column) push(main, row);
      else if (value < 0) push(quiet, row);
      else if (state.focus >= 0) push(value === state.focus ? main : quiet, row);
      else if (column.isNumber) push(ramp(Math.round(24 * (column.numbers[value] - column.low) / (column.high - column.low)) / 24), row);
      else push(column.ranks[value] < 0 ? quiet : palette[column.ranks[value]], row);
    }
    state.groups = groups;
  }

  function showLegend() {
    const column = state.column;
    legend.replaceChildren();
    if (!column) return;
    if (column.isNumber) {
      const steps = Array.from({ length: 9 }, (_, at) => ramp(at / 8)).join(",");
      const bar = make("span", { class: "ramp" });
      bar.style.background = `linear-gradient(to right, ${steps})`;
      legend.append(String(column.low), bar, String(column.high));
      return;
    }
    for (const at of column.order) {
      const dot = make("span", { class: "dot" });
      dot.style.background = column.ranks[at] < 0 ? css("--point") : css(`--c${column.ranks[at]}`);
      const name = printable(column.classes[at]) || "(none)";
      legend.append(make("button", { type: "button", "aria-pressed": String(state.focus === at),
        onclick: () => { state.focus = state.focus === at ? -1 : at; group(); showLegend(); draw(); } },
        dot, `${name} ${column.counts[at].toLocaleString("en")}`));
    }
  }

  // ---- places

  function size() { return { width: canvas.clientWidth, height: canvas.clientHeight }; }

  function view() {  // from places to the screen: x * unit + left, top - y * unit; asked once a sweep, it costs
    const { width, height } = size(), unit = state.scale * Math.min(width, height) * 0.94 / 65000;
    return { unit, left: width / 2 + state.x - 32500 * unit, top: height / 2 + state.y + 32500 * unit, width, height };
  }
  function screenOf(row, { unit, left, top } = view()) {
    return [left + unit * state.layout[2 * row], top - unit * state.layout[2 * row + 1]];
  }
  const isPlaced = (row) => state.layout[2 * row] !== NOWHERE || state.layout[2 * row + 1] !== NOWHERE;

  function buildCells() {  // which rows lie in each of CELLS x CELLS cells: for the nearest to the pointer
    const cells = Array.from({ length: CELLS * CELLS }, () => []);
    for (let row = 0; row < data.count; row++)
      if (isPlaced(row)) cells[(state.layout[2 * row] >> 10) + CELLS * (state.layout[2 * row + 1] >> 10)].push(row);
    state.cells = cells;
  }

  function nearestTo(px, py) {
    const { unit, left, top } = view(), x = (px - left) / unit, y = (top - py) / unit;
    const reach = REACH_PX / unit, clamp = (value) => Math.min(CELLS - 1, Math.max(0, value >> 10));
    let best = -1, least = reach * reach;
    for (let i = clamp(x - reach); i <= clamp(x + reach); i++) for (let j = clamp(y - reach); j <= clamp(y + reach); j++)
      for (const row of state.cells[i + CELLS * j]) {
        const dx = state.layout[2 * row] - x, dy = state.layout[2 * row + 1] - y, far = dx * dx + dy * dy;
        if (far <= least) { least = far; best = row; }
      }
    return best;
  }

  // ---- drawing

  let waiting = false;
  function draw() { if (!waiting) { waiting = true; requestAnimationFrame(() => { waiting = false; paint(); }); } }

  function paint() {
    if (!state.layout) return;
    const now = view(), { width, height, unit, left, top } = now, ratio = window.devicePixelRatio || 1;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio); canvas.height = Math.round(height * ratio);
    }
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    const crowd = data.count > 30000 ? 1 : data.count > 4000 ? 1.7 : data.count > 800 ? 2.4 : 3.6;
    const radius = Math.min(6, crowd * Math.sqrt(Math.max(1, state.scale)) ** 0.6), isRound = data.count <= MOST_ROUND;
    const some = state.chosen.size > 0, quiet = css("--point");
    const dots = (rows, isWanted) => {
      for (const row of rows) {
        if (!isWanted(row) || !isPlaced(row)) continue;
        const x = left + unit * state.layout[2 * row], y = top - unit * state.layout[2 * row + 1];
        if (x < -6 || y < -6 || x > width + 6 || y > height + 6) continue;
        if (isRound) { context.beginPath(); context.arc(x, y, radius, 0, 6.2832); context.fill(); }
        else context.fillRect(x - radius, y - radius, 2 * radius, 2 * radius);
      }
    };
    for (const [colour, rows] of state.groups) {
      context.fillStyle = colour;
      context.globalAlpha = some ? 0.18 : colour === quiet && state.focus >= 0 ? 0.45 : 0.8;
      dots(rows, some ? (row) => !state.chosen.has(row) : () => true);
    }
    if (some) for (const [colour, rows] of state.groups) {
      context.fillStyle = colour; context.globalAlpha = 1; dots(rows, (row) => state.chosen.has(row));
    }
    context.globalAlpha = 1;
    context.strokeStyle = css("--text");
    for (const [row, thick] of [[state.pinned, 2.2], [state.hover, 1.4]]) {
      if (row < 0 || !isPlaced(row)) continue;
      context.lineWidth = thick; context.beginPath();
      context.arc(...screenOf(row, now), radius + 3.5, 0, 6.2832); context.stroke();
    }
    if (state.lasso.length > 1) {
      context.lineWidth = 1.4; context.setLineDash([4, 3]); context.beginPath();
      state.lasso.forEach(([x, y], at) => at ? context.lineTo(x, y) : context.moveTo(x, y));
      context.stroke(); context.setLineDash([]);
    }
  }

  // ---- what the person does

  function setMode(mode) {
    state.mode = mode;
    lassoButton.setAttribute("aria-pressed", String(mode === "lasso"));
    moveButton.setAttribute("aria-pressed", String(mode === "move"));
    canvas.classList.toggle("moving", mode === "move");
  }

  function zoom(factor, px, py) {
    const { width, height } = size(), scale = Math.min(200, Math.max(0.5, state.scale * factor)), by = scale / state.scale;
    const cx = (px ?? width / 2) - width / 2, cy = (py ?? height / 2) - height / 2;
    state.x = cx - by * (cx - state.x); state.y = cy - by * (cy - state.y); state.scale = scale;
    draw();
  }
  function showAll() { state.scale = 1; state.x = 0; state.y = 0; draw(); }

  function describe(row) {
    return state.column && state.column.values[row] >= 0
      ? `${label(row)}, ${printable(state.column.classes[state.column.values[row]])}` : label(row);
  }

  function setHover(row, px, py) {
    if (row !== state.hover) { state.hover = row; draw(); }
    tip.hidden = row < 0;
    if (row < 0) return;
    if (tip.dataset.row !== String(row)) {
      tip.dataset.row = row;
      tip.replaceChildren(data.thumb(row, 128), make("div", { class: "tip-name" }, label(row)), ...columnLines(row));
    }
    const box = canvas.getBoundingClientRect(), wide = tip.offsetWidth, high = tip.offsetHeight;
    const left = box.left + px + 16, top = box.top + py + 16;
    tip.style.left = `${Math.max(4, left + wide > innerWidth ? left - wide - 32 : left)}px`;
    tip.style.top = `${Math.max(4, top + high > innerHeight ? top - high - 32 : top)}px`;
  }

  function columnLines(row) {
    return data.columns.filter((column) => column.values[row] >= 0).slice(0, 6).map((column) =>
      make("div", {}, make("span", { class: "quiet" }, `${printable(column.name)} `),
        printable(column.classes[column.values[row]])));
  }

  async function pin(row) {
    state.pinned = row;
    draw();
    if (row < 0) { panel.replaceChildren(make("p", { class: "quiet" }, data.hint)); return; }
    const near = make("div", { class: "near", "aria-label": "most similar" });
    panel.replaceChildren(make("h3", {}, label(row)), data.thumb(row, 160), ...columnLines(row),
      make("h3", { style: "margin-top:.8rem" }, "Most similar"), near);
    const found = await data.near(row);
    if (state.pinned === row) near.replaceChildren(...found.map(tile));
  }

  function tile(one) {
    const words = `${label(one.row)}, similarity ${one.similarity.toFixed(2)}`;
    return make("button", { type: "button", title: words, "aria-label": words, onclick: () => goTo(one.row) }, data.thumb(one.row, 62));
  }

  function goTo(row) {
    if (isPlaced(row)) {
      const [x, y] = screenOf(row), { width, height } = size();
      if (x < 20 || y < 20 || x > width - 20 || y > height - 20) { state.x += width / 2 - x; state.y += height / 2 - y; }
    }
    spoken.textContent = describe(row);
    pin(row);
  }

  function choose(rows, keep) {
    if (!keep) state.chosen.clear();
    for (const row of rows) state.chosen.add(row);
    showChosen();
  }

  function showChosen() {
    const rows = [...state.chosen].sort((a, b) => a - b), some = rows.length > 0;
    chosenTitle.textContent = some ? `${plural(rows.length)} selected` : "";
    chosenPart.hidden = !some;
    names.replaceChildren(...rows.slice(0, MOST_LISTED).map((row) => make("li", {},
      make("button", { type: "button", onclick: () => goTo(row) }, data.thumb(row, 28), make("span", {}, label(row))))));
    if (rows.length > MOST_LISTED) names.append(make("li", { class: "quiet" },
      `and ${plural(rows.length - MOST_LISTED)} more, all in the CSV`));
    spoken.textContent = some ? `${plural(rows.length)} selected` : "nothing selected";
    draw();
  }

  function clear() { state.lasso = []; state.focus = -1; find.value = ""; setHover(-1); pin(-1); group(); showLegend(); choose([], false); }

  function findNames(text) {
    const wanted = text.toLowerCase(), rows = [];
    if (wanted) for (let row = 0; row < data.count; row++) if (data.name(row).toLowerCase().includes(wanted)) rows.push(row);
    choose(rows, false);
  }

  function selectedNames() { return [...state.chosen].sort((a, b) => a - b).map((row) => data.name(row)); }

  async function copyNames() {
    const text = selectedNames().join("\n");
    try { await navigator.clipboard.writeText(text); } catch {  // pages from disk may not have the clipboard
      const area = make("textarea", { class: "visually-hidden" }); area.value = text; document.body.append(area);
      area.select(); document.execCommand("copy"); area.remove();
    }
    copyButton.textContent = "Copied"; setTimeout(() => { copyButton.textContent = "Copy names"; }, 1500);
  }

  function toCsv() {
    const quote = (text) => /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
    const head = ["file", ...data.columns.map((column) => column.name)];
    const line = (row) => [data.name(row), ...data.columns.map((column) => column.values[row] < 0 ? "" : column.classes[column.values[row]])];
    return [head, ...[...state.chosen].sort((a, b) => a - b).map(line)].map((cells) => cells.map(quote).join(",")).join("\n") + "\n";
  }

  function saveNames() {
    const url = URL.createObjectURL(new Blob([toCsv()], { type: "text/csv" }));
    make("a", { href: url, download: "selected.csv" }).click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
  }

  function colourBy(name) {
    const column = data.columns.find((one) => one.name === name);
    state.column = column ? prepareColumn(column) : null; state.focus = -1;
    columnChoice.value = column ? name : "";
    group(); showLegend(); draw();
  }

  function showLayout(title) {
    state.layout = data.layouts.get(title);
    for (const button of layoutButtons.children) button.setAttribute("aria-pressed", String(button.dataset.title === title));
    buildCells(); showAll();
  }

  function addLayout(title, places) {
    data.layouts.set(title, places);
    const button = make("button", { type: "button", "data-title": title, "aria-pressed": "false", onclick: () => showLayout(title) }, title);
    layoutButtons.append(button);
    if (!state.layout) showLayout(title);
  }

  function isInside(x, y, corners) {
    let inside = false;
    for (let i = 0, j = corners.length - 1; i < corners.length; j = i++) {
      const [xi, yi] = corners[i], [xj, yj] = corners[j];
      if ((yi > y) !== (yj > y) && x < (xj - xi) * (y - yi) / (yj - yi) + xi) inside = !inside;
    }
    return inside;
  }

  // ---- pointer and keyboard

  let start = null, fingers = new Map();
  canvas.addEventListener("pointerdown", (event) => {
    canvas.focus({ preventScroll: true });
    canvas.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, [event.offsetX, event.offsetY]);
    start = { px: event.offsetX, py: event.offsetY, x: state.x, y: state.y, isFar: false };
    state.lasso = [];
  });
  canvas.addEventListener("pointermove", (event) => {
    const { offsetX: px, offsetY: py } = event;
    if (!start) { setHover(nearestTo(px, py), px, py); return; }
    if (fingers.size === 2) {
      const other = [...fingers].find(([id]) => id !== event.pointerId)[1], before = fingers.get(event.pointerId);
      const far = (a) => Math.hypot(a[0] - other[0], a[1] - other[1]) || 1;
      fingers.set(event.pointerId, [px, py]);
      zoom(far([px, py]) / far(before), other[0], other[1]); state.lasso = []; start.isFar = true;
      return;
    }
    if (Math.hypot(px - start.px, py - start.py) > 4) start.isFar = true;
    if (!start.isFar) return;
    setHover(-1);
    if (state.mode === "move") { state.x = start.x + px - start.px; state.y = start.y + py - start.py; }
    else { if (!state.lasso.length) state.lasso.push([start.px, start.py]); state.lasso.push([px, py]); }
    draw();
  });
  function release(event) {
    fingers.delete(event.pointerId);
    if (!start || fingers.size) return;
    const { isFar } = start;
    start = null;
    if (!isFar) { const row = nearestTo(event.offsetX, event.offsetY); if (row >= 0) goTo(row); else pin(-1); return; }
    if (state.lasso.length > 2) {
      const rows = [], now = view();
      for (let row = 0; row < data.count; row++) if (isPlaced(row) && isInside(...screenOf(row, now), state.lasso)) rows.push(row);
      choose(rows, event.shiftKey);
    }
    state.lasso = []; draw();
  }
  canvas.addEventListener("pointerup", release);
  canvas.addEventListener("pointercancel", release);
  canvas.addEventListener("pointerleave", () => { if (!start) setHover(-1); });
  canvas.addEventListener("wheel", (event) => {  // only a map in use takes the wheel from the page
    if (document.activeElement !== canvas && !event.ctrlKey) return;
    event.preventDefault(); setHover(-1); zoom(Math.exp(-event.deltaY * 0.0016), event.offsetX, event.offsetY);
  }, { passive: false });

  const DIRECTIONS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  canvas.addEventListener("keydown", (event) => {
    if (DIRECTIONS[event.key]) step(...DIRECTIONS[event.key]);
    else if (event.key === "Enter" || event.key === " ") {
      if (state.pinned >= 0) {
        if (!state.chosen.delete(state.pinned)) state.chosen.add(state.pinned);
        showChosen();
      }
    } else if (event.key === "+" || event.key === "=") zoom(1.5);
    else if (event.key === "-") zoom(1 / 1.5);
    else if (event.key === "0") showAll();
    else return;
    event.preventDefault();
  });
  root.addEventListener("keydown", (event) => { if (event.key === "Escape") { clear(); canvas.focus({ preventScroll: true }); } });

  function step(right, down) {  // the nearest in a quarter of the plane
    const now = view(), { width, height } = now, has = state.pinned >= 0 && isPlaced(state.pinned);
    const [fromX, fromY] = has ? screenOf(state.pinned) : [width / 2, height / 2];
    let best = -1, least = Infinity;
    for (let row = 0; row < data.count; row++) {
      if (row === state.pinned || !isPlaced(row)) continue;
      const [x, y] = screenOf(row, now), dx = x - fromX, dy = y - fromY;
      const along = dx * right + dy * down, across = Math.abs(dx * down) + Math.abs(dy * right);
      if (has && (along <= 0.01 || across > along)) continue;
      const far = has ? along + 2 * across : Math.hypot(dx, dy);
      if (far < least) { least = far; best = row; }
    }
    if (best >= 0) goTo(best);
  }

  // ---- start

  columnChoice.append(make("option", { value: "" }, "nothing"),
    ...data.columns.map((column) => make("option", { value: column.name }, printable(column.name))));
  setMode("lasso");
  group();
  for (const [title, places] of [...data.layouts]) addLayout(title, places);
  colourBy(data.columns.length ? data.columns[0].name : "");
  clear();
  if (data.columns.length) colourBy(data.columns[0].name);
  new ResizeObserver(draw).observe(canvas);
  const repaint = () => { group(); showLegend(); draw(); };
  document.addEventListener("themechange", repaint);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
  window.addEventListener("beforeprint", () => { group(); paint(); });
  return { addLayout, choose, colourBy, goTo, pin, screenOf, showLayout, selectedNames, toCsv, tile, state };
}

/* Light or dark: as the system, until the button says otherwise; paper is always light. */
function setUpTheme(button) {
  const root = document.documentElement, isDark = () => getComputedStyle(root).colorScheme === "dark";
  const show = () => { button.textContent = isDark() ? "Light" : "Dark"; };
  const set = (theme) => {
    if (theme) root.dataset.theme = theme; else delete root.dataset.theme;
    show(); document.dispatchEvent(new Event("themechange"));
  };
  button.addEventListener("click", () => set(isDark() ? "light" : "dark"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
  let before;
  window.addEventListener("beforeprint", () => { before = root.dataset.theme; set("light"); });
  window.addEventListener("afterprint", () => set(before));
  show();
}
