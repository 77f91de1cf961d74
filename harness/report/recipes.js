"use strict";
// Of the recipes, those that one has chosen: rows and columns of tables, and (in page.js) what figures draw.
(() => {
  const { address } = report;
  const box = document.getElementById("recipe-filter");
  if (box === null) return;
  const ticks = [...box.querySelectorAll("input[type=checkbox]")];
  const known = new Set(ticks.map((tick) => tick.value));
  const search = document.getElementById("recipe-search");
  const count = document.getElementById("recipe-count");
  const chosen = new Set();

  // What is about two recipes is shown where both are chosen, or where one alone is and it is one of them.
  report.shows = (labels) => {
    const found = labels.filter((label) => known.has(label));
    if (chosen.size === 0 || found.length === 0) return true;
    return chosen.size === 1 ? found.some((l) => chosen.has(l)) : found.every((l) => chosen.has(l));
  };

  const pairOf = (text) => {
    for (const label of known) {
      const start = `${label} − `;
      if (text.startsWith(start) && known.has(text.slice(start.length))) return [label, text.slice(start.length)];
    }
    return [];
  };

  // Which rows and columns of a table are about which recipes; null for none.
  const marksOf = (table) => {
    const heads = [...(table.tHead?.rows[0]?.cells ?? [])];
    const rows = [...table.tBodies].flatMap((body) => [...body.rows]).filter((row) => row.cells.length === heads.length);
    const named = heads.flatMap((head, place) => (head.dataset.who === undefined ? [] : [[place, head.dataset.who]]));
    const text = (row, place) => row.cells[place].textContent;
    const columns = heads.map((head, place) => [place, head.textContent]).slice(1);
    const across = columns.length > 0 && columns.every(([, label]) => known.has(label));
    const down = across && rows.length > 0 && rows.every((row) => known.has(text(row, 0)));
    const labelsOf = (row) =>
      down ? [text(row, 0)] : named.flatMap(([place, kind]) => (kind === "pair" ? pairOf(text(row, place)) : [text(row, place)]));
    if (!across && named.length === 0) return null;
    return { heads, columns: across ? columns : [], rows: rows.map((row) => [row, labelsOf(row)]) };
  };
  let marks = null;

  const apply = () => {
    marks ??= [...document.querySelectorAll("main table")].map(marksOf).filter((m) => m !== null);
    for (const { heads, columns, rows } of marks) {
      for (const [row, labels] of rows) row.classList.toggle("off-recipe", !report.shows(labels));
      for (const [place, label] of columns) {
        const off = chosen.size > 0 && !chosen.has(label);
        for (const cell of [heads[place], ...rows.map(([row]) => row.cells[place])]) cell.classList.toggle("off-recipe", off);
      }
    }
    const names = [...chosen];
    const which = names.length <= 3 ? names.join(", ") : `${names.slice(0, 2).join(", ")} and ${names.length - 2} more`;
    count.textContent = names.length === 0 ? `all ${known.size} shown` : `${names.length} of ${known.size} shown: ${which}`;
    box.classList.toggle("active", names.length > 0);
    dispatchEvent(new CustomEvent("recipes"));
  };

  const recall = () => {
    const named = new Set(address.all("recipe"));
    chosen.clear();
    for (const tick of ticks) {
      tick.checked = named.has(tick.value);
      if (tick.checked) chosen.add(tick.value);
    }
    apply();
  };
  const changed = () => {
    chosen.clear();
    for (const tick of ticks) if (tick.checked) chosen.add(tick.value);
    address.set({ recipe: [...chosen] });
    apply();
  };

  for (const tick of ticks) tick.addEventListener("change", changed);
  document.getElementById("recipe-all").addEventListener("click", () => {
    for (const tick of ticks) tick.checked = false;
    changed();
  });
  search.addEventListener("input", () => {
    const wanted = search.value.toLowerCase();
    for (const tick of ticks) tick.closest("label").hidden = !tick.value.toLowerCase().includes(wanted);
  });
  const fold = box.querySelector("details");
  const close = (event) => { if (fold.open && !fold.contains(event.target)) fold.open = false; };
  document.addEventListener("click", close);
  fold.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !fold.open) return;
    fold.open = false;
    fold.querySelector("summary").focus();
  });
  addEventListener("choices", recall);
  box.hidden = false;
  recall();
})();
