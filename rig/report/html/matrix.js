"use strict";
(() => {
  const form = document.getElementById("filter");
  const table = document.getElementById("table");
  const words = document.getElementById("words");
  const shown = document.getElementById("shown");
  const runs = Array.from(table.tBodies, (body, at) => ({
    at, body, verdict: body.dataset.verdict, text: body.textContent.toLowerCase(), chip: null,
  }));
  for (const chip of document.querySelectorAll(".chip")) runs[Number(chip.dataset.run)].chip = chip;
  const lines = Array.from(document.querySelectorAll(".grid tbody tr"), (line) => ({
    line, chips: Array.from(line.querySelectorAll(".chip")),
  }));

  const filter = () => {
    const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    const verdicts = new Set(Array.from(form.querySelectorAll(":checked"), (box) => box.value));
    let count = 0;
    for (const run of runs) {
      const fits = verdicts.has(run.verdict) && wanted.every((word) => run.text.includes(word));
      run.body.hidden = !fits;
      run.chip.hidden = !fits;
      count += fits;
    }
    for (const { line, chips } of lines) line.hidden = chips.every((chip) => chip.hidden);
    shown.textContent = `${count} of ${runs.length} shown`;
  };

  const value = (body, column) => {
    const cell = body.rows[0].cells[column];
    return cell.dataset.v ?? cell.textContent;
  };
  const compare = (a, b) => {
    if (a === "" || b === "") return (a === "") - (b === ""); // what was not measured comes last
    const difference = Number(a) - Number(b);
    return Number.isNaN(difference) ? a.localeCompare(b, "en", { numeric: true }) : difference;
  };
  const sort = (head) => {
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const keyed = runs.map((run) => ({ run, key: value(run.body, head.cellIndex) }));
    keyed.sort((a, b) => {
      const order = compare(a.key, b.key);
      return (down && a.key !== "" && b.key !== "" ? -order : order) || a.run.at - b.run.at;
    });
    table.append(...keyed.map(({ run }) => run.body));
  };
  for (const head of table.tHead.rows[0].cells) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sort(head));
    head.append(button);
  }

  form.hidden = false;
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  filter();
})();
