"use strict";
// The browser of samples: which documents, by what two recipes scored and by what was said; one of them at a time.
(() => {
  const { make, read, address } = report;
  const { options, block, line, finder, digits, keys } = report.browsing;
  const box = document.getElementById("sample-browser");
  if (box === null) return;
  const { who, texts, tasks } = read("sample-data");
  const part = (name) => document.getElementById(`sample-${name}`);
  const names = ["task", "metric", "a", "b", "pick", "find", "document"];
  const [task, metric, a, b, pick, find, chosen] = names.map(part);
  const place = part("view");
  const FIRST = 6;

  const BINARY = {
    any: ["any scores", () => true],
    "a-only": ["A right, B wrong", (x, y) => x === 1 && y === 0],
    both: ["both right", (x, y) => x === 1 && y === 1],
    neither: ["both wrong", (x, y) => x === 0 && y === 0],
    differ: ["they differ", (x, y) => x !== y],
  };
  const REAL = (better) => ({
    any: ["any scores", () => true],
    better: [better === "none" ? "A higher than B" : "A better than B", (x, y) => (better === "lower" ? x < y : x > y)],
    differ: ["they differ", (x, y) => x !== y],
    same: ["the same score", (x, y) => x === y],
  });

  const current = () => tasks[Number(task.value)];
  const kind = () => current().metrics[Number(metric.value)];
  const picks = () => (kind().binary ? BINARY : REAL(kind().better));
  const numbered = (labels) => labels.map((label, index) => [String(index), label]);

  // An answer is [recipe, seed, text, scores]: the places of the texts, and null for a score that there is not.
  const scoreOf = (entry, recipe) => entry.answers.find(([w]) => w === recipe)?.[3][Number(metric.value)] ?? null;
  const sayings = new Map();
  const saying = (entry) => {
    if (!sayings.has(entry)) {
      const all = [entry.prompt, entry.expected, ...entry.answers.map(([, , text]) => text)];
      sayings.set(entry, [...new Set(all)].map((t) => (t === null ? "" : texts[t].toLowerCase())).join("\n"));
    }
    return sayings.get(entry);
  };
  const matching = () => {
    const [, test] = picks()[pick.value];
    const has = finder(find.value);
    const found = [];
    current().documents.forEach((entry, index) => {
      if (pick.value !== "any") {
        const [x, y] = [scoreOf(entry, Number(a.value)), scoreOf(entry, Number(b.value))];
        if (x === null || y === null || !test(x, y)) return;
      }
      if (has(saying(entry))) found.push(index);
    });
    return found;
  };

  const chip = (score, { name, binary }) => {
    if (!binary) return make("span", "chip", `${name} ${digits(score)}`);
    return make("span", `chip ${score === 1 ? "right" : "wrong"}`, `${score === 1 ? "✓" : "✗"} ${name} ${score}`);
  };
  const card = ([recipe, seed, text, scores]) => {
    const node = make("article", "response");
    node.tabIndex = 0;
    const head = make("header");
    for (const [letter, select] of [["A", a], ["B", b]]) {
      if (Number(select.value) === recipe) head.append(make("span", "letter", letter));
    }
    head.append(make("strong", "", seed === null ? who[recipe] : `${who[recipe]}, seed ${seed}`));
    scores.forEach((score, index) => { if (score !== null) head.append(chip(score, current().metrics[index])); });
    node.append(head, make("pre", text === null ? "none" : "", text === null ? "no text was stored for this answer" : texts[text]));
    return node;
  };
  const grid = (answers) => {
    const row = make("div", "responses");
    row.append(...answers.map(card));
    return row;
  };

  let found = [];
  const show = () => {
    place.replaceChildren();
    const at = found.indexOf(Number(chosen.value));
    part("position").textContent = found.length === 0 ? "none" : `${at + 1} of ${found.length}`;
    if (found.length === 0) {
      place.append(make("p", "empty", "No document in this page fits. Choose other scores or recipes, or search for less."));
      return;
    }
    const entry = current().documents[found[at]];
    place.append(make("h3", "sample-title", `${entry.task}: document ${entry.id}`));
    if (entry.prompt !== null) place.append(block("Prompt", texts[entry.prompt]));
    if (entry.expected !== null) place.append(block("Expected", texts[entry.expected]));
    const rank = ([recipe]) => [a, b].findIndex((s) => Number(s.value) === recipe) + 1 || 3;
    const wanted = entry.answers.filter((answer) => rank(answer) < 3 || report.shows([who[answer[0]]]));
    // The two that are compared come first; of very many, the others are made when they are asked for.
    const sorted = wanted.toSorted((x, y) => rank(x) - rank(y));
    place.append(grid(sorted.slice(0, FIRST)));
    if (sorted.length > FIRST) {
      const more = make("details");
      more.append(make("summary", "", `${sorted.length - FIRST} more answers`));
      more.addEventListener("toggle", () => more.append(grid(sorted.slice(FIRST))), { once: true });
      place.append(more);
    }
  };
  const label = (entry, index) => `${index + 1}. ${line(entry.prompt === null ? entry.id : texts[entry.prompt])}`;
  // The documents that fit; the one that is shown stays where it does.
  const refill = (wanted) => {
    const before = wanted ?? Number(chosen.value);
    const { documents, total } = current();
    found = matching();
    options(chosen, found.map((index) => [String(index), label(documents[index], index)]));
    chosen.value = String(found.includes(before) ? before : found[0] ?? "");
    for (const name of ["previous", "next", "document"]) part(name).disabled = found.length === 0;
    const rest = documents.length === total ? "" : ` (${total.toLocaleString("en")} in all)`;
    part("count").textContent = `${found.length} of the ${documents.length} documents in this page${rest} match`;
    show();
  };
  const offer = () => {
    const before = pick.value;
    options(pick, Object.entries(picks()).map(([value, [said]]) => [value, said]));
    pick.value = before in picks() ? before : "any";
  };
  const enter = () => {
    options(metric, numbered(current().metrics.map(({ name, binary }) => (binary ? `${name}, right or wrong` : name))));
    offer();
  };

  const remember = () => {
    const pair = pick.value !== "any";
    address.set({
      task: current().name,
      metric: pair ? kind().name : null,
      a: pair ? who[Number(a.value)] : null,
      b: pair ? who[Number(b.value)] : null,
      pick: pair ? pick.value : null,
      find: find.value === "" ? null : find.value,
      document: found.length === 0 ? null : current().documents[Number(chosen.value)].id,
    }, "sample-browser");
  };
  const recall = () => {
    const to = (select, labels, name) => {
      const index = labels.indexOf(address.get(name));
      if (index >= 0) select.value = String(index);
    };
    to(task, tasks.map((t) => t.name), "task");
    enter();
    to(metric, current().metrics.map((m) => m.name), "metric");
    offer();
    to(a, who, "a");
    to(b, who, "b");
    const wanted = address.get("pick") ?? "any";
    pick.value = wanted in picks() ? wanted : "any";
    find.value = address.get("find") ?? "";
    const index = current().documents.findIndex((entry) => entry.id === address.get("document"));
    refill(index < 0 ? undefined : index);
  };

  const step = (by) => {
    if (found.length === 0) return;
    const at = found.indexOf(Number(chosen.value));
    chosen.value = String(found[(at + by + found.length) % found.length]);
    show();
    remember();
  };
  const changing = (after) => () => {
    after();
    remember();
  };
  task.addEventListener("change", changing(() => { enter(); refill(-1); }));
  metric.addEventListener("change", changing(() => { offer(); refill(); }));
  for (const select of [a, b, pick]) select.addEventListener("change", changing(refill.bind(null, undefined)));
  find.addEventListener("input", changing(refill.bind(null, undefined)));
  chosen.addEventListener("change", changing(show));
  part("swap").addEventListener("click", changing(() => {
    [a.value, b.value] = [b.value, a.value];
    refill();
  }));
  part("previous").addEventListener("click", () => step(-1));
  part("next").addEventListener("click", () => step(1));
  keys(box, step);

  options(task, numbered(tasks.map((t) => `${t.name} (${t.documents.length})`)));
  const labels = numbered(who);
  options(a, labels);
  options(b, labels);
  b.value = "0";
  a.value = String(Math.min(1, who.length - 1));
  addEventListener("choices", recall);
  addEventListener("recipes", show);
  recall();
})();
