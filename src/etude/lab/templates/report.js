"use strict";
(() => {
  const at = (id) => document.getElementById(id);
  const rows = [...document.querySelectorAll("#table tbody tr")];
  const filter = () => {
    const text = at("f-text").value.trim().toLowerCase().split(/\s+/);
    const word = at("f-word").value, tier = at("f-tier").value, odd = at("f-surprise").checked;
    let shown = 0;
    for (const row of rows) {
      const d = row.dataset;
      const keep = (!word || d.word === word) && (!tier || d.tier === tier) && (!odd || d.surprise === "1")
        && text.every((t) => d.text.includes(t));
      row.hidden = !keep;
      shown += keep;
    }
    at("f-count").textContent = `${shown} claims`;
  };
  for (const id of ["f-text", "f-word", "f-tier", "f-surprise"]) at(id).addEventListener("input", filter);
  at("theme").addEventListener("click", () => {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });
})();
