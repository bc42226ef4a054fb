/**
 * Marks of cases as accepted or rejected, saved as `review.csv`, which train.py obeys.
 *
 * A page opened from disk cannot write into its folder by itself: where the browser lets the reader choose the file to
 * write (File System Access API), it is written there; else it is downloaded, to be moved beside the page. The browser keeps
 * marks that are not saved yet.
 */
"use strict";
(() => {
  const NAME = "review.csv";
  const KEPT = `Mask2CT review ${location.pathname}`;
  const KEYS = { y: "accept", n: "reject" };
  const groups = [...document.querySelectorAll(".review")];
  const saveButton = document.getElementById("save-review"), state = document.getElementById("review-state");
  let unsaved = false;

  const buttonsOf = (group) => [...group.querySelectorAll("button")];
  const noteOf = (group) => group.querySelector("input");
  const markOf = (group) => buttonsOf(group).find((button) => button.getAttribute("aria-pressed") === "true")?.dataset.mark || "";

  function setMark(group, mark) {
    for (const button of buttonsOf(group)) button.setAttribute("aria-pressed", String(button.dataset.mark === mark));
    group.closest(".case").dataset.mark = mark;
  }

  /** Counts the marks, and keeps them until they are saved. */
  function update() {
    const marks = groups.map(markOf), count = (mark) => marks.filter((each) => each === mark).length;
    state.textContent = `${count("accept")} accepted, ${count("reject")} rejected, ${count("")} open${unsaved ? " · not saved" : ""}`;
    saveButton.classList.toggle("unsaved", unsaved);
    const kept = unsaved ? JSON.stringify(groups.map((group) => [group.dataset.case, markOf(group), noteOf(group).value])) : "";
    try {
      localStorage.setItem(KEPT, kept);
    } catch { /* a browser that keeps nothing: the marks stay until the page is closed */ }
  }

  function change(group, mark) {
    setMark(group, markOf(group) === mark ? "" : mark);
    unsaved = true;
    update();
  }

  /** Marks that an earlier visit left unsaved. */
  function recall() {
    let kept;
    try {
      kept = JSON.parse(localStorage.getItem(KEPT) || "[]");
    } catch {
      return;
    }
    if (!Array.isArray(kept)) return;
    for (const [name, mark, note] of kept.filter(Array.isArray)) {
      const group = groups.find(({ dataset }) => dataset.case === name);
      if (!group) continue;
      setMark(group, mark in { accept: 1, reject: 1 } ? mark : "");
      noteOf(group).value = String(note ?? "");
      unsaved = true;
    }
  }

  /** A cell of a CSV file; a text that a spreadsheet takes for a formula begins with an apostrophe. */
  function cell(text) {
    const line = text.replace(/\s+/g, " ").trim(), safe = /^'*[=+\-@]/.test(line) ? `'${line}` : line;
    return `"${safe.replaceAll('"', '""')}"`;
  }

  function csv() {
    const rows = groups.filter(markOf).map((group) => [group.dataset.case, markOf(group), noteOf(group).value]);
    return [["case", "mark", "note"], ...rows].map((row) => row.map(cell).join(",")).join("\r\n").concat("\r\n");
  }

  function download(text) {
    const link = document.createElement("a");
    link.href = `data:text/csv;charset=utf-8,${encodeURIComponent(text)}`;
    link.download = NAME;
    link.click();
  }

  /** Writes the file that the reader chooses; false where the browser has no such choice. */
  async function write(text) {
    if (!window.showSaveFilePicker) return false;
    const types = [{ description: "CSV", accept: { "text/csv": [".csv"] } }];
    let file;
    try {
      file = await window.showSaveFilePicker({ suggestedName: NAME, types });
    } catch (error) {
      if (error.name === "AbortError") throw error; // the reader changed their mind
      return false;
    }
    const stream = await file.createWritable();
    await stream.write(text);
    await stream.close();
    return true;
  }

  async function save() {
    const text = csv();
    let written;
    try {
      written = await write(text);
    } catch {
      return;
    }
    if (!written) download(text);
    unsaved = false;
    update();
    state.textContent += written ? " · saved" : " · downloaded: move review.csv beside this page";
  }

  if (!groups.length) {
    saveButton.hidden = true;
    return;
  }
  for (const group of groups) {
    setMark(group, markOf(group));
    for (const button of buttonsOf(group)) button.addEventListener("click", () => change(group, button.dataset.mark));
    noteOf(group).addEventListener("input", () => { unsaved = true; update(); });
  }
  document.addEventListener("keydown", (event) => {
    const mark = KEYS[event.key.toLowerCase()], { ctrlKey, altKey, metaKey, target } = event;
    if (!mark || ctrlKey || altKey || metaKey || target.matches("input, select, textarea")) return;
    const group = document.querySelector(".case:hover .review");
    if (group) change(group, mark);
  });
  saveButton.addEventListener("click", save);
  recall();
  update();
})();
