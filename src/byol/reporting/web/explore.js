"use strict";
/* The live page: arrays, pictures and neighbours come from the server that the page is from. */
(async function () {
  setUpTheme(document.getElementById("theme"));
  const POLL_MS = 2000, status = document.getElementById("status"), found = document.getElementById("found");
  const ask = async (path, options) => {
    const answer = await fetch(path, options);
    if (!answer.ok) throw new Error((await answer.json().catch(() => ({}))).error || `the server answered ${answer.status}`);
    return answer;
  };
  const json = async (path, options) => (await ask(path, options)).json();
  const binary = async (path) => (await ask(path)).arrayBuffer();

  const about = await json("map.json"), names = await json("names.json");
  const columns = await Promise.all(about.columns.map(async (column, at) =>
    ({ ...column, values: new Int32Array(await binary(`column/${at}`)) })));
  const layout = async (title) => new Uint16Array(await binary(`layout/${encodeURIComponent(title)}`));
  const layouts = new Map();
  for (const title of about.layouts) layouts.set(title, await layout(title));

  function thumb(row, size) {
    const image = document.createElement("img");
    image.className = "thumb";
    image.loading = "lazy";
    image.alt = "";
    image.width = image.height = size;
    image.dataset.row = row;
    image.src = `thumb/${row}`;
    return image;
  }

  const map = createMap(document.getElementById("map"), {
    count: about.count, name: (row) => names[row], columns, layouts, thumb, near: (row) => json(`near/${row}`),
    hint: "Click a point to see the image and the most similar ones.",
  });
  window.byolMap = map;

  async function wait() {  // for maps that are still being made
    const now = await json("map.json");
    for (const title of now.layouts) if (!layouts.has(title)) map.addLayout(title, await layout(title));
    status.textContent = now.waiting.length ? `${now.waiting.join(", ")}: computing …` : "";
    if (now.waiting.length) setTimeout(wait, POLL_MS);
  }
  wait();

  async function search(file) {
    status.textContent = `searching for images similar to ${file.name} …`;
    const suffix = (file.name.match(/\.[A-Za-z0-9]{1,8}$/) || [""])[0];
    try {
      const near = await json("search", { method: "POST", body: file, headers: { "X-Suffix": suffix } });
      found.replaceChildren(...near.map(map.tile));
      map.choose(near.map((one) => one.row), false);
      status.textContent = `${near.length} images most similar to ${file.name}; highest similarity ${near[0].similarity.toFixed(2)}`;
    } catch (error) { found.replaceChildren(); status.textContent = error.message; }
  }

  const drop = document.getElementById("drop"), file = document.getElementById("file");
  file.addEventListener("change", () => { if (file.files.length) search(file.files[0]); });
  for (const kind of ["dragover", "dragleave", "drop"]) document.addEventListener(kind, (event) => {
    event.preventDefault();
    drop.classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files.length) search(event.dataTransfer.files[0]);
  });
})();
