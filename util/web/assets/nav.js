/** Links to pages that were written before or after this one; links.js, which names them, calls `Mask2CT.links`. */
"use strict";
(() => {
  function links(pages) {
    if (!pages.length) return;
    const header = document.querySelector("header.top");
    let nav = header.querySelector("nav");
    if (!nav) header.prepend(nav = document.createElement("nav"));
    const anchors = pages.map(([text, address]) => Object.assign(document.createElement("a"), { textContent: text, href: address }));
    nav.prepend(...anchors);
  }

  window.Mask2CT = Object.assign(window.Mask2CT || {}, { links });
})();
