// Before anything is painted: the colours that were chosen, else those of the system.
"use strict";
(() => {
  const chosen = localStorage.getItem("danceflow-theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
})();
