/** The chooser of a case's page: one attribute, changed from one value to another. */
"use strict";
(() => {
  const { config, signed, viewerOf } = Mask2CT;
  if (!config.attributes.length) return;
  const byId = (id) => document.getElementById(id);
  const viewer = viewerOf(document.querySelector("[data-viewer]"));
  const panels = viewer.panels.filter((panel) => panel.role);
  let attribute, from, to;

  function element(tag, text, kind = "") {
    const node = document.createElement(tag);
    node.textContent = text;
    node.className = kind;
    return node;
  }

  function button(text, pressed, act, kind = "") {
    const node = element("button", text, kind);
    node.type = "button";
    node.setAttribute("aria-pressed", String(pressed));
    node.addEventListener("click", act);
    return node;
  }

  function showValues(id, chosen, act) {
    byId(id).replaceChildren(...attribute.values.map((v) => button(v.label, v === chosen, () => act(v))));
  }

  /** What is known of the pair of values, whichever of the two comes first. */
  const ofPair = (table) => table[`${from.key}|${to.key}`] || table[`${to.key}|${from.key}`];
  const change = (region) => config.means[to.key][region] - config.means[from.key][region];

  /** A change as a row, with a bar to the left (less) or right (more) of zero. */
  function changeRow(name, value, limit, unit = "") {
    const row = document.createElement("tr"), cell = element("td", "", "lean");
    const bar = element("i", "", value < 0 ? "down" : "up");
    bar.style.width = `${Math.min(50, (Math.abs(value) / limit) * 50)}%`;
    cell.append(bar);
    row.append(element("td", name), element("td", `${signed(value)}${unit}`, "number"), cell);
    return row;
  }

  /** Outcomes beyond the mean: HU or percentage points; bars end at five times what is negligible. */
  function outcomeRow({ name, label, unit, negligible }) {
    const value = config.lungs[to.key][name] - config.lungs[from.key][name];
    return changeRow(label, value, 5 * negligible, ` ${unit}`);
  }

  function zoneItem(zone, rank) {
    const name = viewer.zone_names[zone - 1], item = document.createElement("li"), swatch = element("i", "", "swatch");
    swatch.style.borderColor = config.ranks[rank];
    const link = button(name, false, () => viewer.go(config.centres[zone - 1]), "link");
    item.append(swatch, link, ` ${signed(change(name))} ${config.unit || "HU"}`);
    return item;
  }

  function showNumbers(zones) {
    const regions = Object.entries(config.regions).filter(([region]) => region in config.means[from.key]);
    byId("regions").replaceChildren(...regions.map(([region, name]) => changeRow(name, change(region), config.limit)));
    const outcomes = config.outcomes.filter(({ name }) => name in config.lungs[from.key]);
    byId("outcomes").replaceChildren(...outcomes.map(outcomeRow));
    byId("strongest").replaceChildren(...zones.map(zoneItem));
    byId("none").hidden = zones.length > 0;
    byId("population").textContent = ofPair(config.sentences) || "This pair of values was not compared over patients.";
  }

  function showPanels(zones) {
    const shown = {
      before: [[from.key], `${from.key === config.factual ? "Factual" : "From"}: ${from.plain}`],
      after: [[to.key], `Changed: ${to.plain}`],
      difference: [[[from.key, to.key]], `Difference: ${to.plain} minus ${from.plain}`],
      wipe: [[from.key, to.key], `Before and after: ${from.plain} | ${to.plain}`],
    };
    for (const panel of panels) {
      const [layers, title] = shown[panel.role];
      viewer.show(panel, layers, { title, zones: panel.role === "difference" ? zones : [] });
    }
  }

  function update() {
    for (const tab of byId("attributes").children) {
      tab.setAttribute("aria-pressed", String(tab.textContent === attribute.label));
    }
    showValues("from", from, (value) => { from = value; update(); });
    showValues("to", to, (value) => { to = value; update(); });
    byId("same").hidden = from.key !== to.key;
    const dropped = [...new Set([from, to])].filter((value) => value.dropped);
    byId("dropped").replaceChildren(...dropped.map((value) => element("li", value.dropped)));
    const zones = ofPair(config.named) || [];
    showPanels(zones);
    showNumbers(zones);
  }

  function choose(wanted) {
    attribute = wanted;
    from = wanted.values[wanted.from];
    to = wanted.values[wanted.to];
    update();
  }

  byId("attributes").replaceChildren(...config.attributes.map((a) => button(a.label, false, () => choose(a))));
  choose(config.attributes[config.first]);
})();
