"use strict";
/* The report's map: everything is in the page. */
(function () {
  setUpTheme(document.getElementById("theme"));
  window.addEventListener("beforeprint", () => { for (const part of document.querySelectorAll("details")) part.open = true; });
  const island = document.getElementById("map-data");
  if (!island) return;
  const given = JSON.parse(island.textContent);
  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer;
  const near = new Uint16Array(bytes(given.near)), likeness = new Int8Array(bytes(given.likeness));
  const { px, columns, each, images } = given.sheets, sheets = new Map();

  function openSheet(at) {  // decoded when first needed
    if (!sheets.has(at)) {
      const image = new Image();
      image.src = images[at];
      sheets.set(at, image.decode().then(() => image));
    }
    return sheets.get(at);
  }

  function thumb(row, size) {
    const canvas = document.createElement("canvas"), place = row % each;
    canvas.width = canvas.height = px;
    canvas.className = "thumb";
    canvas.style.width = canvas.style.height = `${size}px`;
    canvas.dataset.row = row;
    openSheet(Math.floor(row / each)).then((sheet) => {
      canvas.getContext("2d").drawImage(sheet, (place % columns) * px, Math.floor(place / columns) * px, px, px, 0, 0, px, px);
    });
    return canvas;
  }

  window.byolMap = createMap(document.getElementById("map"), {
    count: given.count,
    name: (row) => given.names[row],
    columns: given.columns.map((column) => ({ ...column, values: new Int32Array(bytes(column.values)) })),
    layouts: new Map(given.layouts.map(([title, places]) => [title, new Uint16Array(bytes(places))])),
    thumb,
    near: async (row) => Array.from({ length: given.perRow }, (_, at) => row * given.perRow + at)
      .map((at) => ({ row: near[at], similarity: likeness[at] / 100 })).filter((one) => one.row !== row).slice(0, 8),
    hint: "Click a point to see the image and the most similar ones.",
  });
})();
