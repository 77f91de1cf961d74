"use strict";
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const figures = read("figure-data");
  const printing = { on: false };

  // The figures carry data colours only; text and lines take the page's colours, so that they follow light, dark and print.
  const theme = () => {
    const style = getComputedStyle(document.documentElement);
    const of = (name) => style.getPropertyValue(name).trim();
    return printing.on
      ? { text: "#1b1f24", muted: "#57606a", grid: "#e4e7eb", panel: "#ffffff" }
      : { text: of("--text"), muted: of("--muted"), grid: of("--line"), panel: of("--panel") };
  };

  const layoutOf = (figure, width) => {
    const t = theme();
    const layout = structuredClone(figure.layout);
    const narrow = width < 560;
    Object.assign(layout, {
      autosize: true,
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: "system-ui, sans-serif", size: narrow ? 11 : 13, color: t.text },
      margin: { l: narrow ? 44 : 60, r: narrow ? 8 : 20, t: 14, b: 44, ...(layout.margin || {}) },
      hoverlabel: { bgcolor: t.panel, bordercolor: t.grid, font: { color: t.text }, align: "left" },
      legend: { orientation: "h", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom", font: { color: t.text }, ...(layout.legend || {}) },
    });
    for (const key of Object.keys(layout)) {
      if (!/^[xy]axis\d*$/.test(key)) continue;
      const axis = layout[key];
      Object.assign(axis, { gridcolor: t.grid, zerolinecolor: t.muted, linecolor: t.grid, tickcolor: t.grid, automargin: true, exponentformat: "e" });
      axis.zeroline = axis.zeroline ?? false;
      axis.title = { ...(axis.title || {}), font: { color: t.muted, size: narrow ? 11 : 12.5 } };
      if (narrow && axis.title.text && key.startsWith("y")) axis.title.standoff = 4;
    }
    for (const note of layout.annotations || []) note.font = { ...(note.font || {}), color: t.muted };
    for (const shape of layout.shapes || []) shape.line = { ...(shape.line || {}), color: t.muted };
    return layout;
  };

  const config = {
    responsive: true,
    displaylogo: false,
    showSendToCloud: false,
    showLink: false,
    plotlyServerURL: "",
    typesetMath: false,
    displayModeBar: "hover",
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
  };

  const chosen = (id) => {
    const select = document.getElementById(`${id}-variant`);
    return figures[id][select ? Number(select.value) : 0];
  };

  const dataOf = (figure) => {
    const traces = structuredClone(figure.data);
    // An interval must be seen against its own bar and against the ground.
    for (const trace of traces) if (trace.type === "bar" && trace.error_y) trace.error_y.color = theme().text;
    return traces;
  };

  const draw = async (id) => {
    const box = document.getElementById(id);
    const figure = chosen(id);
    await Plotly.react(box, dataOf(figure), layoutOf(figure, box.clientWidth), config);
    box.dataset.drawn = String(figure.label ?? "");
  };

  const drawAll = () => Promise.all(Object.keys(figures).map(draw));

  for (const id of Object.keys(figures)) {
    const select = document.getElementById(`${id}-variant`);
    if (select) select.addEventListener("change", () => { delete document.getElementById(id).dataset.drawn; draw(id); });
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  addEventListener("beforeprint", () => { printing.on = true; drawAll(); });
  addEventListener("afterprint", () => { printing.on = false; drawAll(); });

  const browser = document.getElementById("sample-browser");
  if (browser) {
    const tasks = read("sample-data");
    const task = document.getElementById("sample-task");
    const doc = document.getElementById("sample-document");
    const place = document.getElementById("sample-view");
    // Model output enters the page here and only as text.
    const make = (name, className, text) => {
      const node = document.createElement(name);
      if (className) node.className = className;
      if (text !== undefined) node.textContent = text;
      return node;
    };
    const block = (title, text) => {
      const section = make("section", "sample-block");
      section.append(make("h4", "", title), make("pre", "", text));
      return section;
    };
    const show = () => {
      const entry = tasks[Number(task.value)].documents[Number(doc.value)];
      place.replaceChildren();
      if (entry.prompt !== null) place.append(block("Prompt", entry.prompt));
      if (entry.expected !== null) place.append(block("Expected", entry.expected));
      const row = make("div", "responses");
      for (const answer of entry.responses) {
        const card = make("article", "response");
        const head = make("header");
        head.append(make("strong", "", answer.who));
        for (const score of answer.scores) head.append(make("span", "chip", score));
        card.append(head, make("pre", answer.text === null ? "none" : "", answer.text ?? "no text was stored for this answer"));
        row.append(card);
      }
      place.append(row);
      document.getElementById("sample-position").textContent = `${Number(doc.value) + 1} of ${tasks[Number(task.value)].documents.length}`;
    };
    const fill = () => {
      doc.replaceChildren(...tasks[Number(task.value)].documents.map((entry, index) => {
        const option = make("option", "", entry.label);
        option.value = String(index);
        return option;
      }));
      show();
    };
    const step = (by) => () => {
      const count = tasks[Number(task.value)].documents.length;
      doc.value = String((Number(doc.value) + by + count) % count);
      show();
    };
    tasks.forEach((entry, index) => {
      const option = make("option", "", entry.name);
      option.value = String(index);
      task.append(option);
    });
    task.addEventListener("change", fill);
    doc.addEventListener("change", show);
    document.getElementById("sample-previous").addEventListener("click", step(-1));
    document.getElementById("sample-next").addEventListener("click", step(1));
    fill();
  }

  drawAll().then(() => { document.documentElement.dataset.ready = "yes"; });
})();
