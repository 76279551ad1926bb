// Requests to the backend. The session is a cookie that no script can read; `token` is what commands need beside it.

const WITHIN_MS = 8000;
const COMMAND_WITHIN_MS = 70000; // a promotion may load and warm a model
let token = "";

export class Refused extends Error {
  constructor(status, code, detail) {
    super(detail);
    Object.assign(this, { status, code });
  }
}

async function answer(path, options, withinMs) {
  let response;
  try {
    response = await fetch(path, { credentials: "same-origin", redirect: "error", cache: "no-store", signal: AbortSignal.timeout(withinMs), ...options });
  } catch (error) {
    throw new Refused(0, "no_contact", error.name === "TimeoutError" ? "the backend did not answer in time" : "the backend cannot be reached");
  }
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({}));
  throw new Refused(response.status, problem.code ?? "unknown", problem.detail ?? `the backend answered ${response.status}`);
}

export const read = async (path, withinMs = WITHIN_MS) => (await answer(path, {}, withinMs)).text();

export async function post(path, body) {
  const headers = { "Content-Type": "application/json", "X-CSRF-Token": token };
  const options = { method: "POST", headers, body: JSON.stringify(body) };
  return (await answer(path, options, COMMAND_WITHIN_MS)).json();
}

export async function logIn(key) {
  if (!/^[\x21-\x7e]+$/.test(key)) throw new Refused(0, "no_key", "this is no API key: it has spaces or letters that none has");
  const options = { method: "POST", headers: { Authorization: `Bearer ${key}` } };
  return remembered(await answer("/dashboard/session", options, WITHIN_MS));
}

export const resumeSession = async () => remembered(await answer("/dashboard/session", {}, WITHIN_MS));

export async function logOut() {
  await answer("/dashboard/session", { method: "DELETE", headers: { "X-CSRF-Token": token } }, WITHIN_MS);
  token = "";
}

async function remembered(response) {
  const session = await response.json();
  token = session.csrf;
  return session;
}
