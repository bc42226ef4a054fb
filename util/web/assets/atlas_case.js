// The chooser of a case's page: one attribute, changed from one value to another.
"use strict";
(() => {
  const { config, signed } = window.Slices;
  const { panels, show, go, $ } = window.Atlas;
  if (!config.attributes.length) return;
  const byRole = Object.fromEntries(panels.filter((p) => p.figure.dataset.role).map((p) => [p.figure.dataset.role, p]));
  let attribute, from, to;

  function button(text, pressed, act) {
    const made = document.createElement("button");
    made.type = "button";
    made.textContent = text;
    made.setAttribute("aria-pressed", String(pressed));
    made.addEventListener("click", act);
    return made;
  }

  function choices(id, chosen, act) {
    $(id).replaceChildren(...attribute.values.map((v) => button(v.label, v === chosen, () => act(v))));
  }

  function element(tag, text, kind = "") {
    const made = document.createElement(tag);
    made.textContent = text;
    made.className = kind;
    return made;
  }

  // Mean changes by region, as a bar to the left (less dense) or right (denser) of zero.
  function table() {
    const rows = Object.entries(config.regions).filter(([region]) => region in config.means[from.key]).map(([region, name]) => {
      const change = config.means[to.key][region] - config.means[from.key][region];
      const row = document.createElement("tr"), bar = element("i", "", change < 0 ? "down" : "up");
      bar.style.width = `${Math.min(50, (Math.abs(change) / config.limit) * 50)}%`;
      const cell = element("td", "", "lean");
      cell.append(bar);
      row.append(element("td", name), element("td", signed(change), "number"), cell);
      return row;
    });
    $("regions").replaceChildren(...rows);
  }

  function strongest() {
    const named = config.named[`${from.key}|${to.key}`] || config.named[`${to.key}|${from.key}`] || [];
    const items = named.map((zone, rank) => {
      const name = config.zones[zone - 1];
      const item = document.createElement("li"), link = element("button", name, "link");
      link.type = "button";
      link.addEventListener("click", () => go(config.centres[zone - 1]));
      const swatch = element("i", "", "swatch");
      swatch.style.borderColor = config.ranks[rank];
      item.append(swatch, link, ` ${signed(config.means[to.key][name] - config.means[from.key][name])} HU`);
      return item;
    });
    $("strongest").replaceChildren(...items);
    $("none").hidden = items.length > 0;
    return named;
  }

  function update() {
    for (const tab of $("attributes").children) tab.setAttribute("aria-pressed", String(tab.textContent === attribute.label));
    choices("from", from, (v) => { from = v; update(); });
    choices("to", to, (v) => { to = v; update(); });
    const same = from.key === to.key;
    $("same").hidden = !same;
    const zones = strongest();
    const titles = {
      before: from.key === "own" ? `Given: ${from.plain}` : `From: ${from.plain}`, after: `Changed: ${to.plain}`,
      difference: `Difference: ${to.plain} minus ${from.plain}`, wipe: `Before and after: ${from.plain} | ${to.plain}`,
    };
    const layers = { before: [from.key], after: [to.key], difference: [[from.key, to.key]], wipe: [from.key, to.key] };
    for (const [role, panel] of Object.entries(byRole)) {
      panel.figure.querySelector(".title").textContent = titles[role];
      show(panel, layers[role], role === "difference" ? zones : []);
    }
    $("dropped").replaceChildren(...[...new Set([from, to])].filter((v) => v.dropped).map((v) => element("li", v.dropped)));
    $("population").textContent = config.sentences[`${from.key}|${to.key}`] || config.sentences[`${to.key}|${from.key}`]
      || "This pair of values was not compared over patients.";
    table();
  }

  function choose(wanted) {
    attribute = wanted;
    from = wanted.values[wanted.from];
    to = wanted.values[wanted.to];
    update();
  }

  $("attributes").replaceChildren(...config.attributes.map((a) => button(a.label, false, () => choose(a))));
  choose(config.attributes[0]);
})();
