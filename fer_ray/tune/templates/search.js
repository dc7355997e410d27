"use strict";
// A trial that is pointed at is marked wherever it is shown, and read out; an axis that is dragged along keeps the trials that cross it there.
(() => {
  const readout = document.getElementById("readout");
  const plot = document.getElementById("parallel");
  const rows = new Map([...document.querySelectorAll("tr[data-trial]")].map((row) => [row.dataset.trial, row]));
  const shown = Map.groupBy ? Map.groupBy(document.querySelectorAll("[data-trial]"), (one) => one.dataset.trial) : group();
  const kept = new Map(); // by axis: the lowest and the highest y that is kept
  let pinned = "";

  function group() {
    const groups = new Map();
    document.querySelectorAll("[data-trial]").forEach((one) => groups.set(one.dataset.trial, [...(groups.get(one.dataset.trial) || []), one]));
    return groups;
  }

  function describe(trial) {
    const row = rows.get(trial);
    if (!row) return trial;
    const names = [...row.closest("table").tHead.rows[0].cells].map((cell) => cell.textContent.trim());
    const parts = [...row.cells].map((cell, column) => [names[column], cell.firstChild.textContent.trim()]);
    const told = parts.filter(([name, words]) => words !== "\u2013" && name !== "rank" && name !== "trial");
    return `${row.cells[0].textContent.trim()}. ${trial}: ${told.map(([name, words]) => `${name} ${words}`).join(", ")}`;
  }

  function summary() {
    const lines = plot ? [...plot.querySelectorAll("polyline")] : [];
    const left = lines.filter((line) => !line.classList.contains("out")).length;
    return kept.size ? `${left} of ${lines.length} trials` : `${lines.length} trials`;
  }

  function choose(trial) {
    document.querySelectorAll(".chosen").forEach((one) => one.classList.remove("chosen"));
    for (const one of shown.get(trial) || []) {
      one.classList.add("chosen");
      if (one.tagName !== "TR") one.parentNode.append(one); // on top of the others
    }
    if (readout) readout.textContent = trial ? describe(trial) : summary();
  }

  const trialOf = (event) => event.target.closest("[data-trial]")?.dataset.trial || "";
  document.addEventListener("pointerover", (event) => {
    if (event.pointerType === "mouse" && !pinned) choose(trialOf(event));
  });
  document.addEventListener("click", (event) => {
    if (event.target.closest(".handle, th, a, summary")) return;
    pinned = trialOf(event) === pinned ? "" : trialOf(event);
    choose(pinned);
  });

  if (!plot) return;
  const points = new Map([...plot.querySelectorAll("polyline")].map((line) => [line, [...line.points].map((point) => point.y)]));

  function filter() {
    for (const [line, heights] of points) {
      const out = [...kept].some(([axis, [low, high]]) => heights[axis] < low || heights[axis] > high);
      line.classList.toggle("out", out);
      rows.get(line.dataset.trial)?.classList.toggle("out", out);
    }
    choose(pinned);
  }

  plot.querySelectorAll(".axis").forEach((axis) => {
    const [brush, handle] = [axis.querySelector(".brush"), axis.querySelector(".handle")];
    const [top, tall] = [Number(handle.dataset.top), Number(handle.dataset.tall)];
    const height = (event) => Math.min(top + tall, Math.max(top, event.clientY - plot.getBoundingClientRect().top));
    let start = null;
    const drag = (event) => {
      if (start === null) return;
      const [low, high] = [Math.min(start, height(event)), Math.max(start, height(event))];
      const whole = high - low < 3; // a click
      brush.setAttribute("y", low);
      brush.setAttribute("height", whole ? 0 : high - low);
      if (whole) kept.delete(Number(axis.dataset.axis));
      else kept.set(Number(axis.dataset.axis), [low - 0.5, high + 0.5]);
      filter();
    };
    handle.addEventListener("pointerdown", (event) => {
      handle.setPointerCapture(event.pointerId);
      start = height(event);
      drag(event);
    });
    handle.addEventListener("pointermove", drag);
    handle.addEventListener("pointerup", () => (start = null));
    handle.addEventListener("pointercancel", () => (start = null));
  });
})();
