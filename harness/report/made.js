"use strict";
// The browser of made data: of a prompt, everything that was said on the way into a dataset, in its order.
(() => {
  const { make, read } = report;
  const { options, block, line, finder, digits, keys } = report.browsing;
  const box = document.getElementById("made-browser");
  if (box === null) return;
  const { steps, kinds, texts, rows } = read("made-data");
  const part = (name) => document.getElementById(`made-${name}`);
  const [recipe, step, kind, find, chosen] = ["recipe", "step", "kind", "find", "chosen"].map(part);
  const KEPT = { kept: "something was kept", dropped: "nothing was kept" };

  // Of what was said: [kind, prompt, text, principle, by, score, kept], texts by their places.
  const saying = (row) => row.said.flatMap(([, prompt, text, principle]) => [prompt, text, principle])
    .map((place) => texts[place]).join("\n").toLowerCase();
  const keeps = (row) => row.said.some(([, , , , , , kept]) => kept === true);
  const fits = (row) => {
    const own = steps[row.step];
    if (recipe.value === "" ? !own.recipes.some((r) => report.shows([r])) : !own.recipes.includes(recipe.value)) return false;
    if (step.value !== "" && own.name !== step.value) return false;
    if (kind.value in KEPT) return keeps(row) === (kind.value === "kept");
    return kind.value === "" || row.said.some(([place]) => kinds[place] === kind.value);
  };

  const card = ([place, prompt, text, principle, by, score, kept], asked) => {
    const node = make("article", "response");
    node.tabIndex = 0;
    const head = make("header");
    head.append(make("strong", "", kinds[place]));
    if (kept !== null) head.append(make("span", `chip ${kept ? "right" : ""}`, kept ? "✓ kept" : "not kept"));
    if (score !== null) head.append(make("span", "chip", `${by === "" ? "score" : by} ${digits(score)}`));
    node.append(head);
    if (texts[principle] !== "") node.append(make("p", "principle fine", texts[principle]));
    if (prompt !== asked) node.append(make("pre", "asked fine", texts[prompt]));
    node.append(make("pre", texts[text] === "" ? "none" : "", texts[text] === "" ? "nothing" : texts[text]));
    return node;
  };

  let found = [];
  const show = () => {
    const place = part("view");
    place.replaceChildren();
    if (found.length === 0) {
      place.append(make("p", "empty", "No prompt in this page fits. Choose another recipe, step or kind, or search for less."));
      return;
    }
    const row = rows[Number(chosen.value)];
    const { recipes, name, seed } = steps[row.step];
    const asked = row.said[0][1];
    const cards = make("div", "responses");
    cards.append(...row.said.map((one) => card(one, asked)));
    place.append(
      make("h3", "sample-title", `${recipes.join(", ")}: ${name}, seed ${seed}, prompt ${row.row}`),
      block("Prompt", texts[asked]),
      cards,
    );
    if (row.more > 0) place.append(make("p", "fine", `${row.more} more of this prompt are in the store.`));
  };
  const refill = () => {
    const before = Number(chosen.value);
    const has = finder(find.value);
    found = rows.flatMap((row, index) => (fits(row) && has(saying(row)) ? [index] : []));
    options(chosen, found.map((index) => [String(index), `${index + 1}. ${line(texts[rows[index].said[0][1]])}`]));
    chosen.value = String(found.includes(before) ? before : found[0] ?? "");
    for (const name of ["previous", "next", "chosen"]) part(name).disabled = found.length === 0;
    part("count").textContent = `${found.length} of the ${rows.length} prompts in this page match`;
    show();
  };
  const go = (by) => {
    if (found.length === 0) return;
    const at = found.indexOf(Number(chosen.value));
    chosen.value = String(found[(at + by + found.length) % found.length]);
    show();
  };

  const all = (names) => [...new Set(names)].map((name) => [name, name]);
  options(recipe, [["", "any recipe"], ...all(steps.flatMap(({ recipes }) => recipes))]);
  options(step, [["", "any step"], ...all(steps.map(({ name }) => name))]);
  options(kind, [["", "anything"], ...kinds.map((name) => [name, name]), ...Object.entries(KEPT)]);
  for (const select of [recipe, step, kind]) select.addEventListener("change", refill);
  find.addEventListener("input", refill);
  chosen.addEventListener("change", show);
  part("previous").addEventListener("click", () => go(-1));
  part("next").addEventListener("click", () => go(1));
  keys(box, go);
  addEventListener("recipes", refill);
  refill();
})();
