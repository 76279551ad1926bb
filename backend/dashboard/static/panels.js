// Panels: what the backend made of the records is shown, with its age. Charts are plotly's; nothing is computed here.

import { RIGHT, ageText, byId, element, timeText, written } from "./format.js";
import { read } from "./wire.js";

const panels = new Map();
let explain = () => {};
let plotly;

export function load(onDecision) {
  explain = onDecision;
  for (const section of document.querySelectorAll("[data-panel]")) {
    panels.set(section.dataset.panel, { section, text: "", told: null, heardAt: 0, asked: 0 });
  }
  byId("choice").addEventListener("change", () => refresh(["price"]));
  byId("log-filter").addEventListener("input", filterLog);
  byId("log-source").addEventListener("change", filterLog);
}

export function loadPlotly() {
  plotly ??= new Promise((resolve, reject) => {
    const script = element("script", { src: document.body.dataset.plotly, onload: resolve });
    script.onerror = () => {
      plotly = undefined; // the next figure tries again
      reject(new Error("the chart library could not be loaded"));
    };
    document.head.append(script);
  });
  return plotly;
}

// All that are named, or all there are; resolves when each was shown, or said why not.
export function refresh(names = [...panels.keys()]) {
  return Promise.all(names.map(one));
}

async function one(name) {
  const panel = panels.get(name);
  const chosen = name === "price" ? byId("choice").value : "";
  const number = ++panel.asked; // an answer that was overtaken is not shown over a newer one
  try {
    const text = await read(`/api/dashboard/panels/${name}?${new URLSearchParams({ chosen })}`);
    if (number !== panel.asked) return;
    const told = JSON.parse(text);
    panel.heardAt = performance.now();
    panel.told = told;
    panel.section.classList.remove("failed");
    const shown = JSON.stringify({ ...told, now: 0 });
    if (shown !== panel.text) await show(panel, told);
    panel.text = shown;
  } catch (error) {
    if (number !== panel.asked) return;
    panel.section.classList.add("failed");
    panel.section.querySelector(".note").textContent = `Not renewed: ${error.message}.`;
    if (error.status === 401) throw error;
  }
  tick();
}

async function show({ section }, told) {
  const empty = section.querySelector(".empty");
  empty.hidden = told.empty === null;
  empty.replaceChildren(...inWords(told.empty ?? ""));
  section.querySelector(".note").textContent = told.note;
  if (section.dataset.panel === "price") choose(told);
  const [figure, table] = [section.querySelector(".figure"), section.querySelector(".table")];
  if (figure) await draw(figure, told.figure);
  if (table) table.replaceChildren(...(told.table ? [tableOf(told.table, section.dataset.title)] : []));
  if (section.dataset.panel === "log") sources(told.table);
}

// What is between backticks is to be typed.
const inWords = (text) => text.split("`").map((part, n) => (n % 2 ? element("code", {}, part) : part));

export async function draw(place, figure) {
  await loadPlotly();
  place.hidden = figure === null;
  place.told = figure;
  if (figure === null) return Plotly.purge(place);
  const { data, layout } = themed(figure);
  await Plotly.react(place, data, layout, { displayModeBar: false, responsive: true, doubleClick: "reset" });
}

// A figure brings its data and axes; the page its colours.
function themed({ data, layout }) {
  const style = getComputedStyle(document.documentElement);
  const [ink, muted, line, panel] = ["--ink", "--muted", "--line", "--panel"].map((name) => style.getPropertyValue(name).trim());
  const own = { xaxis: {}, yaxis: {}, ...layout, autosize: true, uirevision: "kept", font: { family: "inherit", size: 11, color: muted } };
  own.dragmode = matchMedia("(pointer: coarse)").matches ? false : "zoom"; // a finger scrolls the page
  own.hoverlabel = { bgcolor: panel, bordercolor: line, font: { color: ink, size: 12 } };
  for (const key of Object.keys(own)) {
    if (/^[xy]axis\d*$/.test(key)) {
      own[key] = { gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true, ...own[key] };
      const title = own[key].title;
      if (title) own[key].title = { standoff: 6, ...title, font: { size: 11, color: muted } };
    }
  }
  const inked = data.map((trace) => (trace.type === "heatmap" ? { ...trace, textfont: { color: ink } } : trace));
  return { data: inked, layout: own };
}

export function restyle() {
  for (const place of document.querySelectorAll(".figure")) if (place.told) draw(place, place.told);
}

function tableOf({ columns, kinds, rows }, caption) {
  const head = element("tr", {}, ...columns.map((name, n) => element("th", { scope: "col", className: RIGHT.has(kinds[n]) ? "right" : "" }, name)));
  const body = rows.map((row) => element("tr", {}, ...row.map((value, n) => cell(kinds[n], value))));
  return element("table", {}, element("caption", { className: "away" }, caption), element("thead", {}, head), element("tbody", {}, ...body));
}

function cell(kind, value) {
  const made = element("td", { className: RIGHT.has(kind) ? "right" : "" });
  if (kind === "decision") {
    made.append(element("button", { type: "button", className: "link", title: value, onclick: () => explain(value) }, "explain"));
    made.firstChild.setAttribute("aria-label", `Explain decision ${value}`);
  } else if (kind === "mark") {
    made.append(element("span", { className: "mark" }, written("text", value)));
    made.firstChild.dataset.mark = value;
  } else made.textContent = written(kind, value);
  if (kind === "rupees" && value) made.dataset.sign = value > 0 ? "gain" : "loss";
  return made;
}

function choose({ choices, chosen }) {
  const select = byId("choice");
  select.replaceChildren(...choices.map((choice) => element("option", { value: choice, selected: choice === chosen }, choice.replace("/", " · "))));
  select.closest(".controls").hidden = choices.length < 2;
}

function sources(table) {
  const select = byId("log-source");
  const names = [...new Set((table?.rows ?? []).map((row) => row[1]))].sort();
  const before = select.value;
  select.replaceChildren(element("option", { value: "" }, "all"), ...names.map((name) => element("option", { value: name }, name)));
  select.value = names.includes(before) ? before : "";
  filterLog();
}

function filterLog() {
  const [wanted, source] = [byId("log-filter").value.trim().toLowerCase(), byId("log-source").value];
  const rows = [...document.querySelectorAll('[data-panel="log"] tbody tr')];
  for (const row of rows) {
    row.hidden = !(row.textContent.toLowerCase().includes(wanted) && (!source || row.cells[1].textContent === source));
  }
  const shown = rows.filter((row) => !row.hidden).length;
  byId("log-count").textContent = rows.length ? `${shown} of ${rows.length}` : "";
}

// Ages go on while nothing new comes: a number that stands still would look alive.
export function tick() {
  for (const { section, told, heardAt } of panels.values()) {
    if (!told) continue;
    const age = section.querySelector(".age");
    const now = told.now + (performance.now() - heardAt) / 1000;
    age.textContent = told.as_of === null ? "nothing on record" : `as of ${timeText(told.as_of)} · ${ageText(now - told.as_of)}${told.stale ? " · stale" : ""}`;
    section.classList.toggle("stale", told.stale);
  }
}

export function clear() {
  for (const panel of panels.values()) {
    Object.assign(panel, { text: "", told: null, asked: panel.asked + 1 });
    const figure = panel.section.querySelector(".figure");
    if (figure?.told && window.Plotly) Plotly.purge(figure);
    if (figure) figure.told = null;
    panel.section.querySelector(".table")?.replaceChildren();
    panel.section.querySelector(".age").textContent = "not read yet";
    panel.section.querySelector(".note").textContent = "";
  }
}
