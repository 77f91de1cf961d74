"use strict";
// The browser of verdicts: by judge, pair of recipes and verdict; one comparison at a time, with the judge's words.
(() => {
  const { make, read } = report;
  const { options, block, line, finder, keys } = report.browsing;
  const box = document.getElementById("verdict-browser");
  if (box === null) return;
  const { judges, texts, pairs } = read("verdict-data");
  const part = (name) => document.getElementById(`verdict-${name}`);
  const [judge, pair, kind, find, chosen] = ["judge", "pair", "kind", "find", "chosen"].map(part);
  const KINDS = { a: "A won", b: "B won", tie: "tie", flipped: "flipped with the order", unparsed: "unparsed" };
  const SAID = { a: "A is better", b: "B is better", tie: "a tie", unparsed: "no verdict" };

  const named = ({ a, b }) => `${a} (A) against ${b} (B)`;
  const text = (place) => (place === null ? "" : texts[place]);
  const saying = (one) => [one.prompt, ...one.responses, ...one.words].map(text).join("\n").toLowerCase();

  let found = [];
  const matching = () => {
    const has = finder(find.value);
    return pairs.flatMap((one, index) => {
      if (judge.value !== "" && one.judge !== Number(judge.value)) return [];
      if (pair.value !== "" && named(one) !== pair.value) return [];
      if (kind.value !== "" && one.kind !== kind.value) return [];
      return has(saying(one)) ? [index] : [];
    });
  };

  const card = (letter, who, content) => {
    const node = make("article", "response");
    node.tabIndex = 0;
    const head = make("header");
    head.append(make("span", "letter", letter), make("strong", "", who));
    node.append(head, make("pre", "", content));
    return node;
  };
  const show = () => {
    const place = part("view");
    place.replaceChildren();
    if (found.length === 0) {
      place.append(make("p", "empty", "No comparison in this page fits. Choose another judge, pair or verdict, or search for less."));
      return;
    }
    const one = pairs[Number(chosen.value)];
    const title = make("h3", "sample-title", `${one.category === null ? "" : `${one.category}: `}document ${one.id} `);
    title.append(make("span", "chip", KINDS[one.kind]));
    const row = make("div", "responses");
    row.append(card("A", one.a, text(one.responses[0])), card("B", one.b, text(one.responses[1])));
    place.append(title, make("p", "fine", judges[one.judge].line), block("Prompt", text(one.prompt)), row);
    ["A shown first", "B shown first"].forEach((order, side) => {
      const verdict = one.verdicts[side];
      const said = verdict === null ? "not asked" : SAID[verdict] ?? verdict;
      const words = one.words[side] === null ? "gave probabilities, no words" : text(one.words[side]);
      place.append(block(`${order}: ${said}`, words));
    });
  };
  const refill = (before) => {
    found = matching();
    options(chosen, found.map((index) => [String(index), `${index + 1}. ${line(text(pairs[index].prompt))}`]));
    chosen.value = String(found.includes(before) ? before : found[0] ?? "");
    for (const name of ["previous", "next", "chosen"]) part(name).disabled = found.length === 0;
    part("count").textContent = `${found.length} of the ${pairs.length} comparisons in this page match`;
    show();
  };
  const step = (by) => {
    if (found.length === 0) return;
    const at = found.indexOf(Number(chosen.value));
    chosen.value = String(found[(at + by + found.length) % found.length]);
    show();
  };

  options(judge, [["", "any judge"], ...judges.map(({ name }, index) => [String(index), name])]);
  options(pair, [["", "any pair"], ...[...new Set(pairs.map(named))].map((label) => [label, label])]);
  options(kind, [["", "any verdict"], ...Object.entries(KINDS)]);
  for (const select of [judge, pair, kind]) select.addEventListener("change", () => refill(Number(chosen.value)));
  find.addEventListener("input", () => refill(Number(chosen.value)));
  chosen.addEventListener("change", show);
  part("previous").addEventListener("click", () => step(-1));
  part("next").addEventListener("click", () => step(1));
  keys(box, step);
  refill(0);
})();
