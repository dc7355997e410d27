// What fer_ray's Labeler does, in the browser: find faces with YuNet, cut them out, and classify them with ONNX Runtime.
// Images are {data, width, height, channels}, rows of bytes; the numbers are those of model.json.
import * as ort from "./ort/ort.wasm.min.mjs";

ort.env.wasm.numThreads = 1; // more would need headers that simple servers do not send
ort.env.wasm.wasmPaths = new URL("./ort/", import.meta.url).href;

const STRIDES = [8, 16, 32];
const MIN_INPUT = 8;
const REACH = 0.75; // sides from a crop's centre to the corner of a rotated one, and a little more

export async function loadLabeler() {
  const model = await (await fetch("model.json")).json();
  const open = (name) => ort.InferenceSession.create(name, { executionProviders: ["wasm"] });
  const [detector, quality, ...networks] = await Promise.all(["detector.onnx", "quality.onnx", ...model.networks].map(open));
  return { model, label: (image) => label(image, model, detector, quality, networks) };
}

/** The faces of RGBA pixels, the largest first: bbox, score, emotion, confidence, probabilities. */
async function label({ data, width, height }, model, detector, quality, networks) {
  const image = withoutAlpha(data, width, height);
  const found = await detect(image, model.detector, detector);
  const faces = [];
  for (const face of found.filter(({ box }) => Math.max(box[2], box[3]) >= model.detector.min_size)) {
    const crop = cropFace(image, face, model);
    const probabilities = await classify(crop, model, quality, networks);
    const best = probabilities.indexOf(Math.max(...probabilities));
    faces.push({ bbox: face.box, score: face.score, emotion: model.classes[best], confidence: probabilities[best], probabilities });
  }
  return faces;
}

function withoutAlpha(rgba, width, height) {
  const data = new Uint8Array(width * height * 3);
  for (let from = 0, to = 0; from < rgba.length; from += 4, to += 3) {
    data[to] = rgba[from];
    data[to + 1] = rgba[from + 1];
    data[to + 2] = rgba[from + 2];
  }
  return { data, width, height, channels: 3 };
}

// Half the size first; the whole only where that shows no face, or something faint beside the faces.
async function detect(image, settings, session) {
  const longest = Math.max(image.width, image.height);
  const scale = Math.min(1, settings.side / longest);
  const half = Math.ceil((longest * scale) / 64) * 32;
  const isSure = (face) => face.score >= settings.min_score;
  const coarse = await detectAt(image, Math.min(half / longest, scale), Math.min(settings.faint_score, settings.min_score / 3), settings, session);
  let faces = coarse.filter(isSure);
  if (faces.length < coarse.length || !faces.length) {
    const found = await detectAt(image, scale, Math.min(settings.lowest_score, settings.min_score), settings, session);
    const sure = found.filter(isSure);
    faces = sure.length ? sure : faces;
  }
  return faces.sort((a, b) => b.box[2] * b.box[3] - a.box[2] * a.box[3]);
}

async function detectAt(image, scale, lowest, settings, session) {
  const size = [Math.max(1, Math.round(image.width * scale)), Math.max(1, Math.round(image.height * scale))];
  if (Math.min(...size) < MIN_INPUT) return [];
  const kept = suppress(await candidates(shrunk(image, ...size), lowest, session), settings.nms_iou);
  const ratio = [image.width / size[0], image.height / size[1]];
  return kept.map(({ box, points, score }) => ({
    box: box.map((value, at) => value * ratio[at % 2]),
    points: points.map(([x, y]) => [x * ratio[0], y * ratio[1]]),
    score,
  }));
}

async function candidates(image, lowest, session) {
  const [columns, rows] = [image.width, image.height].map((side) => Math.ceil(side / 32) * 32);
  const input = new Float32Array(3 * rows * columns); // blue, green, red; what is beyond the image is black
  for (let y = 0; y < image.height; y++) {
    for (let x = 0; x < image.width; x++) {
      for (let channel = 0; channel < 3; channel++) {
        input[(channel * rows + y) * columns + x] = image.data[(y * image.width + x) * 3 + 2 - channel];
      }
    }
  }
  const answers = await session.run({ input: new ort.Tensor("float32", input, [1, 3, rows, columns]) });
  const found = [];
  for (const stride of STRIDES) {
    const [classes, objects, boxes, points] = ["cls", "obj", "bbox", "kps"].map((name) => answers[`${name}_${stride}`].data);
    for (let cell = 0; cell < classes.length; cell++) {
      const score = Math.sqrt(classes[cell] * objects[cell]);
      if (!(score >= lowest)) continue;
      const corner = [cell % (columns / stride), Math.floor(cell / (columns / stride))];
      const size = [2, 3].map((at) => Math.exp(boxes[4 * cell + at]) * stride);
      const origin = [0, 1].map((at) => (corner[at] + boxes[4 * cell + at]) * stride - size[at] / 2);
      const spots = [0, 1, 2, 3, 4].map((spot) => [0, 1].map((at) => (points[10 * cell + 2 * spot + at] + corner[at]) * stride));
      found.push({ box: [...origin, ...size], points: spots, score });
    }
  }
  return found;
}

// Of boxes that overlap more than this, the best stays.
function suppress(faces, overlap) {
  const kept = [];
  for (const face of faces.sort((a, b) => b.score - a.score)) {
    if (kept.every((other) => intersectionOverUnion(face.box, other.box) <= overlap)) kept.push(face);
  }
  return kept;
}

function intersectionOverUnion(a, b) {
  const [width, height] = [0, 1].map((at) => Math.max(0, Math.min(a[at] + a[at + 2], b[at] + b[at + 2]) - Math.max(a[at], b[at])));
  return (width * height) / (a[2] * a[3] + b[2] * b[3] - width * height);
}

// Halved by means while it can be, then between the points.
function shrunk(image, width, height) {
  while (Math.min(image.width / width, image.height / height) >= 2) image = resizedByArea(image, image.width >> 1, image.height >> 1, 2, 2);
  return image.width === width && image.height === height ? image : resizedBetweenPoints(image, width, height);
}

function resizedBetweenPoints(image, width, height) {
  const { channels } = image;
  const data = new Uint8Array(width * height * channels);
  const columns = Array.from({ length: width }, (_, x) => between(((x + 0.5) * image.width) / width - 0.5, image.width));
  for (let y = 0, to = 0; y < height; y++) {
    const [top, bottom, down] = between(((y + 0.5) * image.height) / height - 0.5, image.height);
    for (let x = 0; x < width; x++) {
      const [left, right, across] = columns[x];
      for (let channel = 0; channel < channels; channel++) {
        data[to++] = Math.round(blended(image, left, right, top, bottom, across, down, channel));
      }
    }
  }
  return { data, width, height, channels };
}

/** The two neighbours of a place on an axis, inside of it, and the share of the second. */
function between(place, length) {
  const low = Math.floor(place);
  const inside = (at) => Math.min(Math.max(at, 0), length - 1);
  return [inside(low), inside(low + 1), place - low];
}

function blended({ data, width, channels }, left, right, top, bottom, across, down, channel) {
  const at = (x, y) => data[(y * width + x) * channels + channel];
  const above = at(left, top) * (1 - across) + at(right, top) * across;
  const below = at(left, bottom) * (1 - across) + at(right, bottom) * across;
  return above * (1 - down) + below * down;
}

/** Each pixel the mean of the area that it covers, `wide` by `high` pixels of the image. */
function resizedByArea(image, width, height, wide = image.width / width, high = image.height / height) {
  const { channels } = image;
  const data = new Uint8Array(width * height * channels);
  const columns = Array.from({ length: width }, (_, x) => shares(x * wide, (x + 1) * wide, image.width));
  for (let y = 0, to = 0; y < height; y++) {
    const rows = shares(y * high, (y + 1) * high, image.height);
    for (let x = 0; x < width; x++) {
      for (let channel = 0; channel < channels; channel++) {
        let sum = 0;
        for (const [row, down] of rows) {
          for (const [column, across] of columns[x]) sum += image.data[(row * image.width + column) * channels + channel] * down * across;
        }
        data[to++] = Math.round(sum);
      }
    }
  }
  return { data, width, height, channels };
}

function shares(from, to, length) {
  const parts = [];
  for (let at = Math.floor(from); at < Math.min(Math.ceil(to - 1e-9), length); at++) {
    parts.push([at, (Math.min(at + 1, to) - Math.max(at, from)) / (to - from)]);
  }
  return parts;
}

// As fer_ray.vision.crop: a square around the face, its eyes level if the model wants that; beyond the image its edge is repeated.
function cropFace(image, face, model) {
  const { crop, image_size: size } = model;
  const [x, y, width, height] = face.box;
  const side = Math.max(2, Math.sqrt(Math.max(width, 1) * Math.max(height, 1)) * crop.scale);
  const centre = [x + width / 2 + crop.shift_x * side, y + height / 2 + crop.shift_y * side];
  const [right, left] = face.points; // YuNet gives the subject's right eye first
  const angle = crop.rotation * Math.atan2(left[1] - right[1], left[0] - right[0]);
  const { region, origin, shrink } = surroundings(image, centre, side, size, model.color);
  const step = side / size / shrink;
  const [cosine, sine] = [Math.cos(angle) * step, Math.sin(angle) * step];
  const middle = (size - 1) / 2;
  const start = [0, 1].map((at) => (centre[at] - origin[at]) / shrink - 0.5);
  const data = new Uint8Array(size * size * region.channels);
  for (let row = 0, to = 0; row < size; row++) {
    for (let column = 0; column < size; column++) {
      const [i, j] = [column - middle, row - middle];
      const [first, second, across] = between(start[0] + cosine * i - sine * j, region.width);
      const [top, bottom, down] = between(start[1] + sine * i + cosine * j, region.height);
      for (let channel = 0; channel < region.channels; channel++) {
        data[to++] = Math.round(blended(region, first, second, top, bottom, across, down, channel));
      }
    }
  }
  return { data, width: size, height: size, channels: region.channels };
}

function surroundings(image, centre, side, size, color) {
  const shrink = Math.max(1, Math.trunc(side / size));
  const reach = side * REACH + 2 * shrink;
  const high = [image.width, image.height];
  const low = [0, 1].map((at) => Math.min(Math.max(Math.floor(centre[at] - reach), 0), high[at] - 1));
  const far = [0, 1].map((at) => Math.min(Math.max(Math.ceil(centre[at] + reach), low[at] + 1), high[at]));
  const cut = part(image, low, far, color);
  const target = [cut.width, cut.height].map((length) => Math.max(1, Math.round(length / shrink)));
  return { region: shrink > 1 ? resizedByArea(cut, ...target) : cut, origin: low, shrink };
}

function part(image, low, far, color) {
  const [width, height] = [far[0] - low[0], far[1] - low[1]];
  const channels = color === "rgb" ? 3 : 1;
  const data = new Uint8Array(width * height * channels);
  for (let y = 0, to = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const from = ((y + low[1]) * image.width + x + low[0]) * 3;
      const [red, green, blue] = image.data.subarray(from, from + 3);
      if (channels === 1) data[to++] = Math.round(0.299 * red + 0.587 * green + 0.114 * blue);
      else [data[to++], data[to++], data[to++]] = [red, green, blue];
    }
  }
  return { data, width, height, channels };
}

async function classify(crop, model, quality, networks) {
  const answers = [];
  for (const view of model.flip ? [crop, mirrored(crop)] : [crop]) {
    for (const network of networks) answers.push(await ask(network, view, [1, view.height, view.width, view.channels]));
  }
  const logits = answers.length === 1 ? answers[0] : logOfMean(answers.map((answer) => softmax(answer)));
  if (!model.by_picture) return softmax(logits.map((value) => value / model.temperature));
  const small = grayOf(crop, 48);
  const seen = (await ask(quality, small, [1, 1, 48, 48])).map((value) => Math.min(Math.max(value, -model.max_seen), model.max_seen));
  const features = [1, ...seen];
  const dot = (weights) => weights.reduce((sum, weight, at) => sum + weight * features[at], 0);
  const sharpness = Math.exp(-Math.min(Math.max(dot(model.by_picture.temperature), Math.log(0.05)), Math.log(20)));
  return softmax(logits.map((value, at) => value * sharpness + dot(model.by_picture.offsets[at])));
}

async function ask(network, { data }, shape) {
  const tensor = new ort.Tensor("float32", Float32Array.from(data), shape);
  const answer = await network.run({ [network.inputNames[0]]: tensor });
  return Array.from(answer[network.outputNames[0]].data);
}

function grayOf(crop, side) {
  const gray = crop.channels === 1 ? crop : part(crop, [0, 0], [crop.width, crop.height], "gray");
  if (gray.width === side) return gray;
  return gray.width > side ? resizedByArea(gray, side, side) : resizedBetweenPoints(gray, side, side);
}

function mirrored(crop) {
  const { data, width, height, channels } = crop;
  const turned = new Uint8Array(data.length);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      for (let channel = 0; channel < channels; channel++) {
        turned[(y * width + x) * channels + channel] = data[(y * width + width - 1 - x) * channels + channel];
      }
    }
  }
  return { ...crop, data: turned };
}

function softmax(values) {
  const highest = Math.max(...values);
  const powers = values.map((value) => Math.exp(value - highest));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map((power) => power / sum);
}

function logOfMean(answers) {
  return answers[0].map((_, at) => Math.log(Math.max(answers.reduce((sum, answer) => sum + answer[at], 0) / answers.length, 1e-12)));
}
