/** Search among the cases of a page, and the choice of those with warnings alone. */
"use strict";
(() => {
  const search = document.getElementById("filter"), warned = document.getElementById("warned");
  function update() {
    const wanted = search?.value.toLowerCase() || "";
    for (const element of document.querySelectorAll(".case")) {
      const parts = element.querySelector(".about") ? [...element.querySelectorAll("h2, .about")] : [element];
      const text = parts.map((part) => part.textContent).join(" ").toLowerCase();
      element.hidden = !text.includes(wanted) || Boolean(warned?.checked && !("warned" in element.dataset));
    }
  }
  search?.addEventListener("input", update);
  warned?.addEventListener("change", update);
})();
