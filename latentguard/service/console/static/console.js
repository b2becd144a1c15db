// What the pages do beyond forms and links: announcements, dialogs, and the threshold's slider.
"use strict";

(() => {
  const one = (selector, from = document) => from.querySelector(selector);
  const all = (selector, from = document) => [...from.querySelectorAll(selector)];

  // --- what a part of the page that was exchanged has to tell those who don't see it

  function announce(part) {
    const told = part.matches?.("[data-announce]") ? part : one("[data-announce]", part);
    if (told) one("#announcement").textContent = told.dataset.announce;
  }

  // --- dialogs: <dialog> itself keeps the focus inside, closes on Escape and gives the focus back

  document.addEventListener("click", (event) => {
    const asking = event.target.closest("[data-ask]");
    if (asking && asking.form.reportValidity()) {
      event.preventDefault();
      document.getElementById(asking.dataset.ask).showModal();
    }
    event.target.closest("[data-close]")?.closest("dialog").close();
    if (event.target.matches("dialog")) event.target.close(); // the backdrop
    const copying = event.target.closest("[data-copy]");
    if (copying) copy(copying);
  });

  async function copy(button) {
    await navigator.clipboard.writeText(one(button.dataset.copy).textContent);
    button.textContent = "Copied";
    one("#announcement").textContent = "Copied";
  }

  // --- Ctrl + Enter sends a prompt

  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && event.target.matches("textarea")) {
      event.preventDefault();
      event.target.form.requestSubmit();
    }
  });

  // --- the threshold's slider

  const percent = new Intl.NumberFormat("en", { style: "percent", minimumFractionDigits: 1, maximumFractionDigits: 1 });

  /** The rates at a threshold: those of the nearest one that the server worked out. */
  function ratesAt(rates, threshold) {
    return rates.reduce((best, each) =>
      Math.abs(each.threshold - threshold) < Math.abs(best.threshold - threshold) ? each : best);
  }

  function showThreshold(threshold) {
    const text = threshold.toFixed(2);
    all("[data-shown]").forEach((place) => { place.textContent = text; });
    all("[data-proposed]").forEach((field) => { field.value = text; });
    const chart = one("#histogram svg");
    if (!chart) return;
    const { low, high, left, right, rates } = chart.dataset;
    const share = (Math.min(Math.max(threshold, +low), +high) - low) / (high - low);
    const x = +left + share * (right - left);
    all("[data-now]", chart).forEach((mark) => {
      if (mark.tagName === "text") {
        mark.setAttribute("x", x);
        mark.textContent = text;
      } else {
        mark.setAttribute("x1", x);
        mark.setAttribute("x2", x);
      }
    });
    all("[data-score]", chart).forEach((column) => {
      column.setAttribute("class", +column.dataset.score >= threshold ? "blocked" : "count");
    });
    const known = JSON.parse(rates);
    if (!known.length) return;
    const here = ratesAt(known, threshold);
    all("[data-rate]").forEach((place) => {
      const rate = here[place.dataset.rate];
      place.textContent = rate === null ? "–" : percent.format(rate);
    });
  }

  let telling;

  /** Tells the rates once the slider rests. */
  function tellRates() {
    clearTimeout(telling);
    telling = setTimeout(() => {
      one("#announcement").textContent = all("#rates > div").map((each) =>
        `${one("dt", each).textContent}: ${one("output", each).textContent}`).join(", ");
    }, 700);
  }

  function setUpSlider(slider) {
    const field = one("#threshold");
    const move = (value, from) => {
      if (!Number.isFinite(value)) return;
      if (from !== slider) slider.value = value;
      if (from && from !== field) field.value = value.toFixed(2);
      slider.setAttribute("aria-valuetext", value.toFixed(2));
      showThreshold(value);
      if (from) tellRates();
    };
    slider.hidden = false;
    slider.addEventListener("input", () => move(slider.valueAsNumber, slider));
    field.addEventListener("input", () => move(field.value.trim() === "" ? NaN : Number(field.value), field));
    const reset = one("[data-reset]");
    reset.hidden = false;
    reset.addEventListener("click", () => move(Number(reset.dataset.reset), reset));
    one("[data-move] button:not([type=button])").hidden = true; // the figures move by themselves
    one("[data-move]").addEventListener("submit", (event) => event.preventDefault());
    move(slider.valueAsNumber);
  }

  // --- set-up, and what htmx exchanges

  document.addEventListener("DOMContentLoaded", () => {
    all("[data-copy]").forEach((button) => { button.hidden = !navigator.clipboard; });
    const slider = one("[data-slider]");
    if (slider) setUpSlider(slider);
    announce(one("main"));
  });

  document.addEventListener("htmx:after:swap", (event) => {
    const target = event.detail.ctx.target;
    if (target.id !== "overview" && target.id !== "histogram") announce(target); // those two renew themselves
    const slider = one("[data-slider]");
    if (slider && target.id === "histogram") showThreshold(slider.valueAsNumber);
  });
})();
