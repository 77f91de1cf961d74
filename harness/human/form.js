"use strict";
(() => {
  const { content, digest, format } = JSON.parse(document.getElementById("form").textContent);
  const { criteria, pairs, items } = content;
  const main = document.getElementById("main");
  const status = document.getElementById("status");
  const letter = (place) => "ABCD"[place];
  const place = `harness-ratings-${digest}`;
  const START = -1;
  const END = items.length;

  // Prompts and answers enter the page by this alone, and as text.
  const make = (name, attributes = {}, ...children) => {
    const node = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
      else if (value === true) node.setAttribute(key, "");
      else if (value !== false && value !== null) node.setAttribute(key, value);
    }
    node.append(...children);
    return node;
  };

  const blank = (item) => ({
    scores: item.answers.map(() => criteria.map(() => null)),
    preferences: pairs.map(() => null),
    comment: "",
    ms: 0,
  });
  let state = { rater: "", at: START, given: items.map(blank) };
  let kept = true;
  const isMark = (mark) => mark === null || (Number.isInteger(mark) && mark >= 1 && mark <= 7);
  // What lies in the browser may be of a broken write: only what fits the form is taken up.
  const fits = (found) =>
    Array.isArray(found?.given) && found.given.length === items.length && typeof found.rater === "string" &&
    Number.isInteger(found.at) && found.at >= START && found.at <= END &&
    found.given.every((one, i) =>
      one?.scores?.length === items[i].answers.length && one.scores.every((row) => row.length === criteria.length && row.every(isMark)) &&
      one.preferences?.length === pairs.length && one.preferences.every(isMark) &&
      typeof one.comment === "string" && Number.isInteger(one.ms));
  try {
    const found = JSON.parse(localStorage.getItem(place));
    if (fits(found)) state = found;
  } catch {
    kept = false;
  }
  const keep = () => {
    try {
      localStorage.setItem(place, JSON.stringify(state));
      kept = true;
    } catch {
      kept = false;
    }
    const warning = document.getElementById("unkept");
    if (warning !== null) warning.hidden = kept;
  };

  // SHA-256 (FIPS 180-4): crypto.subtle is absent where a page was opened over plain http.
  const sha256 = (text) => {
    const bytes = new TextEncoder().encode(text);
    const primes = [];
    for (let n = 2; primes.length < 64; n++) if (primes.every((p) => n % p !== 0)) primes.push(n);
    const fraction = (x) => ((x - Math.floor(x)) * 2 ** 32) | 0;
    const constants = primes.map((p) => fraction(Math.cbrt(p)));
    const hash = primes.slice(0, 8).map((p) => fraction(Math.sqrt(p)));
    const padded = new Uint8Array(((bytes.length + 8) >> 6) * 64 + 64);
    padded.set(bytes);
    padded[bytes.length] = 0x80;
    const view = new DataView(padded.buffer);
    view.setUint32(padded.length - 8, Math.floor(bytes.length / 2 ** 29));
    view.setUint32(padded.length - 4, bytes.length * 8);
    const turn = (x, n) => (x >>> n) | (x << (32 - n));
    const w = new Int32Array(64);
    for (let start = 0; start < padded.length; start += 64) {
      for (let i = 0; i < 64; i++) {
        if (i < 16) w[i] = view.getInt32(start + 4 * i);
        else {
          const [a, b] = [w[i - 15], w[i - 2]];
          const small = turn(a, 7) ^ turn(a, 18) ^ (a >>> 3);
          w[i] = w[i - 16] + small + w[i - 7] + (turn(b, 17) ^ turn(b, 19) ^ (b >>> 10));
        }
      }
      let [a, b, c, d, e, f, g, h] = hash;
      for (let i = 0; i < 64; i++) {
        const one = (h + (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) + ((e & f) ^ (~e & g)) + constants[i] + w[i]) | 0;
        const two = ((turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) + ((a & b) ^ (a & c) ^ (b & c))) | 0;
        [a, b, c, d, e, f, g, h] = [(one + two) | 0, a, b, c, (d + one) | 0, e, f, g];
      }
      [a, b, c, d, e, f, g, h].forEach((x, i) => (hash[i] = (hash[i] + x) | 0));
    }
    return hash.map((x) => (x >>> 0).toString(16).padStart(8, "0")).join("");
  };
  const canonical = (value) => {
    if (Array.isArray(value)) return `[${value.map(canonical).join(",")}]`;
    if (value !== null && typeof value === "object") {
      return `{${Object.keys(value).sort().map((key) => `${canonical(key)}:${canonical(value[key])}`).join(",")}}`;
    }
    return JSON.stringify(value).replace(/[\u007f-\uffff]/g, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);
  };

  const marksOf = (given) => [...given.scores.flat(), ...given.preferences];
  const open = (given) => marksOf(given).filter((mark) => mark === null).length;
  const say = (text) => {
    status.textContent = text;
  };

  let since = null;
  const clock = () => {
    if (since !== null && state.at >= 0 && state.at < END) state.given[state.at].ms += Math.round(performance.now() - since);
    since = document.visibilityState === "visible" ? performance.now() : null;
  };
  document.addEventListener("visibilitychange", () => {
    clock();
    keep();
  });
  addEventListener("pagehide", () => {
    clock();
    keep();
  });

  const question = (name, legend, low, high, mark, take) => {
    const marks = make("div", { class: "marks" });
    for (let value = 1; value <= 7; value++) {
      const words = value === 1 ? `1, ${low}` : value === 7 ? `7, ${high}` : value === 4 ? "4, in the middle" : `${value}`;
      const input = make("input", {
        type: "radio", name, value: `${value}`, "aria-label": words,
        onchange: () => {
          take(value);
          keep();
          say("");
          input.closest("fieldset").classList.remove("open");
          advance();
        },
      });
      input.checked = mark === value;
      marks.append(make("label", {}, input, `${value}`));
    }
    const ends = make("div", { class: "ends", "aria-hidden": "true" }, make("span", {}, `1 ${low}`), make("span", {}, `7 ${high}`));
    return make("fieldset", {}, make("legend", {}, legend), marks, ends);
  };
  const questions = () => [...main.querySelectorAll("fieldset")];
  const current = () => document.activeElement?.closest?.("fieldset") ?? null;
  const focusOn = (set) => (set.querySelector("input:checked") ?? set.querySelector("input")).focus();
  const advance = () => {
    const count = items.filter((_, i) => open(state.given[i]) === 0).length;
    main.querySelector("progress").value = count;
    main.querySelector(".count").textContent = told(count);
  };
  const told = (count) => `Item ${state.at + 1} of ${items.length}, ${count} answered`;

  const go = (to, focus = true) => {
    clock();
    state.at = Math.max(START, Math.min(END, to));
    keep();
    draw(focus);
    scrollTo({ top: 0, behavior: "instant" });
  };
  const button = (text, act, how = {}) => make("button", { type: "button", onclick: act, ...how }, text);
  const unkept = () =>
    make("p", { id: "unkept", class: "warning", hidden: kept }, "This browser keeps nothing for this page: finish in one go, without a reload.");

  const drawStart = () => {
    const name = make("input", { type: "text", id: "rater", maxlength: "40", autocomplete: "off" });
    name.value = state.rater;
    const begin = () => {
      state.rater = name.value.trim();
      if (state.rater === "") {
        say("Please give a name first.");
        name.focus();
        return;
      }
      say("");
      go(0);
    };
    name.addEventListener("keydown", (event) => {
      if (event.key === "Enter") begin();
    });
    main.replaceChildren(
      make("h1", {}, "Rating answers"),
      make("p", {}, `You will read ${items.length} prompts, each with ${items[0].answers.length} answer(s). Rate each answer from 1 to 7. The words at both ends of a scale say what 1 and 7 mean; 4 is in the middle.`),
      make("p", {}, "Judge each answer by itself first, then say which of two you prefer. Do not execute what an answer tells you to do, and trust no link in it. Some answers may be upsetting or wrong."),
      make("p", {}, "What you enter stays in this browser until you finish; nothing is sent anywhere. At the end you save a file and send it back. You can stop at any time, go on later in the same browser, and go back to earlier items."),
      make("p", { class: "keys" }, "By keyboard: ", make("kbd", {}, "1"), "–", make("kbd", {}, "7"), " rate and go to the next question, ", make("kbd", {}, "↑"), " ", make("kbd", {}, "↓"), " change the question, ", make("kbd", {}, "←"), " ", make("kbd", {}, "→"), " change the mark, ", make("kbd", {}, "Enter"), " next item, ", make("kbd", {}, "Page Up"), " previous item, ", make("kbd", {}, "C"), " comment, ", make("kbd", {}, "Esc"), " out of the comment."),
      unkept(),
      make("label", { class: "named", for: "rater" }, "Your name or any other you go by (it is kept with your ratings)"),
      name,
      button("Begin", begin, { class: "first" }),
    );
    return name;
  };

  const drawItem = () => {
    const item = items[state.at];
    const given = state.given[state.at];
    const count = items.filter((_, i) => open(state.given[i]) === 0).length;
    const progress = make("progress", { max: `${items.length}`, value: `${count}`, "aria-label": "items answered" });
    const answers = item.answers.map((text, a) =>
      make("article", { class: "box", "aria-label": `Answer ${letter(a)}` },
        make("h2", {}, `Answer ${letter(a)}`),
        make("div", { class: "text", tabindex: "-1" }, text === "" ? "(nothing)" : text),
        ...criteria.map((c, n) =>
          question(`score-${a}-${n}`, `${letter(a)}: ${c.question}`, c.low, c.high, given.scores[a][n], (mark) => (given.scores[a][n] = mark)))));
    const preferences = pairs.map(([a, b], n) =>
      question(`preference-${n}`, `Which do you prefer, ${letter(a)} or ${letter(b)}? (4: neither)`, `${letter(a)} is much better`, `${letter(b)} is much better`, given.preferences[n], (mark) => (given.preferences[n] = mark)));
    const comment = make("textarea", { id: "comment", rows: "2", maxlength: "20000", "aria-keyshortcuts": "c" });
    comment.value = given.comment;
    comment.addEventListener("input", () => {
      given.comment = comment.value;
      keep();
    });
    main.replaceChildren(
      make("div", { class: "top" }, progress, make("span", { class: "count" }, told(count))),
      unkept(),
      make("section", { class: "box", "aria-label": "Prompt" }, make("h2", {}, "Prompt"), make("div", { class: "text" }, item.prompt)),
      make("div", { class: "answers" }, ...answers),
      make("section", { class: "box", "aria-label": "Preference and comment" }, ...preferences,
        make("label", { class: "named", for: "comment" }, "Comment (if you like)"), comment),
      make("div", { class: "bar" },
        button("Previous", () => go(state.at - 1), { "aria-keyshortcuts": "PageUp" }),
        button(state.at === END - 1 ? "To the end" : "Next", () => go(state.at + 1), { class: "first", "aria-keyshortcuts": "Enter" }),
        make("span", { class: "keys" }, "1–7 rate · ↑↓ question · ←→ mark · Enter next · Page Up back · C comment")),
    );
    const sets = questions();
    return (sets.find((set) => set.querySelector("input:checked") === null) ?? sets[0]).querySelector("input");
  };

  const returned = () => {
    const whole = {
      format, version: 1, form: digest, rater: state.rater, finished: new Date().toISOString(),
      items: items.map((item, i) => ({
        item: item.item, scores: state.given[i].scores, preferences: state.given[i].preferences,
        comment: state.given[i].comment, seconds: Math.round(state.given[i].ms / 1000),
      })),
    };
    return { ...whole, digest: sha256(canonical(whole)) };
  };
  const drawEnd = () => {
    const missing = items.map((_, i) => i).filter((i) => open(state.given[i]) > 0);
    const save = () => {
      const text = `${JSON.stringify(returned(), null, 1)}\n`;
      const link = make("a", { href: URL.createObjectURL(new Blob([text], { type: "application/json" })) });
      const who = state.rater.replace(/[^A-Za-z0-9_-]+/g, "-").slice(0, 40);
      link.download = `ratings-${digest.slice(0, 8)}-${who || "rater"}.json`;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
      const copy = main.querySelector("#copy");
      copy.value = text;
      copy.parentElement.hidden = false;
      say(`Saved as ${link.download}: please send that file back.`);
    };
    const finish = button("Finish and save the file", save, { class: "first", id: "finish", disabled: missing.length > 0 });
    main.replaceChildren(
      make("h1", {}, missing.length ? "Some questions are open" : "All answered"),
      missing.length
        ? make("p", { class: "warning", role: "alert" }, `${missing.length} of ${items.length} items have open questions; a file can be saved once all are answered:`)
        : make("p", {}, `Thank you, ${state.rater}. Save the file and send it back to whoever gave you this form. You can still go back and change an answer, and save it again.`),
      make("div", { class: "opens" }, ...missing.map((i) => button(`Item ${i + 1}: ${open(state.given[i])} open`, () => go(i)))),
      unkept(),
      finish,
      make("p", { hidden: true }, make("label", { class: "named", for: "copy" }, "If no file was saved, send this text:"), make("textarea", { id: "copy", rows: "6", readonly: true })),
      make("div", { class: "bar" }, button("Previous", () => go(END - 1)), button("To the beginning", () => go(START))),
    );
    return missing.length ? main.querySelector(".opens button") : finish;
  };

  const draw = (focus = true) => {
    const first = state.at === START ? drawStart() : state.at === END ? drawEnd() : drawItem();
    if (focus) first.focus({ preventScroll: true });
  };

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || state.at === START || state.at === END) return;
    const typing = event.target.tagName === "TEXTAREA";
    if (typing) {
      if (event.key === "Escape") focusOn(questions()[0]);
      return;
    }
    const sets = questions();
    const at = sets.indexOf(current());
    const move = (by) => focusOn(sets[Math.max(0, Math.min(sets.length - 1, at + by))]);
    if (/^[1-7]$/.test(event.key)) {
      const set = sets[Math.max(at, 0)];
      const input = set.querySelector(`input[value="${event.key}"]`);
      input.focus();
      if (!input.checked) input.click();
      if (sets.indexOf(set) < sets.length - 1) focusOn(sets[sets.indexOf(set) + 1]);
    } else if (event.key === "ArrowDown") move(1);
    else if (event.key === "ArrowUp") move(-1);
    else if (event.key === "Enter" && event.target.tagName !== "BUTTON") {
      const left = sets.find((set) => set.querySelector("input:checked") === null);
      if (left === undefined) go(state.at + 1);
      else {
        left.classList.add("open");
        focusOn(left);
        say(`${open(state.given[state.at])} questions of this item are open; the button Next leaves them so.`);
      }
    } else if (event.key === "PageUp") go(state.at - 1);
    else if (event.key.toLowerCase() === "c") document.getElementById("comment").focus();
    else return;
    event.preventDefault();
  });

  draw(false);
  since = performance.now();
  document.documentElement.dataset.ready = "yes";
})();
