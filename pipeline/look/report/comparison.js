// Sorts a table by a click on a column's heading, and the other way round by another. Empty cells stay last.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const was = head.getAttribute("aria-sort");
      const first = head.classList.contains("text") ? "ascending" : "descending";
      const now = was === null ? first : was === "ascending" ? "descending" : "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", now);
      const key = (row) => row.cells[column].dataset.by;
      const sign = now === "ascending" ? 1 : -1;
      const order = (one, other) => {
        const a = key(one), b = key(other);
        if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
        return sign * (head.classList.contains("text") ? a.localeCompare(b) : a - b);
      };
      table.tBodies[0].append(...[...table.tBodies[0].rows].sort(order));
    });
  });
}
