// The desk: who is logged in, how things stand, and that nothing old passes for new.

import * as commands from "./commands.js";
import { ageText, byId, clockText, element } from "./format.js";
import * as live from "./live.js";
import * as panels from "./panels.js";
import { explain } from "./explanation.js";
import { logIn, logOut, read, resumeSession } from "./wire.js";

const POLL_MS = 4000;
const LIVE_POLL_MS = 20000; // of the panels, while the stream says what changed
const LOST_AFTER_MS = 9000;
const LEFT = "This page is closed, but the backend could not be told: the session ends there after 15 minutes, or with this browser's cookies.";
let heardAt = 0; // performance.now() of the last summary
let heardText = "";
let serverNow = null; // the backend's clock at `heardAt`, Unix s
let on = false;
let readAllAt = -Infinity;
let asking = false; // for the summary; how things stand never waits for the panels
let drawing = false;
let lastRollout = { state: null, text: "" };

async function start(session) {
  on = true;
  byId("login").hidden = true;
  for (const id of ["desk", "chips", "logout"]) byId(id).hidden = false;
  byId("caller").textContent = `Logged in as ${session.caller}.`;
  commands.permit(session.scopes);
  heardAt = performance.now();
  banner("");
  localStorage.setItem("session", "begun"); // no secret: whether it is worth asking after a reload
  live.open((names) => renew(names));
  await now();
}

function stop(why) {
  on = false;
  localStorage.removeItem("session");
  live.close();
  panels.clear();
  lastRollout = { state: null, text: "" };
  for (const id of ["desk", "chips", "logout", "kill", "resume-trading"]) byId(id).hidden = true;
  for (const dialog of document.querySelectorAll("dialog[open]")) dialog.close();
  byId("caller").textContent = "";
  document.body.classList.remove("lost");
  banner(why);
  byId("login").hidden = false;
  byId("key").focus();
}

async function poll() {
  if (!on || asking) return;
  asking = true;
  try {
    await summary();
    drawAll();
  } catch (error) {
    failed(error);
  } finally {
    asking = false;
  }
}

async function drawAll() {
  if (drawing || performance.now() - readAllAt < (live.connected() ? LIVE_POLL_MS : POLL_MS) - 500) return;
  [drawing, readAllAt] = [true, performance.now()];
  try {
    await panels.refresh();
  } catch (error) {
    failed(error);
  } finally {
    drawing = false;
  }
}

function now() {
  readAllAt = -Infinity;
  return poll();
}

async function renew(names) {
  if (!on) return;
  try {
    if (names.includes("summary")) await summary();
    await panels.refresh(names.filter((name) => name !== "summary"));
  } catch (error) {
    failed(error);
  }
}

function failed(error) {
  if (error.status === 401) stop("Your session is over: it expired, the backend was restarted, or the key was revoked. Log in again.");
  else if (error.status === 403) banner(`Your key may not look at this: ${error.message}`);
  else lost(error.message);
}

async function summary() {
  const told = JSON.parse(await read("/api/dashboard/summary"));
  [heardAt, serverNow] = [performance.now(), told.now];
  heardText = clockText(told.now);
  document.body.classList.remove("lost");
  banner("");
  chips(told);
  rollout(told);
}

function lost(why) {
  document.body.classList.add("lost");
  banner(`No contact with the backend${heardText ? ` since ${heardText} IST` : ""}: ${why}. What is shown is old. To stop trading use a shell: hrm trade kill.`);
}

function banner(text) {
  const place = byId("banner");
  if (place.textContent !== text) place.textContent = text;
  place.hidden = text === "";
}

function chip(name, text, tone) {
  const place = document.querySelector(`[data-chip="${name}"]`);
  place.dataset.tone = tone;
  place.lastElementChild.textContent = text;
}

const SERVICE = { healthy: ["healthy", "good"], unhealthy: ["unhealthy", "bad"], unknown: ["answers", "warn"] };
const TRADING = { active: ["active", "good"], reducing: ["reducing only", "warn"], halted: ["HALTED", "bad"] };

function chips(told) {
  chip("market", told.market_open ? "open" : "closed", told.market_open ? "good" : "calm");
  chip("service", ...(told.service_problem ? ["no answer", "bad"] : SERVICE[told.health?.overall_health ?? "unknown"]));
  chip("trading", ...TRADING[told.switch.state]);
  const by = told.switch.state === "active" ? "" : `${told.switch.by}: ${told.switch.reason || "no reason given"}`;
  document.querySelector('[data-chip="trading"]').title = by;
}

// Without an answer of the service what it said last stands, with its time: commands name the version they were given for.
function rollout(told) {
  if (told.rollout) lastRollout = { state: told.rollout, text: clockText(told.now) };
  const { state, text } = lastRollout;
  byId("rollout-age").textContent = told.rollout || !state ? "" : `as of ${text} · the service does not answer`;
  document.querySelector(".rollout").classList.toggle("stale", !told.rollout);
  const facts = { champion: state?.champion, challenger: state?.challenger, phase: state?.phase.replace("_", " "), weight: state && `${state.weight} %` };
  for (const [id, text] of Object.entries(facts)) byId(id).textContent = text ?? "–";
  byId("waits").textContent = !state ? "–" : state.paused ? "paused: somebody has to resume" : state.waits_for || (state.latched ? `latched: ${state.trigger || state.reason || "rolled back"}` : "nothing");
  byId("steps").replaceChildren(...(state ? steps(state) : []));
  byId("service-problem").textContent = told.service_problem ? `The inference service: ${told.service_problem}` : "";
  const stopped = told.switch.state === "active" ? [] : [`Trading is ${told.switch.state}, by ${told.switch.by}: ${told.switch.reason || "no reason given"}.`];
  const undurable = state && !state.durable ? ["The rollout's state is not on the disk yet: the database refuses."] : [];
  const unchecked = told.health_problem ? [`The service answers, and its health is not known: ${told.health_problem}.`] : [];
  const warnings = [...stopped, ...undurable, ...unchecked, ...(told.health?.warnings ?? [])];
  byId("warnings").replaceChildren(...warnings.map((text) => element("li", {}, text)));
  commands.show(state, told.switch.state);
}

function steps({ phase, step, steps: weights }) {
  const names = ["shadow", ...weights.map((weight) => `${weight} %`)];
  return names.map((name, n) => {
    const running = ["shadow", "canary"].includes(phase);
    const made = element("li", { className: phase === "promoted" || (running && n < step) ? "done" : running && n === step ? "now" : "" }, name);
    if (running && n === step) made.setAttribute("aria-current", "step");
    return made;
  });
}

function everySecond() {
  if (!on) return;
  const silentMs = performance.now() - heardAt;
  if (serverNow) chip("contact", ageText(silentMs / 1000), silentMs > LOST_AFTER_MS ? "bad" : live.connected() ? "good" : "calm");
  if (silentMs > LOST_AFTER_MS) lost("it has not answered");
  panels.tick();
}

byId("login-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const [field, problem] = [byId("key"), byId("login-problem")];
  const key = field.value.trim();
  problem.textContent = "";
  try {
    const session = await logIn(key);
    field.value = "";
    await start(session);
    byId("main").focus({ preventScroll: true });
  } catch (error) {
    problem.textContent = error.status === 401 ? "This key opens nothing: it is mistyped, expired or revoked." : error.message;
  }
});
byId("logout").addEventListener("click", async () => {
  const told = await logOut().then(() => "You are logged out.", (error) => (error.status === 401 ? "You are logged out." : LEFT));
  stop(told);
});
byId("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = getComputedStyle(root).colorScheme === "dark";
  root.dataset.theme = dark ? "light" : "dark";
  localStorage.setItem("theme", root.dataset.theme);
  panels.restyle();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", panels.restyle);
document.addEventListener("visibilitychange", () => document.hidden || now());

const theme = localStorage.getItem("theme");
if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
panels.load(explain);
commands.load(now);
setInterval(poll, POLL_MS);
setInterval(everySecond, 1000);
if (localStorage.getItem("session")) resumeSession().then(start, (error) => stop(error.status === 401 ? "" : error.message));
else stop("");
