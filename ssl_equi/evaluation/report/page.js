"use strict";
// Tables: a click on a column's head sorts the rows inside their groups, a third one brings their order back.
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.querySelectorAll("thead th")];
  const groups = [...table.tBodies].map(body => [body, [...body.rows].filter(row => row.cells.length === heads.length)]);
  if (groups.every(([, rows]) => rows.length < 2)) continue;
  const keyOf = (row, column) => {
    const number = row.cells[column].dataset.value;
    return number === undefined ? row.cells[column].textContent : Number(number);
  };
  const compare = (first, second) =>
    typeof first === "number" && typeof second === "number" ? first - second : String(first).localeCompare(second);
  heads.forEach((head, column) => {
    if (!head.textContent) return;
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const next = { ascending: "descending", descending: "" }[head.ariaSort ?? ""] ?? "ascending";
      heads.forEach(other => other.removeAttribute("aria-sort"));
      if (next) head.setAttribute("aria-sort", next);
      table.classList.toggle("sorted", next !== "");
      for (const [body, rows] of groups) {
        // Cells without a number stand last, whichever way the others go.
        const missing = row => row.cells[column].textContent === "-";
        const order = (a, b) => missing(a) - missing(b)
          || (next === "ascending" ? 1 : -1) * compare(keyOf(a, column), keyOf(b, column));
        body.append(...(next ? [...rows].sort(order) : rows));
      }
    });
  });
}

// Figures: what a pointer or a finger is on, at once and beside it, instead of the browser's own late titles.
const tip = document.createElement("div");
tip.className = "tip";
tip.hidden = true;
document.body.append(tip);
for (const place of document.querySelectorAll("svg .hover")) {
  const title = place.querySelector("title");
  place.dataset.tip = title.textContent;
  title.remove();
}
const showTip = event => {
  const place = event.target.closest?.("[data-tip]");
  tip.hidden = !place;
  if (!place) return;
  tip.textContent = place.dataset.tip;
  const { width, height } = tip.getBoundingClientRect();
  const left = Math.max(4, Math.min(event.clientX + 14, innerWidth - width - 4));
  const top = event.clientY - height - 12 < 4 ? event.clientY + 18 : event.clientY - height - 12;
  Object.assign(tip.style, { left: `${left}px`, top: `${top}px` });
};
document.addEventListener("pointermove", showTip);
document.addEventListener("pointerdown", showTip);
document.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });

// Exports: a button for each text that can be copied.
for (const text of document.querySelectorAll("details.export pre")) {
  const button = document.createElement("button");
  const label = `copy as ${text.dataset.format}`;
  button.textContent = label;
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text.textContent);
      button.textContent = "copied";
    } catch {
      // Pages from disk may lack the clipboard: the text is shown, selected.
      text.closest("details").open = true;
      getSelection().selectAllChildren(text);
      button.textContent = document.execCommand("copy") ? "copied" : "selected below";
    }
    setTimeout(() => { button.textContent = label; }, 1500);
  });
  text.closest("details").before(button);
}
