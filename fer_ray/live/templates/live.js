"use strict";
// Asks for the newest frame, draws it with its faces, and asks again: what the browser cannot keep up with is never sent.
(() => {
  const live = document.getElementById("live");
  const emotions = live.dataset.emotions.split(" ");
  const colors = live.dataset.colors.split(" ");
  const picture = document.getElementById("picture");
  const curves = document.getElementById("curves");
  const state = document.getElementById("state");
  const rows = [...document.querySelectorAll(".bars tr")];
  const SECONDS = 30;
  let history = []; // [seconds, id, probabilities] of the largest face
  let number = 0;
  let drawn = [];

  function drawPicture(bitmap, facts) {
    picture.width = bitmap.width;
    picture.height = bitmap.height;
    const scale = bitmap.width / facts.size[0];
    const paper = picture.getContext("2d");
    paper.drawImage(bitmap, 0, 0);
    const letters = Math.round((15 * bitmap.width) / picture.clientWidth); // as large as the page's
    paper.font = `${letters}px system-ui, sans-serif`;
    paper.textBaseline = "top";
    for (const face of facts.faces) {
      const best = emotions.indexOf(face.emotion);
      const [x, y, width, height] = face.bbox.map((value) => value * scale);
      const words = `${face.emotion} ${Math.round(100 * face.probabilities[best])}\u00a0%`;
      const top = y > letters * 1.4 ? y - letters * 1.4 : y + height;
      paper.lineWidth = Math.max(2, letters / 6);
      paper.strokeStyle = paper.fillStyle = colors[best];
      paper.strokeRect(x, y, width, height);
      paper.fillRect(x - paper.lineWidth / 2, top, paper.measureText(words).width + letters * 0.6, letters * 1.4);
      const [red, green, blue] = [1, 3, 5].map((at) => parseInt(colors[best].slice(at, at + 2), 16));
      paper.fillStyle = 0.299 * red + 0.587 * green + 0.114 * blue > 140 ? "#14181f" : "#ffffff";
      paper.fillText(words, x + letters * 0.2, top + letters * 0.25);
    }
  }

  function drawBars(face) {
    rows.forEach((row, at) => {
      const share = face ? face.probabilities[at] : 0;
      row.querySelector("i").style.setProperty("--share", share);
      row.querySelector("meter").value = share;
      row.querySelector(".value").textContent = face ? `${Math.round(100 * share)}\u00a0%` : "\u2013";
    });
  }

  function drawCurves(now) {
    const paper = curves.getContext("2d");
    paper.clearRect(0, 0, curves.width, curves.height);
    paper.lineWidth = 3;
    emotions.forEach((_, at) => {
      paper.strokeStyle = colors[at];
      paper.beginPath();
      history.forEach(([seconds, id, probabilities], i) => {
        const x = curves.width * (1 - (now - seconds) / SECONDS);
        const y = 2 + (curves.height - 4) * (1 - probabilities[at]);
        if (i === 0 || history[i - 1][1] !== id) paper.moveTo(x, y);
        else paper.lineTo(x, y);
      });
      paper.stroke();
    });
  }

  function show(bitmap, facts, arrived) {
    const [face] = facts.faces;
    history = history.filter(([seconds]) => facts.seconds - seconds <= SECONDS);
    if (face) history.push([facts.seconds, face.id, face.probabilities]);
    drawPicture(bitmap, facts);
    drawBars(face);
    drawCurves(facts.seconds);
    const now = performance.now();
    drawn = drawn.filter((moment) => now - moment < 2000).concat(now);
    const rate = drawn.length > 1 ? (1000 * (drawn.length - 1)) / (now - drawn[0]) : 0;
    const delay = Math.round(facts.server_ms + now - arrived);
    const faces = facts.faces.length === 1 ? "1 face" : `${facts.faces.length} faces`;
    state.textContent = `${faces}, ${facts.fps} frames labeled and ${rate.toFixed(1)} shown a second, ${delay}\u00a0ms from the camera, ${facts.dropped} frames dropped.`;
  }

  async function run() {
    for (;;) {
      try {
        const answer = await fetch(`/frame?after=${number}`, { cache: "no-store" });
        const arrived = performance.now();
        if (answer.status === 200) {
          const facts = JSON.parse(answer.headers.get("X-Faces"));
          number = facts.number;
          show(await createImageBitmap(await answer.blob()), facts, arrived);
        } else if (answer.status !== 204) {
          throw new Error(await answer.text());
        }
      } catch (error) {
        state.textContent = "The camera or its process has ended. This page looks for it every two seconds.";
        number = 0;
        await new Promise((resolve) => setTimeout(resolve, 2000));
      }
    }
  }
  run();
})();
