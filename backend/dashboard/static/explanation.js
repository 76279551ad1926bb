// Why one decision was made: the backend's explanation, in a dialog.

import { byId, element } from "./format.js";
import { draw } from "./panels.js";
import { read } from "./wire.js";

const WITHIN_MS = 300000; // one takes a minute at most, and some may be before it
const dialog = byId("explanation");
let asked = 0; // the newest question: what comes later of another one is not shown under its name
byId("explanation-close").addEventListener("click", () => dialog.close());

export async function explain(id) {
  const number = ++asked;
  const content = byId("explanation-content");
  byId("explanation-title").textContent = `Why ${id}`;
  content.replaceChildren(element("p", {}, "Computed now, beside the service; this may take some seconds."));
  dialog.showModal();
  try {
    const told = JSON.parse(await read(`/api/explanations/${encodeURIComponent(id)}`, WITHIN_MS));
    if (number !== asked) return;
    const figures = Object.entries(told.figures ?? {});
    const places = figures.map(() => element("div", { className: "figure tall" }));
    content.replaceChildren(...(told.text ? [element("p", { className: "words" }, told.text)] : []), ...places);
    for (const [n, [, figure]] of figures.entries()) await draw(places[n], figure);
  } catch (error) {
    if (number !== asked) return;
    content.replaceChildren(element("p", { className: "problem" }, `There is no explanation: ${error.message}`));
  }
}
