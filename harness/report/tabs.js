"use strict";
(() => {
  const { make, address } = report;

  const enhance = (box) => {
    const panels = [...box.querySelectorAll(":scope > .panel")];
    if (panels.length < 2) return;
    const list = make("div", "tablist");
    list.setAttribute("role", "tablist");
    list.setAttribute("aria-label", box.closest(".part")?.querySelector("h2")?.textContent ?? "Views");
    const buttons = panels.map((panel) => {
      const button = make("button", "tab", panel.dataset.title);
      button.type = "button";
      button.id = `${panel.id}-tab`;
      button.setAttribute("role", "tab");
      button.setAttribute("aria-controls", panel.id);
      panel.setAttribute("role", "tabpanel");
      panel.setAttribute("aria-labelledby", button.id);
      // Without anything in it to stop at, the keyboard would pass it by.
      if (panel.querySelector("a, button, input, select, summary, [tabindex]") === null) panel.tabIndex = 0;
      return button;
    });
    list.append(...buttons);

    const select = (chosen) => {
      panels.forEach((panel, place) => {
        const on = place === chosen;
        buttons[place].setAttribute("aria-selected", String(on));
        buttons[place].tabIndex = on ? 0 : -1;
        // What is hidden so is still found by the browser's own search, which then opens the panel.
        if (on) panel.removeAttribute("hidden");
        else panel.setAttribute("hidden", "until-found");
      });
      const tab = buttons[chosen];
      list.scrollTo({ left: tab.offsetLeft - list.offsetLeft - (list.clientWidth - tab.offsetWidth) / 2 });
      panels[chosen].dispatchEvent(new CustomEvent("panelopen", { bubbles: true }));
    };
    const choose = (chosen) => {
      select(chosen);
      address.set({}, panels[chosen].id);
    };

    buttons.forEach((button, place) => {
      button.addEventListener("click", () => choose(place));
      const open = (event) => {
        // Also heard for a panel within this one, which answers for itself.
        if (event.target === panels[place]) select(place);
      };
      panels[place].addEventListener("reveal", open);
      panels[place].addEventListener("beforematch", () => select(place));
    });
    list.addEventListener("keydown", (event) => {
      const at = buttons.indexOf(document.activeElement);
      const last = buttons.length - 1;
      const to = { ArrowRight: at === last ? 0 : at + 1, ArrowLeft: at === 0 ? last : at - 1, Home: 0, End: last }[event.key];
      if (at < 0 || to === undefined || event.ctrlKey || event.altKey || event.metaKey) return;
      event.preventDefault();
      choose(to);
      buttons[to].focus();
    });
    box.prepend(list);
    box.classList.add("on");
    select(0);
  };

  for (const box of document.querySelectorAll(".tabs")) enhance(box);
  report.follow();
})();
