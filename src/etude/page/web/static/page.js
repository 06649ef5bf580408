"use strict";
(() => {
  const root = document.documentElement;
  try {
    const kept = localStorage.getItem("theme");
    if (kept) root.dataset.theme = kept;
  } catch { /* storage may be off */ }
  document.addEventListener("click", (event) => {
    if (!event.target.closest("#theme")) return;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    try { localStorage.setItem("theme", root.dataset.theme); } catch { /* as above */ }
  });
  const say = (event) => {
    let line = document.getElementById("refused");
    if (!line) {
      line = document.createElement("p");
      Object.assign(line, { id: "refused", className: "flag bad" });
      line.setAttribute("role", "alert");
      document.getElementById("main").prepend(line);
    }
    const answer = new DOMParser().parseFromString(event.detail.xhr.responseText || "", "text/html");
    const words = answer.querySelector("[role=alert]")?.textContent;
    const said = words || "That did not work: the page did not answer. Try again in a minute.";
    if (line.textContent === said) return; // a screen reader says it once
    line.textContent = said;
    line.scrollIntoView({ block: "nearest" });
  };
  document.addEventListener("htmx:responseError", say);
  document.addEventListener("htmx:sendError", say);
  document.addEventListener("htmx:afterSwap", () => document.getElementById("refused")?.remove());
})();
