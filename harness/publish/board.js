"use strict";
(() => {
  const rows = [...document.querySelectorAll("#board tbody tr")];
  const selects = [...document.querySelectorAll("#filters select")];
  const count = document.getElementById("count");
  const none = document.getElementById("none");

  const apply = () => {
    const shown = new Set();
    for (const row of rows) {
      row.hidden = selects.some((s) => s.value !== "" && row.dataset[s.name] !== s.value);
      if (!row.hidden) shown.add(row.dataset.entry);
    }
    count.textContent = `${shown.size} of ${new Set(rows.map((r) => r.dataset.entry)).size} entries`;
    none.hidden = shown.size > 0;
  };

  // What is chosen stands in the address, so that it can be sent to others.
  const remember = () => {
    const chosen = new URLSearchParams(selects.filter((s) => s.value !== "").map((s) => [s.name, s.value]));
    history.replaceState(null, "", `#${chosen}`);
  };
  const recall = () => {
    const chosen = new URLSearchParams(location.hash.slice(1));
    for (const select of selects) {
      const value = chosen.get(select.name);
      if (value !== null && [...select.options].some((o) => o.value === value)) select.value = value;
    }
  };

  for (const select of selects) select.addEventListener("change", () => { apply(); remember(); });
  addEventListener("hashchange", () => { recall(); apply(); });
  recall();
  apply();
  document.documentElement.dataset.board = "yes";
})();
