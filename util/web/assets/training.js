/** Keeps the page of a running training up to date: progress every few seconds, all of it once it is written anew. */
"use strict";
(() => {
  const SECONDS = 5;
  const time = (seconds) => {
    const minutes = Math.round(seconds / 60);
    if (minutes < 1) return "less than a minute";
    return minutes < 90 ? `${minutes} min` : `${(minutes / 60).toFixed(1)} h`;
  };

  window.Mask2CT = {
    /** Called by progress.js, which the training writes. */
    progress({ step, steps, seconds_left: left, page, state }) {
      if (page !== Number(document.body.dataset.page)) location.reload();
      const bar = document.getElementById("steps"), text = document.getElementById("state");
      Object.assign(bar, { max: steps, value: step });
      const rest = state === "running" && left !== null ? `, about ${time(left)} left` : "";
      text.textContent = `Step ${step} of ${steps}: ${state}${rest}.`;
    },
  };

  function read() {
    const script = document.createElement("script");
    script.src = `progress.js?${Date.now()}`;
    script.onload = script.onerror = () => script.remove();
    document.head.append(script);
  }
  read();
  setInterval(read, 1000 * SECONDS);
})();
