// The keep-mask: painted at the picture's own size, sent as a small PNG of black and white.
"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const canvas = $("mask-canvas"), box = $("mask-box"), brush = $("brush"), sent = $("mask");
  const pen = canvas.getContext("2d");
  let picture = null, mask = null, ink = null, cursor = null, isDown = false, hasKeys = false;

  function reset() {
    picture = mask = ink = cursor = null;
    sent.value = "";
    canvas.setAttribute("aria-label", "Mask: nothing is painted");
    canvas.setAttribute("aria-busy", "true");  // until its picture is there
    const source = $("source-picture");
    box.hidden = !source;
    if (!source) { box.open = false; return; }
    const image = new Image();
    image.onload = () => {
      if ($("source-picture") !== source) return;
      picture = image;
      canvas.width = mask_size(image).width;
      canvas.height = mask_size(image).height;
      mask = new OffscreenCanvas(canvas.width, canvas.height);
      ink = mask.getContext("2d", { willReadFrequently: true });
      cursor = { x: canvas.width / 2, y: canvas.height / 2 };
      brush.max = Math.max(2, Math.round(Math.max(canvas.width, canvas.height) / 3));
      brush.value = Math.max(1, Math.round(Math.max(canvas.width, canvas.height) / 8));
      canvas.removeAttribute("aria-busy");
      if (pending) { load(pending); pending = null; } else { draw(); }
    };
    image.src = source.src;
  }
  const mask_size = (image) => ({ width: image.naturalWidth, height: image.naturalHeight });

  function draw() {
    if (!picture) return;
    pen.globalAlpha = 1;
    pen.clearRect(0, 0, canvas.width, canvas.height);
    pen.drawImage(picture, 0, 0);
    if (sent.value) {  // what is put back exactly lies in the shade
      const shade = new OffscreenCanvas(canvas.width, canvas.height), over = shade.getContext("2d");
      over.fillStyle = "#10131acc";
      over.fillRect(0, 0, canvas.width, canvas.height);
      over.globalCompositeOperation = "destination-out";
      over.drawImage(mask, 0, 0);
      pen.drawImage(shade, 0, 0);
    }
    if (hasKeys) {
      pen.strokeStyle = "#3457d5";
      pen.lineWidth = Math.max(1, canvas.width / 64);
      const size = Number(brush.value);
      pen.strokeRect(cursor.x - size / 2, cursor.y - size / 2, size, size);
    }
  }

  function share() {
    const data = ink.getImageData(0, 0, canvas.width, canvas.height).data;
    let count = 0;
    for (let i = 3; i < data.length; i += 4) count += data[i] > 127;
    return count / (canvas.width * canvas.height);
  }

  async function changed() {
    const part = share();
    const told = part ? `${Math.round(100 * part)} percent may change` : "nothing is painted";
    canvas.setAttribute("aria-label", `Mask: ${told}`);
    if (!part) { sent.value = ""; draw(); return; }
    const out = document.createElement("canvas");
    out.width = canvas.width; out.height = canvas.height;
    const white = out.getContext("2d");
    white.fillStyle = "#000"; white.fillRect(0, 0, out.width, out.height);
    white.drawImage(mask, 0, 0);
    sent.value = out.toDataURL("image/png");
    draw();
  }

  function dab(x, y) {
    if (!ink) return;
    const size = Number(brush.value);
    ink.fillStyle = "#fff";
    if (size <= 3) ink.fillRect(Math.floor(x - (size - 1) / 2), Math.floor(y - (size - 1) / 2), size, size);
    else { ink.beginPath(); ink.arc(x, y, size / 2, 0, 2 * Math.PI); ink.fill(); }
  }
  const at = (event) => {
    const area = canvas.getBoundingClientRect();
    return [(event.clientX - area.left) * canvas.width / area.width,
            (event.clientY - area.top) * canvas.height / area.height];
  };
  canvas.addEventListener("pointerdown", (event) => {
    if (!ink) return;
    isDown = true; hasKeys = false;
    canvas.setPointerCapture(event.pointerId);
    dab(...at(event)); changed();
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!isDown) return;
    for (const part of event.getCoalescedEvents?.() ?? [event]) dab(...at(part));
    changed();
  });
  for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => { isDown = false; });
  canvas.addEventListener("keydown", (event) => {
    if (!cursor) return;
    const step = Math.max(1, Math.round(Number(brush.value) / 2));
    const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
    if (event.key in moves) {
      cursor.x = Math.min(canvas.width, Math.max(0, cursor.x + moves[event.key][0]));
      cursor.y = Math.min(canvas.height, Math.max(0, cursor.y + moves[event.key][1]));
    } else if (event.key === " ") { dab(cursor.x, cursor.y); changed(); }
    else if (event.key === "+") brush.stepUp();
    else if (event.key === "-") brush.stepDown();
    else return;
    hasKeys = true;
    event.preventDefault(); event.stopPropagation();
    draw();
  });
  canvas.addEventListener("blur", () => { hasKeys = false; draw(); });
  brush.addEventListener("input", draw);
  $("mask-clear").addEventListener("click", () => {
    if (!ink) return;
    ink.clearRect(0, 0, canvas.width, canvas.height); changed();
  });
  $("mask-invert").addEventListener("click", () => {
    if (!ink) return;
    ink.globalCompositeOperation = "xor";
    ink.fillStyle = "#fff"; ink.fillRect(0, 0, canvas.width, canvas.height);
    ink.globalCompositeOperation = "source-over";
    changed();
  });

  let pending = null;
  function load(base64) {  // a mask that came back in a file
    if (!ink) { pending = base64; return; }
    const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
    createImageBitmap(new Blob([bytes], { type: "image/png" })).then((image) => {
      const part = new OffscreenCanvas(canvas.width, canvas.height), ctx = part.getContext("2d");
      ctx.drawImage(image, 0, 0, canvas.width, canvas.height);
      const pixels = ctx.getImageData(0, 0, canvas.width, canvas.height);
      for (let i = 0; i < pixels.data.length; i += 4) pixels.data[i + 3] = pixels.data[i] > 127 ? 255 : 0;
      ink.putImageData(pixels, 0, 0);
      box.open = true;
      changed();
    });
  }
  window.danceflowMask = { reset, load };
})();
