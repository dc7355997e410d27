"use strict";
// One face at a time. Answers go into the browser's storage at once, and into a file when they are saved.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const store = `fer-ray-audit-${data.audit}`;
  const find = (id) => document.getElementById(id);
  const buttons = [...document.querySelectorAll("[data-answer]")];
  const answers = new Map();
  let place = 0;

  try {
    Object.entries(JSON.parse(localStorage.getItem(store) || "{}")).forEach(([key, answer]) => answers.set(key, answer));
  } catch {
    find("kept").textContent = "This browser keeps nothing: save the answers before you close the page.";
  }

  function show() {
    const face = data.faces[place];
    find("face").src = face.picture;
    find("place").textContent = `Face ${place + 1} of ${data.faces.length}, ${answers.size} answered`;
    find("progress").value = answers.size;
    find("done").hidden = answers.size < data.faces.length;
    buttons.forEach((button) => button.setAttribute("aria-pressed", String(answers.get(face.key) === button.dataset.answer)));
  }

  function move(step) {
    place = Math.min(Math.max(place + step, 0), data.faces.length - 1);
    show();
  }

  function answer(value) {
    answers.set(data.faces[place].key, value);
    try {
      localStorage.setItem(store, JSON.stringify(Object.fromEntries(answers)));
    } catch {
      find("kept").textContent = "This browser keeps nothing: save the answers before you close the page.";
    }
    move(1);
  }

  function save() {
    const content = JSON.stringify({ audit: data.audit, answers: Object.fromEntries(answers) });
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([content], { type: "application/json" }));
    link.download = `answers-${data.audit}.json`;
    link.click();
    URL.revokeObjectURL(link.href);
  }

  buttons.forEach((button) => button.addEventListener("click", () => answer(button.dataset.answer)));
  find("back").addEventListener("click", () => move(-1));
  find("next").addEventListener("click", () => move(1));
  find("save").addEventListener("click", save);
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "0") answer(data.unclear);
    else if (event.key >= "1" && event.key <= String(data.emotions.length)) answer(data.emotions[Number(event.key) - 1]);
    else if (event.key === "ArrowLeft") move(-1);
    else if (event.key === "ArrowRight") move(1);
    else if (event.key.toLowerCase() === "s") save();
  });
  place = Math.max(0, data.faces.findIndex((face) => !answers.has(face.key)));
  show();
})();
