"use strict";
// Tables are sorted by a click on a column's title, and long ones searched.
(() => {
  const { make } = report;
  const MISSING = new Set(["", "–", "unknown"]);
  // A figure, whatever stands behind it: an interval, a unit, "of 6".
  const FIGURE = /^[<>≤≥≈~]?\s*([+-]?(?:\d[\d,]*)?\.?\d+(?:e[+-]?\d+)?)(?:\s*(ms|s|min|h)(?!\w))?(?=$|[\s%[–/])/i;
  const SECONDS = { ms: 0.001, s: 1, min: 60, h: 3600 };

  const textOf = (row, place) => row.cells[place]?.textContent.trim() ?? "";
  const figureOf = (row, place) => {
    const found = FIGURE.exec(textOf(row, place).replaceAll("−", "-"));
    return found === null ? NaN : Number(found[1].replaceAll(",", "")) * (SECONDS[found[2]?.toLowerCase()] ?? 1);
  };

  const ordered = (rows, place) => {
    const there = rows.filter((row) => !MISSING.has(textOf(row, place)));
    const keys = new Map(there.map((row) => [row, figureOf(row, place)]));
    const numeric = there.every((row) => !Number.isNaN(keys.get(row)));
    const names = new Intl.Collator(undefined, { numeric: true });
    there.sort(numeric ? (x, y) => keys.get(x) - keys.get(y) : (x, y) => names.compare(textOf(x, place), textOf(y, place)));
    return there;
  };

  const sortable = (table, rows) => {
    const heads = [...table.tHead.rows[0].cells];
    // Without a title of the first column, the rows are figures of different kinds: there is nothing to sort by.
    if (rows.length < 3 || table.tHead.rows.length > 1 || heads[0].textContent.trim() === "") return;
    const original = [...rows];
    heads.forEach((head, place) => {
      if (head.textContent.trim() === "") return;
      const button = make("button", "sort");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const next = { ascending: "descending", descending: "none" }[head.getAttribute("aria-sort")] ?? "ascending";
        for (const other of heads) other.removeAttribute("aria-sort");
        let order = original;
        if (next !== "none") {
          head.setAttribute("aria-sort", next);
          const there = ordered(original, place);
          if (next === "descending") there.reverse();
          // What has no value comes last, in whichever direction.
          const has = new Set(there);
          order = [...there, ...original.filter((row) => !has.has(row))];
        }
        table.tBodies[0].append(...order);
      });
    });
  };

  const searchable = (box, rows) => {
    const tools = make("div", "controls table-tools");
    const label = make("label", "", "Find in this table");
    const field = make("input");
    field.type = "search";
    label.append(field);
    const count = make("span", "count");
    count.setAttribute("role", "status");
    tools.append(label, count);
    box.before(tools);
    const texts = new Map();
    const say = () => {
      const shown = rows.filter((row) => !row.matches(".off-text, .off-recipe")).length;
      count.textContent = shown === rows.length ? `${rows.length} rows` : `${shown} of ${rows.length} rows`;
    };
    field.addEventListener("input", () => {
      const words = field.value.toLowerCase().split(/\s+/).filter((w) => w !== "");
      for (const row of rows) {
        if (!texts.has(row)) texts.set(row, row.textContent.toLowerCase());
        row.classList.toggle("off-text", !words.every((word) => texts.get(row).includes(word)));
      }
      say();
    });
    addEventListener("recipes", say);
    say();
  };

  for (const table of document.querySelectorAll(".scroll > table")) {
    if (table.tHead === null || table.tHead.rows.length === 0 || table.tBodies.length !== 1) continue;
    const rows = [...table.tBodies[0].rows];
    sortable(table, rows);
    if ("long" in table.parentElement.dataset) searchable(table.parentElement, rows);
  }
})();
