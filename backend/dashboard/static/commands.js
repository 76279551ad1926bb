// Commands: each says what will happen, asks once, and shows in words what became of it.

import { byId } from "./format.js";
import { post } from "./wire.js";

const ACTIVE = ["shadow", "canary"];
const ENDING = [...ACTIVE, "promoted"];
const SCOPE = { approve: "rollout:approve", promote: "rollout:promote", pause: "rollout:promote", resume: "rollout:promote", abort: "rollout:abort", rollback: "rollout:abort" };
let may = () => false;
let rollout = null; // as it was last told
let asked = null; // the command that the dialog is about
let done = () => {};

const next = (state) => state.steps[state.step] ?? 100;
const WHAT = {
  approve: (state) => `You speak for the promotion of ${state.challenger}. ${state.approvals.missing} more of ${state.approvals.required} needed, none by whoever started it.`,
  promote: (state) => (state.step >= state.steps.length ? `${state.challenger} becomes champion and takes every decision. ${state.champion} stays loaded as the fallback.` : `${state.challenger} will decide ${next(state)} % instead of ${state.weight} %. ${state.champion} decides the rest.`),
  pause: (state) => `The rollout stops advancing. ${state.challenger} goes on deciding ${state.weight} %.`,
  resume: () => "The rollout advances again, by its plan.",
  abort: (state) => ending(state, "All traffic leaves the challenger at once."),
  rollback: (state) => ending(state, "The last good champion takes every decision at once, also after a promotion."),
};
const NAMES = { approve: "Approve", promote: "Promote", pause: "Pause the rollout", resume: "Resume the rollout", abort: "Abort the rollout", rollback: "Roll back" };
const SAID = {
  stale_version: "Somebody was faster: the rollout is not what you were looking at. Look again, then decide.",
  precondition_failed: "Somebody was faster: the rollout is not what you were looking at. Look again, then decide.",
  outside_market_time: "Not outside market hours.",
  background_not_passed: "The analysis in the background has not passed, so nothing is promoted.",
  scope_missing: "Your key may not do that.",
  no_contact: "The backend cannot be reached, so nobody knows whether it was done. In a shell on the desk's machine: hrm rollout abort, hrm trade kill.",
  service_unavailable: "The inference service does not answer. If it is down nothing trades on it; hrm trade kill stops trading itself.",
  unauthorized: "Your session is over. Log in again, or in a shell: hrm rollout abort, hrm trade kill.",
};

function ending(state, first) {
  if (!ENDING.includes(state.phase)) return "No rollout was running when this page last heard. If one runs by now, all traffic leaves its challenger at once.";
  const from = state.phase === "promoted" ? state.champion : state.challenger;
  const to = state.phase === "promoted" ? state.fallback : state.champion;
  return `${first} ${to ?? "The champion"} decides; ${from ?? "the challenger"} can never be started again under this version. It stays so until somebody starts another rollout.`;
}

export function load(onDone) {
  done = onDone;
  for (const button of document.querySelectorAll("[data-command]")) button.addEventListener("click", () => ask(button.dataset.command));
  byId("kill").addEventListener("click", () => open({ title: "Stop trading", what: "No order goes out any more, in any process, until a person resumes.", confirm: "Stop trading", danger: true, options: true, send: kill, path: "/api/trading/kill" }));
  byId("resume-trading").addEventListener("click", () => open({ title: "Resume trading", what: "Orders go out again, whoever stopped them.", confirm: "Resume trading", needsReason: true, path: "/api/trading/resume" }));
  byId("command-cancel").addEventListener("click", () => byId("command").close());
  byId("command-form").addEventListener("submit", confirmed);
}

export function permit(scopes) {
  may = (scope) => scopes.includes("admin") || scopes.includes(scope);
  byId("kill").hidden = !may("rollout:abort");
}

export function show(state, tradingState) {
  rollout = state;
  byId("resume-trading").hidden = !may("rollout:abort") || tradingState === "active";
  for (const button of document.querySelectorAll("[data-command]")) {
    const why = hindrance(button.dataset.command, state);
    button.disabled = why !== "";
    button.title = why;
  }
}

// Why a command cannot be given. What the page knows of the rollout is seconds old: it is no reason to keep an abort back.
function hindrance(command, state) {
  if (!may(SCOPE[command])) return `needs a key with the scope ${SCOPE[command]}`;
  if (command === "abort" || command === "rollback") return "";
  if (!state) return "the inference service does not answer";
  if (!ACTIVE.includes(state.phase)) return "no rollout is running";
  if (command === "approve" && !state.approvals.missing) return "no approval is missing";
  if (command === "pause" && state.paused) return "it is paused";
  if (command === "resume" && !state.paused) return "it is not paused";
  return "";
}

function ask(command) {
  const state = rollout;
  const danger = command === "abort" || command === "rollback";
  const what = state ? WHAT[command](state) : "The page does not know the rollout's state. The service carries this out at any.";
  open({ title: NAMES[command], what, confirm: NAMES[command], danger, path: `/api/rollout/${command}`, version: danger ? undefined : state.version });
}

function open(command) {
  asked = command;
  byId("command-title").textContent = command.title;
  byId("command-what").textContent = command.what;
  byId("command-problem").textContent = "";
  byId("command-options").hidden = !command.options;
  byId("option-halt").checked = true;
  const [reason, confirm] = [byId("reason"), byId("command-confirm")];
  reason.value = "";
  reason.required = Boolean(command.needsReason);
  confirm.textContent = command.confirm;
  confirm.disabled = false;
  confirm.className = command.danger ? "danger solid" : "primary";
  byId("command").showModal();
  (command.danger ? confirm : reason).focus(); // Enter is enough where seconds count
}

const kill = (body) => ({ ...body, flatten: byId("option-flatten").checked });

async function confirmed(event) {
  event.preventDefault();
  const command = asked;
  const confirm = byId("command-confirm");
  const body = { reason: byId("reason").value.trim() };
  if (command.version !== undefined) body.version = command.version;
  confirm.disabled = true;
  byId("command-problem").textContent = "";
  try {
    await post(command.path, command.send ? command.send(body) : body);
    if (asked === command) byId("command").close();
    byId("said").textContent = `${command.title}: done.`;
  } catch (error) {
    byId("command-problem").textContent = SAID[error.code] ? `${SAID[error.code]} (${error.message})` : `Not done: ${error.message}`;
  } finally {
    confirm.disabled = false;
    done();
  }
}
