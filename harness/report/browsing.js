"use strict";
// What the browsers of texts have in common: choices, blocks of text, words that are looked for, keys to the next.
report.browsing = (() => {
  const { make } = report;

  const options = (select, labels) => {
    select.replaceChildren(...labels.map(([value, label]) => {
      const option = make("option", "", label);
      option.value = value;
      return option;
    }));
  };
  const block = (title, text) => {
    const section = make("section", "sample-block");
    section.tabIndex = 0;
    section.append(make("h4", "", title), make("pre", "", text));
    return section;
  };
  // A text in a line of a list.
  const line = (text) => {
    const flat = text.trim().replace(/\s+/g, " ");
    return flat.length > 70 ? `${flat.slice(0, 70)}…` : flat;
  };
  // Whether a text in lower case has every word that was typed.
  const finder = (typed) => {
    const words = typed.toLowerCase().split(/\s+/).filter((w) => w !== "");
    return (text) => words.every((word) => text.includes(word));
  };
  const digits = (value) => (Number.isInteger(value) ? String(value) : value.toPrecision(4)).replaceAll("-", "−");
  const keys = (box, step) => {
    box.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.altKey || event.metaKey || event.target.matches("input, select")) return;
      const by = { j: 1, ArrowRight: 1, k: -1, ArrowLeft: -1 }[event.key];
      if (by === undefined) return;
      event.preventDefault();
      step(by);
    });
  };

  return { options, block, line, finder, digits, keys };
})();
