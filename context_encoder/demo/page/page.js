// The page: an image, the marks drawn on it, the result of filling, and how they are shown.
//
// Three systems of coordinates: pixels of the image (what is sent), pixels of the display (an image
// of at most 16 megapixels that stands for it; `display.scale` of them per pixel of the image) and
// CSS pixels of the stage (`view`).

const $ = (id) => document.getElementById(id);
const stage = $("stage"), canvas = $("canvas"), context = canvas.getContext("2d");
const MARK = "#ff3b5c";

let image = null;        // {key, name, width, height, display, bitmap}
let shapes = [];         // what is drawn, in order; each as it is sent, a loaded mask with `overlay`
let undone = [];
let marks = null;        // canvas of the display's size with the shapes
let drawing = null;      // the shape under the pointer
let results = {};        // draft, filled, opencv: {bitmap, part}
let mode = "mark", tool = "brush", erase = false;
let brush = 40, split = 0.5;
let view = {scale: 1, x: 0, y: 0};
let pointer = null;      // where the brush is, CSS pixels
let filling = null;      // AbortController of the request in progress
let filledShapes = "";   // what the result was made from
let inView = 0, holes = [];
let labels = {};
let largestUpload = Infinity;  // MiB

// --- requests -------------------------------------------------------------------------------

async function request(path, options = {}) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("the program that serves this page does not answer; start it again");
  }
  if (!response.ok) {
    const problem = await response.json().catch(() => ({}));
    const error = new Error(problem.error ?? `the request failed (${response.status})`);
    throw Object.assign(error, {gone: response.status === 404});
  }
  return response;
}

// The server forgets images, and all of them when it is started again: then the image and its
// masks are sent once more.
async function requestAgain(make) {
  try { return await make(); } catch (error) {
    if (!error.gone || !image) throw error;
  }
  const known = image;
  const send = async (path, file) =>
    (await request(`${path}?name=${encodeURIComponent(file.name)}`, {method: "POST", body: file})).json();
  const {key} = await send("/api/pictures", known.file);
  const numbers = new Map();
  for (const shape of [...shapes, ...undone].filter(({kind}) => kind === "loaded")) {
    if (!numbers.has(shape.file)) numbers.set(shape.file, (await send(`/api/pictures/${key}/masks`, shape.file)).number);
    shape.number = numbers.get(shape.file);
  }
  known.key = key;
  return make();
}

const url = (rest) => `/api/pictures/${image.key}${rest}`;

async function bitmapOf(path) {
  return createImageBitmap(await (await request(path)).blob());
}

function showError(error) {
  if (error.name === "AbortError") return;
  const text = error.message ?? String(error);
  const sentence = /^[a-z`]+[ ,]/.test(text) ? text[0].toUpperCase() + text.slice(1) : text;  // no file's name
  $("error").firstElementChild.textContent = sentence.replace(/\.?$/, ".");
  $("error").hidden = false;
}

async function checkFile(file) {
  try { await file.slice(0, 1).arrayBuffer(); } catch {
    throw new Error(`${file.name} cannot be read: a folder, or a file that is gone`);
  }
  if (file.size > largestUpload * 1048576) {
    throw new Error(`${file.name} is larger than the ${largestUpload} MiB that this page accepts; start it with a larger --max-upload`);
  }
}

function say(text) { $("status").textContent = text; }

// --- the image ------------------------------------------------------------------------------

let opening = 0;

async function openImage(file) {
  if (!file) return;
  const turn = ++opening;
  stop();
  $("error").hidden = true;
  $("welcome").querySelector("h1").textContent = `Opening ${file.name}\u2026`;
  say("Opening the image\u2026");
  try {
    await checkFile(file);
    const query = `?name=${encodeURIComponent(file.name)}`;
    const opened = await (await request("/api/pictures" + query, {method: "POST", body: file})).json();
    const bitmap = await bitmapOf(`/api/pictures/${opened.key}/shown/display`);
    if (turn !== opening) return void fetch(`/api/pictures/${opened.key}`, {method: "DELETE"});
    if (image) close();
    image = {...opened, name: file.name, file, bitmap};
    const {width, height} = image.display;
    marks = Object.assign(document.createElement("canvas"), {width, height});
    shapes = []; undone = []; results = {}; holes = []; filledShapes = "";
    brush = Math.max(4, Math.round(Math.min(image.width, image.height) * 0.06));
    $("name").textContent = $("name").title = file.name;
    const bits = image.depth === 16 ? ", 16 bits" : "";
    $("facts").textContent = [`${image.width} \u00d7 ${image.height} px${bits}`, ...image.notes].join("; ");
    $("depth").textContent = image.depth === 16 ? ", with all 16 bits" : "";
    $("other").hidden = false;
    $("result").hidden = true;
    stage.dataset.state = "open";
    say("Mark what to fill.");
    setMode("mark");
    showBrush();
    resize();
    fit();
    update();
  } catch (error) {
    showError(error);
    say("");
  } finally {
    if (turn === opening) $("welcome").querySelector("h1").textContent = "Drop an image here";
  }
}

function close() {
  fetch(url(""), {method: "DELETE", keepalive: true}).catch(() => {});
  image = null;
}

async function loadMask(file) {
  if (!file || !image) return;
  try {
    await checkFile(file);
    const query = `?name=${encodeURIComponent(file.name)}`;
    const loaded = await (await requestAgain(() => request(url("/masks") + query, {method: "POST", body: file}))).json();
    const overlay = await bitmapOf(url(`/masks/${loaded.number}`));
    add({kind: "loaded", erase: false, number: loaded.number, overlay, file});
    say(loaded.remark ?? `Mask ${file.name} loaded.`);
  } catch (error) { showError(error); }
}

// --- marks ----------------------------------------------------------------------------------

function paint(target, shape) {
  const scale = image.display.scale;
  target.save();
  target.globalCompositeOperation = shape.erase ? "destination-out" : "source-over";
  target.fillStyle = target.strokeStyle = MARK;
  if (shape.kind === "loaded") {
    const tinted = new OffscreenCanvas(marks.width, marks.height), t = tinted.getContext("2d");
    t.drawImage(shape.overlay, 0, 0);
    t.globalCompositeOperation = "source-in";
    t.fillStyle = MARK;
    t.fillRect(0, 0, marks.width, marks.height);
    target.drawImage(tinted, 0, 0);
  } else {
    target.scale(scale, scale);
    const points = shape.points;
    target.beginPath();
    target.moveTo(...points[0]);
    for (const point of points.slice(1)) target.lineTo(...point);
    if (shape.kind === "area") {
      target.closePath();
      target.fill("evenodd");
    } else {
      target.lineWidth = shape.width;
      target.lineCap = target.lineJoin = "round";
      target.stroke();
      if (points.every(([x, y]) => x === points[0][0] && y === points[0][1])) {  // no line, so no caps
        target.beginPath();
        target.arc(...points[0], shape.width / 2, 0, 2 * Math.PI);
        target.fill();
      }
    }
  }
  target.restore();
}

function repaint() {
  const target = marks.getContext("2d");
  target.clearRect(0, 0, marks.width, marks.height);
  for (const shape of shapes) paint(target, shape);
  update();
}

function add(shape) {
  shapes.push(shape);
  undone = [];
  paint(marks.getContext("2d"), shape);
  if (!filling && !results.filled) say("");
  setMode("mark");
  update();
}

function undo() { if (image && shapes.length) { undone.push(shapes.pop()); setMode("mark"); repaint(); } }
function redo() { if (image && undone.length) { shapes.push(undone.pop()); setMode("mark"); repaint(); } }
function clear() {
  undone = shapes.reverse();  // redo brings the marks back, one after the other
  shapes = [];
  repaint();
}

const rounded = (value) => Math.round(value * 100) / 100;

function asSent() {
  return {
    shapes: shapes.map(({overlay, file, ...shape}) => shape),
    grow: Number($("grow").value) || 0,
    feather: Number($("feather").value) || 0,
    texture: $("texture-on").checked ? Number($("texture").value) : 0,
    network: $("network").value,
    opencv: $("opencv").value,
  };
}

// --- filling --------------------------------------------------------------------------------

async function fill(event) {
  if (event.detail > 1) return;  // the second click of two does not stop what the first began
  if (filling) return stop();
  if (!image || !shapes.length) return;
  const controller = filling = new AbortController(), asked = asSent();
  const before = results, filled = image;
  let received = {}, failed = true, body = "";
  $("error").hidden = true;
  progress(0);
  say("Filling\u2026");
  update();
  try {
    const response = await requestAgain(() => {
      body = JSON.stringify({...asked, shapes: asSent().shapes});
      return request(url("/fill"), {method: "POST", body, signal: controller.signal});
    });
    let rest = "";
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (;;) {
      const {value, done} = await reader.read();
      if (done) break;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        const event = JSON.parse(line);
        if (event.event === "error") throw new Error(event.text);
        if (event.event === "waiting") say("Waiting for another fill to end\u2026");
        if (event.event === "progress") { progress(event.share); say(`Filling\u2026 ${Math.floor(event.share * 100)} %`); }
        if (!["draft", "filled", "opencv"].includes(event.event)) continue;
        const bitmap = await bitmapOf(url(`/shown/${event.event}`));
        if (controller.signal.aborted) throw new DOMException("", "AbortError");
        received = {...received, [event.event]: {...event, bitmap}};
        if (event.event === "filled") {
          delete received.draft;
          failed = false;
          filledShapes = body;
          showReport(event);
          if (asked.opencv !== "off") say(`Filled in ${seconds(event)}. ${labels[asked.opencv]} works\u2026`);
          else say(`Filled in ${seconds(event)}.`);
        }
        results = received;
        if (event.event === "opencv") {
          const text = `${event.label} ${seconds(event)}`;
          say(`Filled in ${seconds(results.filled)}; ${event.note}${text}.`);
          $("opencv-name").textContent = event.label;
        }
        if (event.event === "draft") {
          if (mode === "mark") splitAt(event.part);
          setMode("before");
          stage.scrollIntoView({block: "nearest"});
        }
        showCloseups();
        update();
      }
    }
  } catch (error) {
    if (image !== filled) return;  // another one is open now
    if (controller.signal.aborted) say("Stopped.");
    else { showError(error); say(""); }
    if (failed) { results = before.filled ? before : {}; if (!results.filled) setMode("mark"); }
  } finally {
    if (filling === controller) filling = null;
    progress(0);
    update();
  }
}

function stop() { filling?.abort(); }
const seconds = (event) => `${event.seconds.toFixed(event.seconds < 10 ? 1 : 0)} s`;
function progress(share) { $("fill").style.setProperty("--share", share); }

function showReport(event) {
  $("result").hidden = false;
  $("lines").replaceChildren(...event.lines.map((line) => Object.assign(document.createElement("li"), {textContent: line})));
  holes = event.holes;
  inView = 0;
  $("holes").hidden = holes.length < 2;
  $("holes").replaceChildren(...holes.map((hole, number) => {
    const chip = Object.assign(document.createElement("button"), {type: "button", textContent: `Hole ${number + 1}`});
    chip.onclick = () => { inView = number; lookAt(hole); splitAt(hole); showCloseups(); };
    return chip;
  }));
}

function showCloseups() {
  if (!results.filled) return $("closeups").replaceChildren();
  const [left, top, width, height] = holes[inView];
  // A square around the hole, moved into the image and not larger than that.
  const most = Math.min(image.display.width, image.display.height);
  const side = Math.min(most, Math.max(48 * image.display.scale, 1.8 * Math.max(width, height)));
  const within = (start, length, all) => Math.max(0, Math.min(all - side, start + length / 2 - side / 2));
  const x = within(left, width, image.display.width), y = within(top, height, image.display.height);
  const kinds = [["Original", []], ["Filled", [results.filled]]];
  if (results.opencv) kinds.push([results.opencv.label, [results.opencv]]);
  $("closeups").replaceChildren(...kinds.map(([label, layers]) => {
    const figure = document.createElement("figure"), close = document.createElement("canvas");
    close.width = close.height = 288;
    const c = close.getContext("2d"), scale = close.width / side;
    c.imageSmoothingQuality = "high";
    c.setTransform(scale, 0, 0, scale, -x * scale, -y * scale);
    c.drawImage(image.bitmap, 0, 0);
    for (const {bitmap, part} of layers) c.drawImage(bitmap, ...part);
    close.onclick = () => { lookAt(holes[inView]); splitAt(holes[inView]); };
    figure.append(close, Object.assign(document.createElement("figcaption"), {textContent: label}));
    return figure;
  }));
  [...$("holes").children].forEach((chip, n) => chip.setAttribute("aria-pressed", n === inView));
}

async function save(make, name, button) {
  const text = button.textContent;
  button.disabled = true;
  button.textContent = "Preparing\u2026";
  try {
    const blob = await (await make()).blob();
    const link = Object.assign(document.createElement("a"), {href: URL.createObjectURL(blob), download: name});
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  } catch (error) { showError(error); }
  button.textContent = text;
  button.disabled = false;
  update();
}

const stem = () => image.name.replace(/\.[^.]*$/, "") || "image";

// --- the stage ------------------------------------------------------------------------------

let frame = 0;

function update() {
  if (!frame) frame = requestAnimationFrame(() => { frame = 0; draw(); });
  const ready = image !== null, filled = ready && "filled" in results;
  const changed = filled && JSON.stringify(asSent()) !== filledShapes;
  $("undo").disabled = !shapes.length;
  $("redo").disabled = !undone.length;
  $("clear").disabled = !shapes.length;
  $("save-mask").disabled = !shapes.length;
  $("load-mask").disabled = !ready;
  $("fill").disabled = !ready || !(shapes.length || filling);
  $("fill").firstElementChild.textContent = filling ? "Stop" : filled && shapes.length && changed ? "Fill again" : "Fill";
  $("changed").hidden = !filled || !changed || Boolean(filling);
  $("modes").hidden = !filled && !results.draft;
  for (const button of $("modes").children) {
    button.setAttribute("aria-pressed", button.dataset.mode === mode);
    if (button.dataset.mode === "opencv") button.hidden = !results.opencv;
  }
  for (const button of document.querySelectorAll("[data-tool]")) {
    button.setAttribute("aria-pressed", button.dataset.tool === tool);
  }
  $("erase").setAttribute("aria-pressed", erase);
  document.querySelector(".size").hidden = tool !== "brush";
  $("fill").classList.toggle("busy", Boolean(filling));
  $("download").disabled = $("go-on").disabled = !filled;
  $("texture").disabled = !$("texture-on").checked;
  $("texture-text").textContent = $("texture-on").checked ? Number($("texture").value).toFixed(2) : "off";
}

function setMode(next) {
  if (next === "opencv" && !results.opencv) next = "before";
  mode = next;
  stage.dataset.mode = mode;
  update();
}

function resize() {
  const ratio = devicePixelRatio || 1;
  canvas.width = Math.round(stage.clientWidth * ratio);
  canvas.height = Math.round(stage.clientHeight * ratio);
  update();
}

function fit() {
  if (!image) return;
  lookAt([0, 0, image.display.width, image.display.height], 0.98, 4);
}

function lookAt([left, top, width, height], share = 0.4, most = 6) {
  // The bars above and below stay beside the image where there is room.
  const above = Math.max(64, $("tools").offsetHeight + 20), below = 64;
  const room = {width: stage.clientWidth - 32, height: stage.clientHeight - above - below};
  const scale = Math.min(share * room.width / width, share * room.height / height, most);
  view = {
    scale,
    x: stage.clientWidth / 2 - (left + width / 2) * scale,
    y: (stage.clientHeight + above - below) / 2 - (top + height / 2) * scale,
  };
  update();
}

function zoom(factor, x = stage.clientWidth / 2, y = stage.clientHeight / 2) {
  const least = 0.5 * Math.min(stage.clientWidth / image.display.width, stage.clientHeight / image.display.height, 1);
  const scale = Math.min(40, Math.max(least, view.scale * factor));
  view.x = x - (x - view.x) * scale / view.scale;
  view.y = y - (y - view.y) * scale / view.scale;
  view.scale = scale;
  update();
}

function draw() {
  if (!image) return;
  const ratio = devicePixelRatio || 1, width = stage.clientWidth, height = stage.clientHeight;
  const place = (c) => c.setTransform(ratio * view.scale, 0, 0, ratio * view.scale, ratio * view.x, ratio * view.y);
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingEnabled = view.scale * ratio < 3;
  context.imageSmoothingQuality = "high";
  place(context);
  context.drawImage(image.bitmap, 0, 0);
  const comparing = mode !== "mark" && mode !== "filled";
  const filled = results.filled ?? results.draft;
  const x = edge();
  if (comparing && filled) {
    if (mode === "opencv") context.drawImage(results.opencv.bitmap, ...results.opencv.part);
    context.save();
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.beginPath();
    context.rect(x, 0, width - x, height);
    context.clip();
    place(context);
    if (mode === "opencv") context.drawImage(image.bitmap, 0, 0);
    context.drawImage(filled.bitmap, ...filled.part);
    context.restore();
  } else if (mode === "filled" && filled) {
    context.drawImage(filled.bitmap, ...filled.part);
  } else {
    context.globalAlpha = 0.55;
    if (drawing && drawing.kind === "brush") {
      const both = drawing.preview;
      context.drawImage(both, 0, 0);
    } else context.drawImage(marks, 0, 0);
    context.globalAlpha = 1;
    if (drawing && drawing.kind === "area") outline(drawing.points);
    if (pointer && (tool === "brush" || byKeys)) cursor(ratio);
  }
  $("divider").hidden = $("left-label").hidden = $("right-label").hidden = !comparing;
  if (comparing) {
    $("divider").style.left = `${x}px`;
    $("divider").setAttribute("aria-valuenow", Math.round(100 * split));
    $("left-label").textContent = mode === "opencv" ? results.opencv.label : "Before";
    $("right-label").textContent = results.filled ? "Filled" : "Filled (draft)";
    $("left-label").style.right = `${width - x + 14}px`;
    $("right-label").style.left = `${x + 14}px`;
  }
  $("zoom-text").textContent = `${Math.round(view.scale * image.display.scale * 100)} %`;
}

// Where the boundary is: a share of what is visible of the image, CSS pixels.
function span() {
  const left = Math.max(0, view.x);
  const right = Math.min(stage.clientWidth, view.x + image.display.width * view.scale);
  return right > left ? [left, right] : [0, stage.clientWidth];
}
function edge() { const [left, right] = span(); return left + split * (right - left); }

// The boundary through the middle of a part of the image, if that is in view.
function splitAt([left, , width]) {
  const [from, to] = span(), x = view.x + (left + width / 2) * view.scale;
  split = Math.min(0.9, Math.max(0.1, (x - from) / (to - from)));
}

function outline(points) {
  const scale = image.display.scale;
  context.beginPath();
  for (const [x, y] of points) context.lineTo(x * scale, y * scale);
  context.closePath();
  context.globalAlpha = 0.3;
  context.fillStyle = MARK;
  context.fill("evenodd");
  context.globalAlpha = 1;
  context.lineWidth = 1.5 / view.scale;
  context.strokeStyle = "#fff";
  context.stroke();
}

function cursor(ratio) {
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.beginPath();
  context.arc(pointer[0], pointer[1], tool === "brush" ? Math.max(2, brush / 2 * image.display.scale * view.scale) : 5, 0, 7);
  context.lineWidth = 3;
  context.strokeStyle = "#0008";
  context.stroke();
  context.lineWidth = 1.5;
  context.strokeStyle = erase ? "#9fe0ff" : "#fff";
  context.stroke();
}

// --- pointers -------------------------------------------------------------------------------

const pointers = new Map();
let panning = null, held = false;  // the space bar is held
let byKeys = false;                // the pointer was last moved by the arrow keys

const at = (event) => {
  const box = canvas.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
};
const toImage = ([x, y]) => {
  const scale = view.scale * image.display.scale;
  return [rounded((x - view.x) / scale), rounded((y - view.y) / scale)];
};

// Begin a shape at a point of the stage, continue it, and end it.
function begin(place, away) {
  const point = toImage(place);
  if (tool === "brush") {
    drawing = {kind: "brush", erase: away, width: brush, points: [point]};
    drawing.preview = Object.assign(document.createElement("canvas"), {width: marks.width, height: marks.height});
    drawing.preview.getContext("2d").drawImage(marks, 0, 0);
    paint(drawing.preview.getContext("2d"), drawing);
  } else drawing = {kind: "area", erase: away, points: [point]};
}

function end() {
  const {preview, ...shape} = drawing;
  drawing = null;
  if (shape.kind === "brush" || shape.points.length > 2) add(shape);
}

canvas.addEventListener("pointerdown", (event) => {
  if (!image) return;
  if (drawing && !pointers.size) end();  // begun by keys
  byKeys = false;
  canvas.dataset.pointed = "";  // no outline, as the keys are not used
  canvas.focus({preventScroll: true});
  canvas.setPointerCapture(event.pointerId);
  pointers.set(event.pointerId, at(event));
  if (pointers.size >= 2) {  // two fingers move and zoom; more change nothing
    drawing = null;
    panning = "fingers";
  } else if (event.button === 1 || held || mode !== "mark") {
    panning = "pointer";
  } else if (event.button === 0) {
    begin(at(event), erase || event.altKey);
  }
  update();
  event.preventDefault();
});

canvas.addEventListener("pointermove", (event) => {
  if (!image) return;
  const [x, y] = pointer = at(event);
  byKeys = false;
  const last = pointers.get(event.pointerId);
  if (last && panning) {
    if (panning === "fingers" && pointers.size === 2) {
      const other = [...pointers].find(([id]) => id !== event.pointerId)[1];
      const distance = (a) => Math.hypot(a[0] - other[0], a[1] - other[1]);
      zoom(distance([x, y]) / Math.max(1, distance(last)), (x + other[0]) / 2, (y + other[1]) / 2);
    }
    const share = panning === "fingers" ? 0.5 : 1;
    view.x += share * (x - last[0]);
    view.y += share * (y - last[1]);
  } else if (last && drawing) {
    const events = event.getCoalescedEvents?.() ?? [];
    for (const step of events.length ? events : [event]) extend(toImage(at(step)));
  }
  if (last) pointers.set(event.pointerId, [x, y]);
  update();
});

function extend(point) {
  const points = drawing.points, [x0, y0] = points[points.length - 1];
  if (tool === "box") {
    const [[x, y]] = points;
    drawing.points = [[x, y], [point[0], y], point, [x, point[1]]];
  } else if (Math.hypot(point[0] - x0, point[1] - y0) >= Math.max(0.5 / view.scale, 0.03 * (drawing.width ?? 0))) {
    points.push(point);
    if (drawing.kind === "brush") {
      paint(drawing.preview.getContext("2d"), {...drawing, points: points.slice(-2)});
    }
  }
}

function release(event) {
  pointers.delete(event.pointerId);
  if (drawing && event.type === "pointerup") end();
  drawing = null;
  if (!pointers.size) panning = null;
  if (event.pointerType === "touch") pointer = null;
  update();
}
canvas.addEventListener("pointerup", release);
canvas.addEventListener("pointercancel", release);
canvas.addEventListener("pointerleave", () => { if (!byKeys) pointer = null; update(); });
canvas.addEventListener("blur", () => { delete canvas.dataset.pointed; if (byKeys) { drawing = pointer = null; byKeys = false; update(); } });
canvas.addEventListener("keydown", (event) => {  // marks without a pointer
  if (!image || pointers.size || event.ctrlKey || event.metaKey) return;
  const step = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key];
  if (!step && event.key !== "Enter") return;
  event.preventDefault();
  if (mode !== "mark") return setMode("mark");
  const size = [stage.clientWidth, stage.clientHeight], length = event.shiftKey ? 40 : 8;
  const from = pointer ?? size.map((all) => all / 2);
  pointer = from.map((value, axis) => Math.min(size[axis], Math.max(0, value + length * (step?.[axis] ?? 0))));
  byKeys = true;
  if (event.key === "Enter" && !event.repeat) drawing ? end() : begin(pointer, erase || event.altKey);
  else if (drawing) extend(toImage(pointer));
  update();
});
canvas.addEventListener("wheel", (event) => {
  if (!image) return;
  event.preventDefault();
  zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0015)), ...at(event));
}, {passive: false});

$("divider").addEventListener("pointerdown", (event) => {
  const divider = $("divider");
  divider.setPointerCapture(event.pointerId);
  divider.onpointermove = (move) => {
    const [left, right] = span();
    split = Math.min(1, Math.max(0, (at(move)[0] - left) / (right - left)));
    update();
  };
  divider.onpointerup = divider.onpointercancel = () => { divider.onpointermove = null; };
});
$("divider").addEventListener("keydown", (event) => {
  const step = {ArrowLeft: -0.02, ArrowDown: -0.02, ArrowRight: 0.02, ArrowUp: 0.02, Home: -1, End: 1}[event.key];
  if (step === undefined) return;
  split = Math.min(1, Math.max(0, split + step));
  event.preventDefault();
  update();
});

// --- controls -------------------------------------------------------------------------------

// The size of the brush on a logarithmic scale, from 1 pixel to half of the image.
const largest = () => Math.max(16, Math.max(image.width, image.height) / 2);
function showBrush() {
  $("size").value = Math.log(brush) / Math.log(largest());
  $("size-text").textContent = `${brush} px`;
  update();
}
function setBrush(size) { brush = Math.round(Math.min(largest(), Math.max(1, size))); showBrush(); }

$("size").oninput = () => setBrush(largest() ** Number($("size").value));
for (const button of document.querySelectorAll("[data-tool]")) button.onclick = () => { tool = button.dataset.tool; update(); };
for (const button of $("modes").children) button.onclick = () => setMode(button.dataset.mode);
$("erase").onclick = () => { erase = !erase; update(); };
$("undo").onclick = undo;
$("redo").onclick = redo;
$("clear").onclick = clear;
$("fill").onclick = fill;
$("fit").onclick = fit;
$("zoom-in").onclick = () => zoom(1.4);
$("zoom-out").onclick = () => zoom(1 / 1.4);
$("open").onclick = $("other").onclick = () => $("file-input").click();
$("load-mask").onclick = () => $("mask-input").click();
$("file-input").onchange = (event) => { openImage(event.target.files[0]); event.target.value = ""; };
$("mask-input").onchange = (event) => { loadMask(event.target.files[0]); event.target.value = ""; };
const mask = () => request(url("/mask.png"), {method: "POST", body: JSON.stringify(asSent())});
$("save-mask").onclick = (event) => save(() => requestAgain(mask), `${stem()}-mask.png`, event.target);
async function result() {
  try { return await request(url("/result.png")); } catch (error) {
    if (error.gone) throw new Error("the program was started again, or has more images open than it keeps: fill again");
    throw error;
  }
}
const filledName = () => `${stem().replace(/-filled$/, "")}-filled.png`;
$("download").onclick = (event) => save(result, filledName(), event.target);
$("go-on").onclick = async () => {
  const name = filledName();
  say("Opening the result\u2026");
  try { await openImage(new File([await (await result()).blob()], name)); } catch (error) { showError(error); say(""); }
};
$("error").lastElementChild.onclick = () => { $("error").hidden = true; };
for (const id of ["grow", "feather", "texture", "texture-on", "network", "opencv"]) $(id).addEventListener("input", update);
for (const id of ["grow", "feather"]) {
  $(id).addEventListener("change", (event) => {
    event.target.value = Math.min(1000, Math.max(0, Math.round(Number(event.target.value)) || 0));
    update();
  });
}

addEventListener("keydown", (event) => {
  if (!image || event.target.matches("input:not([type=range], [type=checkbox]), select")) return;
  const key = event.key.toLowerCase();
  if (event.ctrlKey || event.metaKey) {
    if (key === "z") { event.preventDefault(); event.shiftKey ? redo() : undo(); }
    if (key === "y") { event.preventDefault(); redo(); }
    return;
  }
  if (key === " " && event.target === canvas) { held = true; event.preventDefault(); }
  const tools = {b: "brush", l: "lasso", r: "box"};
  if (tools[key]) { tool = tools[key]; setMode("mark"); }
  if (key === "e") { erase = !erase; update(); }
  if (key === "[") setBrush(Math.min(brush - 1, brush / 1.2));
  if (key === "]") setBrush(Math.max(brush + 1, brush * 1.2));
  if (key === "0") fit();
  if (key === "escape") { drawing = null; $("error").hidden = true; update(); }
});
addEventListener("keyup", (event) => { if (event.key === " ") held = false; });

// Drops anywhere on the page; the counter is needed since children fire their own events.
let over = 0;
addEventListener("dragenter", (event) => { event.preventDefault(); over++; $("drop").hidden = false; });
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("dragleave", () => { if (--over <= 0) { over = 0; $("drop").hidden = true; } });
addEventListener("drop", (event) => {
  event.preventDefault();
  over = 0;
  $("drop").hidden = true;
  const files = event.dataTransfer.files;
  if (files.length === 1) (event.target.closest?.("#hole") && image ? loadMask : openImage)(files[0]);
  else showError(new Error(files.length ? `drop one image at a time, not ${files.length}` : "what was dropped is not a file; save the image and drop its file"));
});
addEventListener("paste", (event) => openImage([...event.clipboardData.files].find((file) => file.type.startsWith("image/"))));
addEventListener("resize", resize);
addEventListener("pagehide", () => { if (image) close(); });
addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });  // its image is gone
new ResizeObserver(resize).observe(stage);

// --- start ----------------------------------------------------------------------------------

const option = (value, text) => Object.assign(document.createElement("option"), {value, textContent: text});

async function start() {
  const about = await (await request("/api/about")).json();
  $("version").textContent = `context-encoder ${about.version}`;
  $("network").append(...Object.entries(about.networks).map(([name, text]) => option(name, text)));
  labels = about.opencv;
  largestUpload = about.upload;
  $("opencv").append(...Object.entries(labels).map(([name, text]) => option(name, text)));
  $("opencv").append(option("off", Object.keys(labels).length ? "nothing" : "nothing (OpenCV is not installed)"));
  $("texture").value = about.texture;
  $("examples").hidden = !about.examples.length;
  for (const name of about.examples) {
    const button = Object.assign(document.createElement("button"), {type: "button", title: name});
    button.append(Object.assign(document.createElement("img"), {src: `/examples/${name}`, alt: name}));
    button.onclick = async () => {
      const blob = await (await request(`/examples/${name}`)).blob();
      openImage(new File([blob], name));
    };
    $("examples").querySelector(".row").append(button);
  }
  stage.dataset.mode = mode;
  update();
}

start().catch(showError);
