"use strict";
// Tables of the class "sortable": a click on a header sorts the rows. The page is whole without it.
(() => {
  const key = (row, column) => {
    const cell = row.cells[column];
    const words = "sort" in cell.dataset ? cell.dataset.sort : cell.textContent.trim();
    const number = Number(words.replace(/,/g, "").replace(/\u00a0?%$/, ""));
    return words !== "" && !Number.isNaN(number) ? number : words;
  };
  const isNothing = (value) => value === "" || value === "\u2013";
  const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true }));

  function sort(table, column, direction) {
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => [key(row, column), row]);
    rows.sort(([a], [b]) => isNothing(a) - isNothing(b) || (isNothing(a) ? 0 : direction * compare(a, b)));
    body.append(...rows.map(([, row]) => row));
  }

  document.querySelectorAll("table.sortable").forEach((table) => {
    const headers = [...table.tHead.rows[0].cells];
    headers.forEach((header, column) => {
      if (header.textContent.trim() === "") return;
      const button = document.createElement("button");
      button.type = "button";
      button.append(...header.childNodes);
      header.append(button);
      button.addEventListener("click", () => {
        // Numbers begin with the largest, words with the first letter; a second click turns the order round.
        const first = header.classList.contains("text") || column === 0 ? "ascending" : "descending";
        const other = first === "ascending" ? "descending" : "ascending";
        const order = header.getAttribute("aria-sort") === first ? other : first;
        headers.forEach((one) => one.removeAttribute("aria-sort"));
        header.setAttribute("aria-sort", order);
        sort(table, column, order === "ascending" ? 1 : -1);
      });
    });
  });
})();
