"use strict";
// Draws the figures: those in sight at once, those in a closed tab or fold when it is opened, and all of them for print.
(() => {
  const figures = report.read("figure-data") ?? {};
  const printing = { on: false };
  // As wide as an A4 page between its margins, whatever the window is, and so high that two find room (see style.css).
  const PAPER = { width: 680, height: 330 };

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

  const plain = (name) => name.replaceAll("&lt;", "<").replaceAll("&gt;", ">").replaceAll("&amp;", "&");
  const whoOf = (trace) => [plain(trace.name ?? trace.legendgroup ?? "")];

  const dataOf = (figure) => {
    const traces = structuredClone(figure.data.filter((trace) => report.shows(whoOf(trace))));
    // An interval must be seen against its own bar and against the ground.
    for (const trace of traces) if (trace.type === "bar" && trace.error_y) trace.error_y.color = theme().text;
    return traces;
  };

  const stale = new Set(Object.keys(figures));
  const drawn = new Map();
  const draw = async (id) => {
    const box = document.getElementById(id);
    const figure = chosen(id);
    const width = printing.on ? PAPER.width : box.clientWidth;
    const traces = dataOf(figure);
    const layout = layoutOf(figure, width);
    if (printing.on) Object.assign(layout, { ...PAPER, autosize: false, height: layout.height ?? PAPER.height });
    // Of one recipe alone, the legend still says which.
    if (traces.length < figure.data.length) layout.showlegend ??= true;
    if (traces.length === 0 && figure.data.length > 0) {
      const text = "Nothing here is of a chosen recipe.";
      layout.annotations = [{ text, showarrow: false, xref: "paper", yref: "paper", x: 0.5, y: 0.5, font: { color: theme().muted } }];
    }
    stale.delete(id);
    drawn.set(id, width);
    await Plotly.react(box, traces, layout, config);
    box.dataset.drawn = String(figure.label ?? "");
  };

  const inSight = (id) => printing.on || report.opened(document.getElementById(id));
  const drawStale = () => Promise.all([...stale].filter(inSight).map(draw));
  const redraw = () => {
    for (const id of Object.keys(figures)) stale.add(id);
    return drawStale();
  };
  // What was drawn for another width, and hidden while the window changed, is drawn anew.
  const appeared = (event) => {
    for (const id of Object.keys(figures)) {
      const box = document.getElementById(id);
      if (!event.target.contains?.(box)) continue;
      if (drawn.get(id) !== box.clientWidth) stale.add(id);
    }
    drawStale();
  };

  for (const id of Object.keys(figures)) {
    const select = document.getElementById(`${id}-variant`);
    if (select) select.addEventListener("change", () => { delete document.getElementById(id).dataset.drawn; draw(id); });
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  addEventListener("recipes", redraw);
  document.addEventListener("panelopen", appeared);
  document.addEventListener("toggle", appeared, true);
  const print = (on) => () => {
    printing.on = on;
    // The panels of all tabs are laid out before they are drawn into.
    document.documentElement.classList.toggle("printing", on);
    redraw();
  };
  addEventListener("beforeprint", print(true));
  addEventListener("afterprint", print(false));

  // One by one at first, so that the page answers meanwhile.
  const drawFirst = async () => {
    for (const id of [...stale].filter(inSight)) {
      if (stale.has(id)) await draw(id);
      await new Promise((done) => setTimeout(done));
    }
    report.follow();
    document.documentElement.dataset.ready = "yes";
  };
  drawFirst();
})();
