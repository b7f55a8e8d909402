// Draws the wall from props.value and keeps every clip on the same frame.
// A frame is met in its middle, (n + 0.5) / fps: at its edge a browser may show the one before.
const root = element.querySelector(".wall");
const HALF = 0.5;
const SPEEDS = [0.25, 0.5, 1, 2];

const control = (text, label, act, className) => {
  const node = make("button", className || "key", text);
  node.type = "button";
  node.title = label;
  node.setAttribute("aria-label", label);
  node.addEventListener("mousedown", (event) => event.preventDefault()); // leave Space to the wall
  node.addEventListener("click", act);
  return node;
};

// --- what stands still ---
const transport = make("div", "transport");
const toStart = control("|<", "To the first frame (Home)", () => seek(0));
const back = control("<", "One frame back (,)", () => step(-1));
const playButton = control("Play", "Play or pause (Space)", () => toggle(), "key main");
const forward = control(">", "One frame on (.)", () => step(1));
const counter = make("output", "timecode", "");
const bar = make("input", "seek");
bar.type = "range";
bar.min = 0;
bar.step = 1;
bar.setAttribute("aria-label", "Frame");
bar.addEventListener("input", () => seek(Number(bar.value)));
const speed = make("select", "speed");
speed.setAttribute("aria-label", "Speed");
for (const rate of SPEEDS) {
  const option = make("option", "", `${rate}x`);
  option.value = rate;
  speed.append(option);
}
speed.value = "1";
speed.addEventListener("change", () => everyVideo((video) => { video.playbackRate = Number(speed.value); }));
const loop = control("Loop", "Start again after the last frame", () => setLoop(!looping), "key toggle");
transport.append(toStart, back, playButton, forward, counter, bar, speed, loop);

const scroller = make("div", "scroller");
scroller.tabIndex = 0;
scroller.setAttribute("role", "region");
scroller.setAttribute("aria-label", "Clips");
const grid = make("div", "grid");
scroller.append(grid);
const empty = make("div", "empty");

const dialog = make("dialog", "large");
const largeTitle = make("div", "large-title");
const largeSub = make("div", "large-sub");
const largeStage = make("div", "large-stage");
const close = control("Close", "Close (Esc)", () => dialog.close(), "key");
const largeHead = make("div", "large-head");
const largeText = make("div", "large-text");
largeText.append(largeTitle, largeSub);
largeHead.append(largeText, close);
largeStage.tabIndex = 0;
largeStage.autofocus = true; // not the button: Space plays
dialog.append(largeHead, largeStage);
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
dialog.addEventListener("close", () => {
  forget(largeStage);
  largeStage.replaceChildren();
  root.prepend(transport);
});
root.append(transport, scroller, empty, dialog);

// --- state ---
let fps = 8;
let frames = 1;
let frame = 0; // what the counter shows while paused
let playing = false;
let looping = true;
let started = false; // whether autoplay has been answered once
const cells = new Map(); // "row,column" -> {node, key, video}
const visible = new Set();

const watcher = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (isIntersecting) {
      visible.add(target);
      join(target);
    } else {
      visible.delete(target);
      target.pause();
    }
  }
});

function everyVideo(act) {
  for (const video of root.querySelectorAll("video")) act(video);
}
const middle = (n) => (n + HALF) / fps;
const clamp = (n) => Math.min(Math.max(n, 0), frames - 1);
const ready = (video) => video.readyState >= 1 && Number.isFinite(video.duration);

// The longest of the clips in view; the others follow it.
function leader() {
  let best = null;
  for (const video of visible) {
    if (!ready(video) || !video.isConnected) continue;
    if (best === null || video.duration > best.duration + 0.001) best = video;
  }
  return best;
}
function now() {
  const first = playing ? leader() : null;
  return first ? clamp(Math.floor(first.currentTime * fps)) : frame;
}
// Put a clip where the others are; called when it has loaded and when it comes into view.
function join(video) {
  if (!ready(video)) return;
  const first = leader();
  video.playbackRate = Number(speed.value);
  if (!playing) video.currentTime = middle(frame);
  else if (visible.has(video)) {
    video.currentTime = first && first !== video ? first.currentTime : middle(frame);
    start(video);
  }
}
function start(video) {
  const promise = video.play();
  if (promise) promise.catch(() => {}); // a pause overtook it
}
function show() {
  const n = now();
  const digits = String(frames).length;
  counter.textContent = `frame ${String(n + 1).padStart(Math.max(2, digits), "0")} / ${frames}`;
  bar.value = n;
  bar.setAttribute("aria-valuetext", counter.textContent);
  bar.style.setProperty("--done", `${frames > 1 ? (100 * n) / (frames - 1) : 100}%`);
  playButton.textContent = playing ? "Pause" : "Play";
  root.dataset.frame = n;
  root.dataset.playing = playing;
}
function snap(n) {
  frame = clamp(n);
  everyVideo((video) => { if (ready(video)) video.currentTime = middle(frame); });
  show();
}
function play() {
  if (playing) return;
  playing = true;
  if (frame >= frames - 1) frame = 0;
  everyVideo((video) => {
    if (!ready(video)) return;
    video.playbackRate = Number(speed.value);
    video.currentTime = middle(frame);
    if (visible.has(video)) start(video);
  });
  show();
  requestAnimationFrame(tick);
}
function pause(at) {
  const n = at === undefined ? now() : at;
  playing = false;
  everyVideo((video) => video.pause());
  snap(n);
}
function toggle() { if (playing) pause(); else play(); }
function seek(n) { snap(n); if (playing) everyVideo((video) => { if (visible.has(video)) start(video); }); }
function step(by) {
  const n = now() + by;
  pause(looping ? (n + frames) % frames : clamp(n));
}
function setLoop(on) {
  looping = on;
  loop.setAttribute("aria-pressed", String(on));
}
setLoop(true);

function tick() {
  if (!playing || !root.isConnected) return;
  const first = leader();
  if (first && !first.seeking) {
    if (first.ended || first.currentTime >= frames / fps) {
      if (!looping) return pause(frames - 1);
      everyVideo((video) => {
        if (!ready(video)) return;
        video.currentTime = middle(0);
        if (visible.has(video)) start(video);
      });
      frame = 0;
    } else {
      frame = clamp(Math.floor(first.currentTime * fps));
      for (const video of visible) {
        if (video === first || !ready(video) || video.seeking) continue;
        if (Math.abs(video.currentTime - first.currentTime) > HALF / fps) video.currentTime = first.currentTime;
        if (video.paused && !video.ended) start(video);
      }
      if (first.paused) start(first);
    }
  }
  show();
  requestAnimationFrame(tick);
}

// --- drawing ---
function clip(source, label) {
  const video = make("video");
  video.muted = true;
  video.playsInline = true;
  video.preload = "auto";
  video.disablePictureInPicture = true;
  video.setAttribute("aria-label", label);
  video.addEventListener("loadedmetadata", () => join(video));
  video.src = source;
  watcher.observe(video);
  return video;
}
function forget(node) {
  for (const video of node.querySelectorAll("video")) {
    watcher.unobserve(video);
    visible.delete(video);
    video.pause();
    video.removeAttribute("src");
    video.load();
  }
}
function enlarge(cell) {
  forget(largeStage);
  largeTitle.textContent = cell.row.prompt;
  largeSub.textContent = cell.caption;
  largeStage.replaceChildren(clip(cell.source, cell.row.prompt));
  dialog.append(transport); // what is outside a modal dialog cannot be reached
  if (!dialog.open) dialog.showModal();
}
function fill(cell, data, pending) {
  const source = data && data.video ? data.video.url || data.video.path : null;
  const kind = source ? "clip" : data && data.error ? "failed" : "waiting";
  cell.node.dataset.state = kind;
  if (cell.source !== source || !cell.stage) {
    forget(cell.node);
    cell.node.replaceChildren();
    cell.source = source;
    cell.stage = make(source ? "button" : "div", "stage");
    if (source) {
      cell.stage.type = "button";
      cell.stage.addEventListener("click", () => enlarge(cell));
      cell.stage.append(clip(source, cell.row.prompt));
    }
    cell.foot = make("div", "foot");
    cell.node.append(cell.stage, cell.foot);
  }
  if (source) cell.stage.setAttribute("aria-label", `Enlarge ${cell.caption}: ${cell.row.prompt}`);
  else cell.stage.textContent = kind === "failed" ? data.error : pending;
  cell.foot.textContent = (source && data.note) || "";
  cell.foot.hidden = !cell.foot.textContent;
}
let drawn = "";
function build() {
  const value = props.value || {};
  const columns = value.columns || [];
  const rows = value.rows || [];
  const same = value.name === drawn;
  drawn = value.name;
  if (!same) started = false;
  fps = value.fps > 0 ? value.fps : 8;
  frames = value.frames > 0 ? value.frames : 1;
  bar.max = frames - 1;
  const any = rows.length > 0 && columns.length > 0;
  scroller.hidden = !any;
  transport.hidden = !any || !(value.cells || []).flat().some((cell) => cell && cell.video);
  empty.hidden = any;
  empty.textContent = value.empty || "";
  if (value.width > 0 && value.height > 0) grid.style.setProperty("--shape", `${value.width} / ${value.height}`);
  else grid.style.removeProperty("--shape");
  for (const node of [grid, dialog]) node.classList.toggle("pixels", value.width > 0 && value.width <= 128);
  grid.style.setProperty("--columns", columns.length);

  const placed = [make("div", "corner")];
  for (const column of columns) {
    const head = make("div", "column-head");
    head.append(make("b", "", column.label), make("span", "", column.sub || ""));
    if (column.mark) head.append(make("em", "", column.mark));
    placed.push(head);
  }
  const seen = new Set();
  rows.forEach((row, r) => {
    const head = make("div", "row-head");
    const text = make("div", "row-text");
    if (row.look) {
      const image = make("img", "look");
      image.src = row.look;
      image.alt = "The image that these clips begin from";
      text.append(image);
    }
    const words = make("div", "words");
    words.append(make("b", "", row.prompt));
    if (row.seed !== undefined && row.seed !== null) words.append(make("span", "", `seed ${row.seed}`));
    text.append(words);
    head.append(text);
    placed.push(head);
    columns.forEach((column, c) => {
      const id = JSON.stringify([value.name, row.prompt, row.seed, column.key === undefined ? c : column.key, r]);
      seen.add(id);
      let cell = cells.get(id);
      if (!cell) {
        cell = { node: make("div", "cell"), source: null, stage: null };
        cells.set(id, cell);
      }
      cell.row = row;
      cell.caption = [column.label, column.sub].filter(Boolean).join(", ");
      fill(cell, (value.cells && value.cells[r] && value.cells[r][c]) || null, value.pending || "waiting");
      placed.push(cell.node);
    });
  });
  for (const [id, cell] of cells) {
    if (seen.has(id)) continue;
    forget(cell.node);
    cell.node.remove();
    cells.delete(id);
  }
  place(grid, placed);
  if (!same) {
    playing = false;
    snap(0);
  }
  const still = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
  if (value.autoplay && !started && !still && root.querySelector("video")) {
    started = true;
    play();
  }
  show();
}

// --- keys ---
function typing(node) {
  if (!node) return false;
  if (node.isContentEditable || node.tagName === "TEXTAREA" || node.tagName === "SELECT") return true;
  return node.tagName === "INPUT" && !["range", "checkbox", "radio", "button"].includes(node.type);
}
function pressed(event) {
  if (!root.isConnected) return document.removeEventListener("keydown", pressed);
  const active = document.activeElement;
  if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || typing(active)) return;
  if (root.offsetParent === null || transport.hidden) return;
  if (event.key === " " && active && active.closest("button, a, summary, [role=tab], [role=button]")) return;
  const act = { " ": toggle, ",": () => step(-1), ".": () => step(1), Home: () => seek(0) }[event.key];
  if (!act) return;
  event.preventDefault();
  act();
}
document.addEventListener("keydown", pressed);

watch("value", build);
build();
