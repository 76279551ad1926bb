// The live stream: it says that something happened, and the panels concerned are read anew. It is optional: without
// it the page asks every few seconds.

import { post } from "./wire.js";

const AGAIN_MS = 5000;
const GATHER_MS = 2000; // decisions come in bursts
const DECISIONS = ["decisions", "agreement", "actions", "latency", "depth", "halting", "complexity"];
const CONCERNED = {
  decision: DECISIONS,
  hrm_metrics: DECISIONS,
  fill: ["price", "positions", "log"],
  position: ["positions"],
  rollout: ["summary", "timeline", "verdicts", "equity", "log"],
  alert: ["summary", "log"],
};
let socket = null;
let wanted = false;
let waiting = new Set();
let timer = 0;

export const connected = () => socket?.readyState === WebSocket.OPEN;

// `onChange` is told the names of what is to be read anew.
export async function open(onChange) {
  wanted = true;
  try {
    const { ticket, path } = await post("/api/live-data/tickets", {});
    if (!wanted || socket) return;
    const mine = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}${path}`);
    mine.onopen = () => mine.send(JSON.stringify({ type: "authenticate", ticket }));
    mine.onmessage = (message) => mine === socket && heard(JSON.parse(message.data), onChange);
    mine.onclose = () => mine === socket && again(onChange); // one of an earlier session ends by itself
    socket = mine;
  } catch {
    if (!socket) again(onChange); // asking goes on, and says so if the backend is gone
  }
}

export function close() {
  wanted = false;
  socket?.close();
  socket = null;
}

function again(onChange) {
  socket = null;
  if (wanted) setTimeout(() => wanted && !socket && open(onChange), AGAIN_MS);
}

function heard({ type }, onChange) {
  for (const name of CONCERNED[type] ?? []) waiting.add(name);
  if (!waiting.size || timer) return;
  timer = setTimeout(() => {
    timer = 0;
    const names = [...waiting];
    waiting = new Set();
    onChange(names);
  }, type === "rollout" ? 100 : GATHER_MS);
}
