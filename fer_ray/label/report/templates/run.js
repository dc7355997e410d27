"use strict";
// The choices above the report. The page is whole without them; every name in it is written as text, never as markup.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const chosen = { folder: "", emotion: "", status: "" };
  const all = (selector) => [...document.querySelectorAll(selector)];
  const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);
  const whole = (number) => number.toLocaleString("en-US");
  const percent = (part, total) => (total ? `${((100 * part) / total).toFixed(1)}\u00a0%` : "\u2013");

  function folders() {
    return chosen.folder === "" ? data.folders : [data.folders[Number(chosen.folder)]];
  }

  function earlier() {
    return chosen.folder === "" ? data.earlier : folders()[0].earlier;
  }

  function cells(row, values) {
    row.querySelectorAll("[data-cell]").forEach((cell) => {
      cell.textContent = values[cell.dataset.cell];
    });
    const bar = row.querySelector(".bar");
    if (bar) bar.style.width = values.width;
  }

  function showEmotions(faces) {
    const counts = faces.map(sum);
    const total = sum(counts);
    const before = sum(earlier());
    const highest = Math.max(...counts, 1);
    all("#emotion-shares tr[data-emotion]").forEach((row) => {
      const at = data.emotions.indexOf(row.dataset.emotion);
      const points = Math.round(1000 * (counts[at] / total - earlier()[at] / before)) / 10;
      cells(row, {
        count: whole(counts[at]),
        share: percent(counts[at], total),
        before: percent(earlier()[at], before),
        change: total && before ? `${points < 0 ? "\u2212" : points > 0 ? "+" : ""}${Math.abs(points).toFixed(1)}` : "\u2013",
        width: `${(100 * counts[at]) / highest}%`,
      });
      row.classList.toggle("chosen", chosen.emotion === row.dataset.emotion);
    });
  }

  function showConfidence(faces) {
    const wanted = chosen.emotion === "" ? faces : [faces[data.emotions.indexOf(chosen.emotion)]];
    const bins = wanted[0].map((_, bin) => sum(wanted.map((counts) => counts[bin])));
    const highest = Math.max(...bins, 1);
    all("#confidence .bars span").forEach((bar, bin) => {
      bar.style.height = `${(100 * bins[bin]) / highest}%`;
      bar.classList.toggle("none", bins[bin] === 0);
      bar.title = `${bar.dataset.range}: ${whole(bins[bin])} faces`;
    });
    document.getElementById("confidence-faces").textContent = whole(sum(bins));
    document.getElementById("confidence-highest").textContent = whole(Math.max(...bins));
  }

  function showStatuses() {
    const counts = data.statuses.map((_, at) => sum(folders().map((folder) => folder.statuses[at])));
    const total = sum(counts);
    all("#statuses tr[data-status]").forEach((row) => {
      const at = data.statuses.indexOf(row.dataset.status);
      cells(row, { count: whole(counts[at]), share: percent(counts[at], total), width: `${total ? (100 * counts[at]) / total : 0}%` });
      row.classList.toggle("chosen", chosen.status === row.dataset.status);
    });
  }

  function showRows() {
    const fits = (element) =>
      Object.entries(chosen).every(([name, value]) => value === "" || !(name in element.dataset) || element.dataset[name] === value);
    all(".faces figure").forEach((element) => {
      element.hidden = !fits(element);
    });
    all(".errors tr[data-status]").forEach((row) => {
      const counts = Object.fromEntries(row.dataset.folders.trim().split(" ").map((one) => one.split(":")));
      const count = chosen.folder === "" ? row.dataset.images : counts[chosen.folder];
      row.hidden = !fits(row) || count === undefined;
      cells(row, { count: whole(Number(count)) });
    });
    all("#folder-shares tr[data-folder]").forEach((row) => row.classList.toggle("faint", !fits(row)));
    all(".samples section").forEach((section) => {
      const isOff = "needsFolder" in section.dataset && chosen.folder === "";
      section.hidden = isOff || !section.querySelector("figure:not([hidden])");
    });
    all("[data-none-of]").forEach((note) => {
      note.hidden = document.querySelector(`${note.dataset.noneOf}:not([hidden])`) !== null;
    });
  }

  function show() {
    const faces = data.emotions.map((_, emotion) =>
      Array.from({ length: data.bins }, (_, bin) => sum(folders().map((folder) => folder.faces[emotion][bin]))),
    );
    if (document.getElementById("emotion-shares")) {
      showEmotions(faces);
      showConfidence(faces);
    }
    showStatuses();
    showRows();
  }

  const filters = document.querySelector(".filters");
  filters.querySelectorAll("select").forEach((select) => {
    select.addEventListener("change", () => {
      chosen[select.name] = select.value;
      show();
    });
  });
  filters.querySelector("button").addEventListener("click", () => {
    filters.querySelectorAll("select").forEach((select) => {
      select.value = chosen[select.name] = "";
    });
    show();
  });
  filters.hidden = false;
  // A browser may bring back what was chosen before the page was loaded again.
  filters.querySelectorAll("select").forEach((select) => {
    chosen[select.name] = select.value;
  });
  show();
})();
