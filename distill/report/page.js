"use strict";
// A click on a column's head sorts its table: upwards, downwards, and as it was.

const UNITS = { k: 1e3, M: 1e6, G: 1e9, KiB: 2 ** 10, MiB: 2 ** 20, GiB: 2 ** 30, h: 3600, min: 60 };

// What a cell is worth: the number before its unit and its ± or span, several parts as of "3 min 20 s"; null of a dash.
function worth(cell) {
  const text = cell.textContent.replace(/\u00a0/g, " ").replace(/,(?=\d{3})/g, "").split(/ [±(]/)[0].trim();
  if (text === "" || text === "–") return null;
  const parts = [...text.matchAll(/(-?\d+(?:\.\d+)?(?:e[+-]?\d+)?) ?([A-Za-z%×]*)/g)];
  const whole = parts.map((part) => part[0]).join(" ").replace(/ +/g, " ").trim();
  if (!parts.length || whole !== text) return text;
  return parts.reduce((sum, [, number, unit]) => sum + Number(number) * (UNITS[unit] ?? 1), 0);
}

// Numbers before words; what is not there comes last, whichever way.
function compared(one, other, sign) {
  if (one === null || other === null) return (one === null) - (other === null);
  if (typeof one !== typeof other) return typeof one === "number" ? -1 : 1;
  return sign * (typeof one === "number" ? one - other : one.localeCompare(other, undefined, { numeric: true }));
}

function sort(head, rows) {
  const next = { ascending: "descending", descending: undefined }[head.ariaSort];
  const way = head.ariaSort ? next : "ascending";
  for (const each of head.parentNode.children) each.removeAttribute("aria-sort");
  if (way) head.setAttribute("aria-sort", way);
  const column = [...head.parentNode.children].indexOf(head), sign = way === "descending" ? -1 : 1;
  const keyed = rows.map((row) => [worth(row.children[column]), row]);
  if (way) keyed.sort(([one], [other]) => compared(one, other, sign));
  rows[0]?.parentNode.append(...keyed.map(([, row]) => row));
}

for (const table of document.querySelectorAll("table")) {
  const rows = [...table.tBodies[0].rows];
  for (const head of table.tHead.rows[0].cells) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sort(head, rows));
    head.append(button);
  }
}
