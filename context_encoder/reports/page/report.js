"use strict";
// Tables: by number where all cells of the column have one, otherwise by text.
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
    const rows = [...table.tBodies[0].rows];
    const cells = rows.map((row) => row.cells[column]);
    const numeric = cells.some((cell) => "value" in cell.dataset);
    // The first click shows the largest number first, or the alphabet from A.
    const before = head.getAttribute("aria-sort");
    const first = numeric ? "descending" : "ascending";
    const other = numeric ? "ascending" : "descending";
    const order = before === first ? other : first;
    heads.forEach((one) => one.setAttribute("aria-sort", one === head ? order : "none"));
    const sign = order === "ascending" ? 1 : -1;
    const value = (row) => parseFloat(row.cells[column].dataset.value);
    const text = (row) => row.cells[column].textContent;
    rows.sort((a, b) => {
      if (!numeric) return sign * text(a).localeCompare(text(b), "en", { numeric: true });
      const [x, y] = [value(a), value(b)];
      if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y); // empty cells last
      return sign * (x - y);
    });
    table.tBodies[0].append(...rows);
  }));
}

// Charts: a click on the legend hides a curve.
for (const entry of document.querySelectorAll("svg .entry")) {
  const toggle = () => {
    const off = entry.classList.toggle("off");
    const series = entry.closest("svg").querySelectorAll(".series");
    series[Number(entry.dataset.series)].classList.toggle("off", off);
  };
  entry.addEventListener("click", toggle);
  entry.addEventListener("keydown", (event) => { if (event.key === "Enter") toggle(); });
}

// Sheets.
const viewer = document.getElementById("viewer"), shown = viewer.querySelector("img");
let scale = 1, x = 0, y = 0;
const place = () => { shown.style.transform = `translate(${x}px, ${y}px) scale(${scale})`; };
function fit() {
  scale = Math.min(innerWidth / shown.naturalWidth, innerHeight / shown.naturalHeight);
  x = (innerWidth - scale * shown.naturalWidth) / 2;
  y = (innerHeight - scale * shown.naturalHeight) / 2;
  place();
}
for (const button of document.querySelectorAll(".zoom")) {
  button.addEventListener("click", () => {
    shown.src = button.firstElementChild.src;
    shown.alt = button.firstElementChild.alt;
    viewer.showModal();
    shown.decode().then(fit);
  });
}
viewer.addEventListener("wheel", (event) => {
  event.preventDefault();
  const factor = Math.min(Math.max(scale * Math.exp(-event.deltaY / 400), 0.02), 40) / scale;
  x = event.clientX - factor * (event.clientX - x);
  y = event.clientY - factor * (event.clientY - y);
  scale *= factor;
  place();
}, { passive: false });
viewer.addEventListener("pointermove", (event) => {
  if (!(event.buttons & 1)) return;
  x += event.movementX;
  y += event.movementY;
  place();
});
viewer.addEventListener("dblclick", fit);
shown.addEventListener("dragstart", (event) => event.preventDefault());
