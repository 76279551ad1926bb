// Numbers with units, times of the exchange, and elements made without any HTML in a string.

const IST = "Asia/Kolkata";
const day = new Intl.DateTimeFormat("en-GB", { timeZone: IST, day: "2-digit", month: "short" });
const clock = new Intl.DateTimeFormat("en-GB", { timeZone: IST, hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const fixed = (digits) => new Intl.NumberFormat("en-IN", { minimumFractionDigits: digits, maximumFractionDigits: digits });
const [whole, one, two, any] = [fixed(0), fixed(1), fixed(2), new Intl.NumberFormat("en-IN", { maximumSignificantDigits: 4 })];
const signed = new Intl.NumberFormat("en-IN", { maximumFractionDigits: 0, signDisplay: "exceptZero" });
const NONE = "–";

export const clockText = (unixS) => clock.format(unixS * 1000);

export function timeText(unixS) {
  return `${day.format(unixS * 1000)} ${clock.format(unixS * 1000)}`;
}

export function ageText(ageS) {
  if (ageS < 90) return `${Math.max(0, Math.round(ageS))} s ago`;
  if (ageS < 5400) return `${Math.round(ageS / 60)} min ago`;
  if (ageS < 129600) return `${Math.round(ageS / 3600)} h ago`;
  return `${whole.format(Math.round(ageS / 86400))} days ago`;
}

const WRITTEN = {
  time: timeText,
  number: (value) => any.format(value),
  count: (value) => whole.format(value),
  decimal: (value) => two.format(value),
  ms: (value) => `${one.format(value)} ms`,
  units: (value) => signed.format(value),
  money: (value) => `₹${whole.format(value)}`,
  rupees: (value) => `${value > 0 ? "+" : value < 0 ? "−" : ""}₹${whole.format(Math.abs(value))}`,
};
export const RIGHT = new Set(["number", "count", "decimal", "ms", "units", "money", "rupees"]);

export function written(kind, value) {
  if (value === null || value === undefined || value === "") return NONE;
  return (WRITTEN[kind] ?? String)(value);
}

export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

export const byId = (id) => document.getElementById(id);
