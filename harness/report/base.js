"use strict";
// What the scripts of a page share.
const report = (() => {
  // Text of a model, a suite or a store enters the page by this alone, and as text.
  const make = (name, className, text) => {
    const node = document.createElement(name);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const read = (id) => {
    const node = document.getElementById(id);
    return node === null ? null : JSON.parse(node.textContent);
  };

  // The address says where one is and what is chosen, so that it can be sent to others: #samples&task=gsm8k&pick=differ
  const parse = () => {
    const found = new URLSearchParams(location.hash.slice(1));
    const [first] = found.keys();
    const anchor = first !== undefined && found.get(first) === "" ? first : "";
    if (anchor) found.delete(anchor);
    return { anchor, chosen: found };
  };
  let { anchor, chosen } = parse();
  let [timer, used] = [0, false];
  // Browsers refuse an address that changes too often.
  const write = () => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      const parts = [anchor === "" ? "" : encodeURIComponent(anchor), chosen.toString()].filter((p) => p !== "");
      history.replaceState(history.state, "", parts.length ? `#${parts.join("&")}` : location.pathname + location.search);
    }, 150);
  };
  const address = {
    get: (name) => {
      used = true;
      return chosen.get(name);
    },
    all: (name) => {
      used = true;
      return chosen.getAll(name);
    },
    // Sets what is chosen: a value, several, or null for none. `at` says where one is.
    set: (choices, at) => {
      for (const [name, value] of Object.entries(choices)) {
        chosen.delete(name);
        for (const one of value === null ? [] : [value].flat()) chosen.append(name, one);
      }
      if (at !== undefined) anchor = at;
      write();
    },
  };

  const opened = (node) => node.closest("[hidden], details:not([open])") === null;
  // Shows an element that a tab or a fold hides.
  const reveal = (node) => {
    for (let at = node; at !== null; at = at.parentElement) {
      if (at.tagName === "DETAILS") at.open = true;
      if (at.classList.contains("panel") && at.hidden) at.dispatchEvent(new CustomEvent("reveal", { bubbles: true }));
    }
  };
  const follow = () => {
    const target = anchor === "" ? null : document.getElementById(anchor);
    if (target === null) return;
    reveal(target);
    target.scrollIntoView({ behavior: "instant" });
  };
  addEventListener("hashchange", () => {
    const found = parse();
    anchor = found.anchor;
    if (found.chosen.size > 0) {
      chosen = found.chosen;
      dispatchEvent(new CustomEvent("choices"));
    } else if (used && chosen.size > 0 && anchor !== "") write();
    follow();
  });
  // A link to where one is already changes no address.
  document.addEventListener("click", (event) => {
    const link = event.target.closest?.('a[href^="#"]');
    if (link && link.getAttribute("href").slice(1) === anchor) follow();
  });

  // Whether what is about these recipes is shown: recipes.js knows better where one can choose.
  const shows = () => true;

  return { make, read, address, opened, reveal, follow, shows };
})();
