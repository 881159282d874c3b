// Two pictures: a slider over them, and zoom and place that both share.
"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const place = { zoom: 1, x: 0, y: 0 };

  function show() {
    const view = $("beside-view");
    if (!view) return;
    const most = 50 * (1 - 1 / place.zoom);
    place.x = Math.min(most, Math.max(-most, place.x));
    place.y = Math.min(most, Math.max(-most, place.y));
    view.style.setProperty("--zoom", place.zoom);
    view.style.setProperty("--x", place.x);
    view.style.setProperty("--y", place.y);
    $("zoom").value = place.zoom;
  }
  function zoomTo(zoom) { place.zoom = Math.min(8, Math.max(1, zoom)); show(); }

  document.addEventListener("input", (event) => {
    if (event.target.id === "at") {
      event.target.parentElement.querySelector(".layers").style.setProperty("--at", `${event.target.value}%`);
    } else if (event.target.id === "zoom") zoomTo(Number(event.target.value));
  });
  document.addEventListener("click", (event) => {
    if (event.target.id === "zoom-reset") { place.x = place.y = 0; zoomTo(1); }
  });
  document.addEventListener("keydown", (event) => {
    if (event.target.id !== "beside-view") return;
    const step = 6 / place.zoom;
    const moves = { ArrowLeft: [step, 0], ArrowRight: [-step, 0], ArrowUp: [0, step], ArrowDown: [0, -step] };
    if (event.key in moves) { place.x += moves[event.key][0]; place.y += moves[event.key][1]; show(); }
    else if (event.key === "+" || event.key === "=") zoomTo(place.zoom + 0.5);
    else if (event.key === "-") zoomTo(place.zoom - 0.5);
    else return;
    event.preventDefault();
  });
  let held = null;
  document.addEventListener("pointerdown", (event) => {
    const view = event.target.closest?.("#beside-view .window");
    if (!view) return;
    held = { x: event.clientX, y: event.clientY, width: view.clientWidth * place.zoom, height: view.clientHeight * place.zoom };
    view.setPointerCapture(event.pointerId);
  });
  document.addEventListener("pointermove", (event) => {
    const over = event.target.closest?.(".layers");
    if (over && event.buttons) {
      const area = over.getBoundingClientRect();
      const at = $("at");
      at.value = 100 * (event.clientX - area.left) / area.width;
      over.style.setProperty("--at", `${at.value}%`);
    }
    if (!held) return;
    place.x += 100 * (event.clientX - held.x) / held.width;
    place.y += 100 * (event.clientY - held.y) / held.height;
    held.x = event.clientX; held.y = event.clientY;
    show();
  });
  for (const name of ["pointerup", "pointercancel"]) document.addEventListener(name, () => { held = null; });
  document.addEventListener("wheel", (event) => {
    if (!event.target.closest?.("#beside-view") || !(event.ctrlKey || place.zoom > 1)) return;
    event.preventDefault();
    zoomTo(place.zoom * (event.deltaY < 0 ? 1.15 : 1 / 1.15));
  }, { passive: false });
  document.addEventListener("dragstart", (event) => {
    if (event.target.closest?.(".layers")) event.preventDefault();
  });
  window.danceflowCompare = { reset() { place.zoom = 1; place.x = place.y = 0; } };
})();
