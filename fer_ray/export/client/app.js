// The page: photographs that are chosen or dropped, and the camera; both go to the labeler in vision.js and nowhere else.
import { loadLabeler } from "./vision.js";

const MAX_SIDE = 1440; // pixels of what is looked at: three times the detector's side
const at = (id) => document.getElementById(id);
const [state, camera, files, live, video, picture, photographs] = ["state", "camera", "files", "live", "video", "picture", "photographs"].map(at);
const percent = (share) => `${Math.round(100 * share)}\u00a0%`;
let labeler;
let stream = null;

function scaled(source, width, height) {
  const scale = Math.min(1, MAX_SIDE / Math.max(width, height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  const paper = canvas.getContext("2d", { willReadFrequently: true });
  paper.drawImage(source, 0, 0, canvas.width, canvas.height);
  return { canvas, paper };
}

function drawFaces(canvas, faces) {
  const paper = canvas.getContext("2d");
  const letters = Math.round((15 * canvas.width) / (canvas.clientWidth || canvas.width));
  paper.font = `${letters}px system-ui, sans-serif`;
  paper.textBaseline = "top";
  for (const { bbox: [x, y, width, height], emotion, confidence } of faces) {
    const color = labeler.model.colors[labeler.model.classes.indexOf(emotion)];
    const words = `${emotion} ${percent(confidence)}`;
    const top = y > letters * 1.4 ? y - letters * 1.4 : y + height;
    paper.lineWidth = Math.max(2, letters / 6);
    paper.strokeStyle = paper.fillStyle = color;
    paper.strokeRect(x, y, width, height);
    paper.fillRect(x - paper.lineWidth / 2, top, paper.measureText(words).width + letters * 0.6, letters * 1.4);
    const [red, green, blue] = [1, 3, 5].map((from) => parseInt(color.slice(from, from + 2), 16));
    paper.fillStyle = 0.299 * red + 0.587 * green + 0.114 * blue > 140 ? "#14181f" : "#ffffff";
    paper.fillText(words, x + letters * 0.2, top + letters * 0.25);
  }
}

function element(tag, text, settings = {}) {
  return Object.assign(document.createElement(tag), text === undefined ? settings : { textContent: text, ...settings });
}

function described(face, number) {
  const block = element("div", undefined, { className: "face" });
  block.dataset.face = JSON.stringify(face);
  block.append(element("strong", `Face ${number}: ${face.emotion} ${percent(face.confidence)}`));
  labeler.model.classes.forEach((name, index) => {
    const share = face.probabilities[index];
    const bar = element("progress", undefined, { max: 1, value: share });
    bar.setAttribute("aria-label", name);
    block.append(element("span", name), bar, element("span", percent(share)));
  });
  return block;
}

async function showPhotograph(file) {
  const figure = element("figure");
  try {
    const bitmap = await createImageBitmap(file);
    const { canvas, paper } = scaled(bitmap, bitmap.width, bitmap.height);
    const faces = await labeler.label(paper.getImageData(0, 0, canvas.width, canvas.height));
    figure.append(canvas, element("figcaption", `${file.name}: ${faces.length === 1 ? "1 face" : `${faces.length} faces`}`));
    figure.append(...faces.map((face, index) => described(face, index + 1)));
    photographs.prepend(figure);
    drawFaces(canvas, faces);
  } catch {
    figure.append(element("figcaption", `${file.name} is no photograph that this browser can open.`));
    photographs.prepend(figure);
  }
}

async function showPhotographs(list) {
  for (const [index, file] of [...list].entries()) {
    state.textContent = `Looking at ${index + 1} of ${list.length}.`;
    await showPhotograph(file);
  }
  state.textContent = "Done. Nothing was sent anywhere.";
}

async function showCamera() {
  const drawn = [];
  while (stream) {
    if (video.readyState >= 2) {
      const { canvas, paper } = scaled(video, video.videoWidth, video.videoHeight);
      const faces = await labeler.label(paper.getImageData(0, 0, canvas.width, canvas.height));
      if (!stream) return;
      [picture.width, picture.height] = [canvas.width, canvas.height];
      picture.getContext("2d").drawImage(canvas, 0, 0);
      drawFaces(picture, faces);
      drawn.push(performance.now());
      while (drawn[0] < drawn.at(-1) - 2000) drawn.shift();
      const rate = drawn.length > 1 ? (1000 * (drawn.length - 1)) / (drawn.at(-1) - drawn[0]) : 0;
      state.textContent = `${faces.length === 1 ? "1 face" : `${faces.length} faces`}, ${rate.toFixed(1)} frames a second.`;
    }
    await new Promise(requestAnimationFrame);
  }
}

async function toggleCamera() {
  if (stream) {
    stream.getTracks().forEach((track) => track.stop());
    stream = null;
  } else {
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: { width: 640, height: 480 } });
      video.srcObject = stream;
      await video.play();
    } catch (error) {
      stream = null;
      state.textContent = `The camera cannot be used (${error.name}): allow it for this page, which must come over https or from this machine.`;
      return;
    }
    showCamera();
  }
  live.hidden = !stream;
  camera.textContent = stream ? "Stop the camera" : "Use the camera";
  if (!stream) state.textContent = "The camera is off.";
}

async function start() {
  if ("serviceWorker" in navigator) navigator.serviceWorker.register("worker.js").catch(() => {});
  try {
    labeler = await loadLabeler();
  } catch (error) {
    state.textContent = `The model cannot be loaded (${error.message}): load the page again.`;
    return;
  }
  at("notes").append(...labeler.model.responsible_use.map((sentence) => element("p", sentence)));
  at("notes").append(element("p", `Model ${labeler.model.model_version}.`));
  camera.addEventListener("click", toggleCamera);
  files.addEventListener("change", () => showPhotographs(files.files));
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("over");
  });
  document.addEventListener("dragleave", () => document.body.classList.remove("over"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("over");
    showPhotographs(event.dataTransfer.files);
  });
  camera.disabled = files.disabled = false;
  state.textContent = "Ready. Use the camera, or drop photographs here.";
}
start();
