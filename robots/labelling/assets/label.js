"use strict";
// One episode at a time: fetch its film, play it, write the label, go to the next one without.

const $ = id => document.getElementById(id);
const KEPT = 48;          // decoded pictures in memory
let all = null;           // what /state says
let at = 0;               // place of the episode on the screen, in all.episodes
let film = null;          // {head, pictures}; null while it is being fetched
let step = 0, began = null, mark = null, busy = false;
let asked = 0;            // films that were asked for: only the latest answer counts
const coming = new Map(); // episode -> promise of its film
const before = [];        // what labels replaced: {place, label}

async function start() {
  all = await (await checked(fetch("state"))).json();
  $("name").textContent = all.name;
  $("file").textContent = all.file;
  $("mark").title = all.marks ? "" :
    "The dataset does not say how many steps a second has, so moments mean nothing in it.";
  all.episodes.forEach((one, place) => {
    const button = document.createElement("button");
    button.textContent = one.episode;
    button.onclick = () => show(place);
    $("episodes").append(button);
  });
  show(Math.max(0, open_after(-1)));
}

async function checked(request) {
  let answer;
  try { answer = await request; } catch { throw Error("genpol label is not running any more."); }
  if (!answer.ok) throw Error((await answer.text()) || `HTTP ${answer.status}`);
  return answer;
}

function post(path, body) {
  return checked(fetch(path, {method: "POST", headers: {"Content-Type": "application/json"},
    body: JSON.stringify(body)}));
}

// The next place, round the end, of which nobody has said anything; -1 when there is none.
function open_after(place) {
  const many = all.episodes.length;
  for (let i = 1; i <= many; i++) {
    const one = all.episodes[(place + i + many) % many];
    if (one.label === null && one.said === null) return (place + i + many) % many;
  }
  return -1;
}

function fetch_film(place) {
  const episode = all.episodes[place].episode;
  if (!coming.has(episode)) {
    if (coming.size > 3) coming.delete(coming.keys().next().value);
    const promise = read_film(episode);
    promise.catch(() => coming.delete(episode));
    coming.set(episode, promise);
  }
  return coming.get(episode);
}

async function read_film(episode) {
  const bytes = await (await checked(fetch(`film/${episode}`))).arrayBuffer();
  const end = new Uint8Array(bytes).indexOf(10);
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(bytes, 0, end)));
  const pictures = [];
  let from = end + 1;
  for (const size of head.sizes) {
    pictures.push(new Blob([new Uint8Array(bytes, from, size)], {type: "image/jpeg"}));
    from += size;
  }
  return {head, pictures, decoded: new Map()};
}

async function show(place) {
  const mine = ++asked;
  at = place; film = null; began = null; step = 0;
  const one = all.episodes[at];
  mark = one.label ? one.label.moment : null;
  $("trouble").textContent = "";
  refresh();
  try {
    const found = await fetch_film(at);
    if (mine !== asked) return;
    film = found;
    layout();
    await draw();
    play(true);
    const next = open_after(at);
    if (next >= 0 && next !== at) fetch_film(next).catch(() => {});
  } catch (error) {
    if (mine === asked) trouble(error);
  }
  refresh();
}

function trouble(error) { $("trouble").textContent = error.message; }

// -- what is on the screen

function refresh() {
  const episodes = all.episodes, one = episodes[at], many = episodes.length;
  const labelled = episodes.filter(e => e.label !== null).length;
  const said = episodes.filter(e => e.label === null && e.said !== null).length;
  $("labelled").style.width = `${100 * labelled / many}%`;
  $("said").style.width = `${100 * said / many}%`;
  $("progress").setAttribute("aria-valuemax", many);
  $("progress").setAttribute("aria-valuenow", labelled);
  const yes = episodes.filter(e => e.label && e.label.success === true).length;
  const no = episodes.filter(e => e.label && e.label.success === false).length;
  const few = (n, one, more) => `${n} ${n === 1 ? one : more}`;
  $("counts").textContent = `${labelled} of ${many} labelled: ` +
    `${few(yes, "success", "successes")}, ${few(no, "failure", "failures")}, ` +
    `${labelled - yes - no} skipped` + (said ? `. Of ${said} more the data says it` : "") +
    (labelled + said === many ? ". All done." : "");
  document.title = `${labelled} of ${many} labelled`;
  const word = label => label === null ? "" : label.success === null ? ", labelled: skipped" :
    `, labelled: ${label.success ? "success" : "failure"}` ;
  const own = one.said === null ? "" : `, the data says: ${one.said ? "success" : "failure"}`;
  const prompt = film && film.head.prompt ? ` “${film.head.prompt}”` : "";
  $("title").textContent = `Episode ${one.episode}, ${one.steps} steps${own}${word(one.label)}.` +
    (film ? prompt : " Loading the film …");
  [...$("episodes").children].forEach((button, place) => {
    const {label, said: says} = episodes[place];
    const kind = label !== null ? {true: "yes", false: "no", null: "left"}[label.success] :
      says !== null ? (says ? "said-yes" : "said-no") : "";
    const now = kind + (place === at ? " here" : "");
    if (button.className !== now) button.className = now;
    if (place === at) {  // only the list is scrolled: the page stands still under the mouse
      const list = $("episodes"), top = button.offsetTop - list.offsetTop;
      if (top < list.scrollTop || top + button.offsetHeight > list.scrollTop + list.clientHeight)
        list.scrollTop = top - list.clientHeight / 2;
    }
  });
  for (const id of ["success", "failure", "skip"]) $(id).disabled = busy || film === null;
  $("mark").disabled = busy || film === null || !all.marks;
  $("undo").disabled = busy || before.length === 0;
  $("play").textContent = began === null ? "Play" : "Stop";
  clock();
}

function layout() {
  const {head, pictures} = film;
  $("step").max = head.steps;
  $("film").className = pictures.length ? "" : "none";
  $("human").replaceChildren(...head.human.map(([first, end]) => {
    const bar = document.createElement("i");
    bar.style.left = `${100 * first / head.steps}%`;
    bar.style.width = `${100 * (end - first) / head.steps}%`;
    bar.title = "a human acted";
    return bar;
  }));
  $("curves").replaceChildren(...head.curves.map(curve => {
    const figure = document.createElement("figure"), canvas = document.createElement("canvas");
    const low = Math.min(...curve.values), high = Math.max(...curve.values);
    figure.append(`${curve.name} (${low} to ${high})`, canvas);
    return figure;
  }));
}

function clock() {
  const seconds = n => `${n.toFixed(2)} s`;
  const head = film ? film.head : null;
  $("step").value = step;
  $("clock").textContent = head ? `${seconds(step / head.fps)} of ${seconds(head.steps / head.fps)}` : "";
  $("moment").style.left = head && mark !== null ? `${100 * mark * head.fps / head.steps}%` : "0";
  $("moment").textContent = head && mark !== null ? "\u200b" : "";
  $("moment").title = mark === null ? "" : `marked: ${seconds(mark)}`;
}

async function draw() {
  const now = film, wanted = step;
  draw_curves();
  clock();
  if (!now.pictures.length) return;
  const number = now.head.frames[wanted];
  if (!now.decoded.has(number)) {
    if (now.decoded.size >= KEPT) {
      const [oldest, picture] = now.decoded.entries().next().value;
      now.decoded.delete(oldest);
      picture.close();
    }
    now.decoded.set(number, await createImageBitmap(now.pictures[number]));
  }
  const picture = now.decoded.get(number);
  if (now !== film || wanted !== step || !picture) return;  // meanwhile another is due
  const canvas = $("film");
  if (canvas.width !== picture.width || canvas.height !== picture.height) {
    canvas.width = picture.width; canvas.height = picture.height;
  }
  if (picture.height < 200) canvas.className = "small";
  canvas.getContext("2d").drawImage(picture, 0, 0);
}

function draw_curves() {
  [...$("curves").querySelectorAll("canvas")].forEach((canvas, i) => {
    const {values} = film.head.curves[i], pen = canvas.getContext("2d");
    const width = canvas.width = 2 * canvas.clientWidth, height = canvas.height = 88;
    const low = Math.min(...values), span = Math.max(...values) - low || 1;
    const x = t => width * t / Math.max(1, film.head.steps);
    pen.strokeStyle = "#0a66c2"; pen.lineWidth = 3; pen.beginPath();
    values.forEach((value, t) => pen.lineTo(x(t), height - 6 - (height - 12) * (value - low) / span));
    pen.stroke();
    pen.strokeStyle = "#c0272d"; pen.lineWidth = 2; pen.beginPath();
    pen.moveTo(x(step), 0); pen.lineTo(x(step), height); pen.stroke();
  });
}

// -- time

function play(on) {
  if (!film) return;
  if (on && step >= film.head.steps) step = 0;
  began = on ? {time: performance.now(), step} : null;
  refresh();
  if (on) requestAnimationFrame(tick);
}

function tick() {
  if (began === null || !film) return;
  const rate = film.head.fps * Number($("speed").value) / 1000;
  step = Math.min(film.head.steps, Math.floor(began.step + rate * (performance.now() - began.time)));
  draw();
  if (step >= film.head.steps) { began = null; refresh(); } else requestAnimationFrame(tick);
}

function go(to) {
  if (!film) return;
  began = null;
  step = Math.max(0, Math.min(film.head.steps, to));
  refresh();
  draw();
}

// -- labels

async function label(success) {
  if (busy || film === null) return;
  const place = at, old = all.episodes[place].label;
  await change(place, {success, moment: success === null ? null : mark}, () => {
    before.push({place, label: old});
    const next = open_after(place);
    show(next >= 0 ? next : place);
  });
}

async function change(place, value, then) {
  busy = true; refresh();
  try {
    await post("label", {episode: all.episodes[place].episode, label: value});
    all.episodes[place].label = value;
    $("trouble").textContent = "";
    then();
  } catch (error) { trouble(error); }
  busy = false; refresh();
}

async function undo() {
  if (busy || !before.length) return;
  const {place, label: old} = before[before.length - 1];
  await change(place, old, () => { before.pop(); show(place); });
}

async function set_mark() {
  if (busy || !film || !all.marks) return;
  const place = at, now = all.episodes[place].label;
  const moment = step / film.head.fps;
  mark = mark === moment ? null : moment;  // pressed twice at one place, the mark goes
  clock();
  if (now && now.success !== null && now.moment !== mark)
    await change(place, {success: now.success, moment: mark}, () => before.push({place, label: now}));
}

async function finish() {
  try { await post("done", {}); } catch (error) { return trouble(error); }
  document.body.replaceChildren("The labels are written. This page can be closed.");
}

const KEYS = {
  s: () => label(true), f: () => label(false), x: () => label(null), m: set_mark, u: undo,
  n: () => show((at + 1) % all.episodes.length),
  p: () => show((at + all.episodes.length - 1) % all.episodes.length),
  " ": () => play(began === null),
  ArrowLeft: () => go(step - 1), ArrowRight: () => go(step + 1),
};
const HELD = ["ArrowLeft", "ArrowRight"];  // keys that may repeat

document.addEventListener("keydown", event => {
  const does = all && KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!does || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  if (event.repeat && !HELD.includes(event.key)) return;
  does();
});
for (const [id, does] of Object.entries({success: "s", failure: "f", skip: "x", mark: "m", undo: "u",
  play: " "})) $(id).onclick = () => { KEYS[does](); $(id).blur(); };
$("done").onclick = finish;
$("step").oninput = () => go(Number($("step").value));
$("speed").onchange = () => { if (began) began = {time: performance.now(), step}; $("speed").blur(); };
start().catch(trouble);
