// What a page cannot say in HTML: keys, files that are dropped, settings that come back, colours.
"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const status = $("status"), notice = $("notice"), prompt = $("prompt");

  // -- Told ------------------------------------------------------------------------------------
  function say(text) { status.textContent = ""; setTimeout(() => { status.textContent = text; }, 30); }
  function complain(text) {
    notice.replaceChildren(document.createTextNode(text));
    const close = document.createElement("button");
    close.type = "button"; close.className = "plain"; close.textContent = "×";
    close.setAttribute("aria-label", "Close this message");
    close.addEventListener("click", () => { notice.hidden = true; });
    notice.append(close);
    notice.hidden = false;
  }
  function reasonOf(text, status) {
    try { return JSON.parse(text).error || `the studio answers ${status}`; } catch { return `the studio answers ${status}`; }
  }
  document.body.addEventListener("htmx:responseError", (event) => {
    const request = event.detail.xhr;
    complain(reasonOf(request.responseText, request.status));
    if (event.detail.pathInfo.requestPath.startsWith("/part/queue")) lookAgain();
  });
  let isAway = false;
  document.body.addEventListener("htmx:sendError", (event) => {
    if (!isAway) complain("the studio does not answer; is it still running?");
    isAway = true;
    if (event.detail.pathInfo.requestPath.startsWith("/part/queue")) lookAgain();
  });
  function lookAgain() {
    setTimeout(() => htmx.ajax("GET", "/part/queue", {
      target: "#queue", swap: "innerHTML",
      values: { revision: $("revision")?.value, source: $("source").value },
    }), 3000);
  }

  // Lists that come later keep what was chosen meanwhile.
  const chosen = {};
  document.body.addEventListener("htmx:beforeSwap", (event) => {
    if (event.detail.target?.id === "model") for (const id of ["model", "beside", "size"]) chosen[id] = $(id).value;
  });
  document.body.addEventListener("htmx:afterSettle", (event) => {
    if (event.detail.target?.id !== "model") return;
    for (const [id, value] of Object.entries(chosen)) {
      if ([...$(id).options].some((option) => option.value === value)) $(id).value = value;
    }
    $("steps").placeholder = $("size").dataset.steps;
  });

  // -- The picture in the middle ---------------------------------------------------------------
  function marked() {
    const current = $("source").value;
    for (const leaf of document.querySelectorAll(".leaf")) {
      if (leaf.dataset.node === current) leaf.setAttribute("aria-current", "true");
      else leaf.removeAttribute("aria-current");
    }
    $("go").textContent = current ? "Change" : "Make";
    $("size").disabled = Boolean(current);
  }
  let lastSource = null;
  function sourceChanged() {
    const current = $("source").value;
    marked();
    if (current === lastSource) return;
    lastSource = current;
    window.danceflowMask.reset();
    htmx.trigger(document.body, "source-changed");
  }
  function open(path, part, then) {
    // With an element of its own: behind another request of the same element htmx would wait,
    // and yet say at once that it is done.
    const asker = document.body.appendChild(document.createElement("span"));
    htmx.ajax("GET", part, { source: asker, target: "#stage", swap: "innerHTML" }).then(() => {
      history.pushState({}, "", path);
      then?.();
    }).finally(() => asker.remove());
  }
  function openNode(id, then) { open(`/?node=${id}`, `/part/stage/${id}`, then); }
  window.addEventListener("popstate", () => location.reload());

  document.body.addEventListener("htmx:afterSettle", (event) => {
    if (isAway) { isAway = false; notice.hidden = true; }
    const id = event.detail.target?.id;
    if (id === "stage") {
      sourceChanged();
      window.danceflowCompare.reset();
      document.title = `${$("shown")?.querySelector("h2")?.textContent ?? "danceflow"} · studio`;
    }
    marked();
    if (id === "queue") finished();
  });
  document.body.addEventListener("htmx:beforeRequest", (event) => {
    if (event.detail.elt.id === "composer") notice.hidden = true;
  });

  // -- What was asked for and is there ---------------------------------------------------------
  const told = new Set([...document.querySelectorAll("[data-over]")].map((task) => task.dataset.task));
  function finished() {
    for (const task of document.querySelectorAll("[data-over]")) {
      if (told.has(task.dataset.task)) continue;
      told.add(task.dataset.task);
      const name = task.querySelector(".name").textContent.trim();
      if (task.dataset.over === "failed") { say(`${name}: ${task.querySelector(".problem").textContent}`); continue; }
      if (task.dataset.over === "cancelled") { say(`${name}: cancelled`); continue; }
      const made = task.dataset.made.split(" ");
      if (prompt.value.trim() === task.dataset.prompt.trim()) prompt.value = "";
      say(`${name}: made`);
      if (Number(task.dataset.models) > 1) {
        const [first, second] = [made[0], made[made.length / Number(task.dataset.models)]];
        open(`/?node=${second}&with=${first}`, `/part/stage/${second}?with=${first}`);
      } else openNode(made[0]);
    }
  }

  // -- Settings that come back -----------------------------------------------------------------
  function fill(recipe, seed) {
    prompt.value = recipe.prompt;
    $("seed").value = seed ?? recipe.seed;
    $("steps").value = recipe.steps;
    $("guidance").value = recipe.guidance;
    $("variants").value = 1;
    if ([...$("size").options].some((option) => option.value === recipe.size)) $("size").value = recipe.size;
    htmx.trigger(document.body, "source-changed");
  }
  function withSource(source, then) {
    if ($("source").value === source) { then(); return; }
    if (source) openNode(source, then);
    else open("/", "/part/stage", then);
  }
  function again() {
    const shown = $("shown");
    if (!shown?.dataset.recipe) return;
    const recipe = JSON.parse(shown.dataset.recipe);
    withSource(shown.dataset.source, () => {
      fill(recipe, "");
      $("composer").requestSubmit();
    });
  }
  function restore() {
    const shown = $("shown");
    if (!shown?.dataset.recipe) return;
    const recipe = JSON.parse(shown.dataset.recipe);
    withSource(shown.dataset.source, () => {
      fill(recipe);
      $("settings").open = true;
      prompt.focus();
      say("its settings are in the form");
    });
  }
  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("button");
    if (!button) return;
    if (button.id === "again") again();
    else if (button.id === "restore") restore();
    else if (button.id === "keys-button") $("keys").showModal();
    else if (button.id === "theme") switchTheme();
    else if (button.dataset.prompt !== undefined) {
      prompt.value = button.dataset.prompt;
      prompt.focus();
      htmx.trigger(document.body, "source-changed");
    }
  });
  $("history-box").addEventListener("toggle", () => {
    if ($("history-box").open) htmx.trigger("#search", "opened");
  });

  // -- Files that are brought ------------------------------------------------------------------
  async function bring(file) {
    const form = new FormData();
    form.append("picture", file, file.name);
    say("the picture is read");
    let answer;
    try { answer = await fetch("/bring", { method: "POST", body: form }); }
    catch { complain("the picture could not be sent; is the studio still running?"); return; }
    const text = await answer.text();
    if (!answer.ok) { complain(reasonOf(text, answer.status)); return; }
    notice.hidden = true;
    const found = JSON.parse(text);
    if (!found.recipe) { openNode(found.node, () => say("the picture is there")); return; }
    withSource(found.source, () => {
      fill(found.recipe);
      if (found.mask) window.danceflowMask.load(found.mask);
      $("settings").open = true;
      say("prompt, seed and source of the file are in the form");
      prompt.focus();
    });
  }
  $("file").addEventListener("change", () => {
    const [file] = $("file").files;
    if (file) bring(file);
    $("file").value = "";
  });
  $("bring").addEventListener("submit", (event) => event.preventDefault());
  let depth = 0;
  const holdsFile = (event) => event.dataTransfer?.types.includes("Files");
  document.addEventListener("dragenter", (event) => {
    if (holdsFile(event)) { depth += 1; document.body.classList.add("dropping"); }
  });
  document.addEventListener("dragleave", (event) => {
    if (holdsFile(event) && --depth <= 0) { depth = 0; document.body.classList.remove("dropping"); }
  });
  document.addEventListener("dragover", (event) => { if (holdsFile(event)) event.preventDefault(); });
  document.addEventListener("drop", (event) => {
    if (!holdsFile(event)) return;
    event.preventDefault();
    depth = 0; document.body.classList.remove("dropping");
    const [file] = event.dataTransfer.files;
    if (file) bring(file);
  });

  // -- Colours ---------------------------------------------------------------------------------
  function showTheme() {
    const theme = document.documentElement.dataset.theme ?? "auto";
    $("theme").textContent = `Colours: ${theme}`;
  }
  function switchTheme() {
    const order = ["auto", "light", "dark"];
    const now = document.documentElement.dataset.theme ?? "auto";
    const next = order[(order.indexOf(now) + 1) % order.length];
    if (next === "auto") { delete document.documentElement.dataset.theme; localStorage.removeItem("danceflow-theme"); }
    else { document.documentElement.dataset.theme = next; localStorage.setItem("danceflow-theme", next); }
    showTheme();
  }

  // -- Keys ------------------------------------------------------------------------------------
  const single = $("single-keys");
  single.checked = localStorage.getItem("danceflow-keys") !== "off";
  single.addEventListener("change", () => localStorage.setItem("danceflow-keys", single.checked ? "on" : "off"));
  function walk(by) {
    const leaves = [...document.querySelectorAll("#tree .leaf")];
    const now = leaves.findIndex((leaf) => leaf.getAttribute("aria-current") === "true");
    const next = leaves[Math.min(leaves.length - 1, Math.max(0, now + by))];
    if (next) { next.focus(); next.click(); }
  }
  const press = (id) => () => $(id)?.click();
  const KEYS = {
    "?": () => $("keys").showModal(), "/": () => prompt.focus(), n: press("new-picture"),
    j: () => walk(1), k: () => walk(-1), a: press("again"), c: press("compare-link"),
    m: () => { if (!$("mask-box").hidden) { $("mask-box").open = true; $("mask-canvas").focus(); } },
    p: press("pin"), e: press("archive"), d: press("download"), u: press("undo"), U: press("redo"),
    r: () => { if ($("more")) { $("more").open = true; $("title").select(); } }, t: switchTheme,
  };
  document.addEventListener("keydown", (event) => {
    const field = event.target.closest?.("input, textarea, select");
    const isText = field && !["checkbox", "radio", "range", "file"].includes(field.type);
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && field?.closest("#composer")) {
      event.preventDefault();
      $("composer").requestSubmit();
      return;
    }
    if (event.key === "Escape" && !document.querySelector("dialog[open]")) {
      if (!notice.hidden) notice.hidden = true;
      else if ($("back") && !isText) $("back").click();
      else $("stage").focus();
      return;
    }
    if (isText || event.ctrlKey || event.metaKey || event.altKey || !single.checked) return;
    if (document.querySelector("dialog[open]")) return;
    const act = KEYS[event.key];
    if (act) { event.preventDefault(); act(); }
  });
  document.body.addEventListener("htmx:afterRequest", (event) => {
    const path = event.detail.pathInfo?.requestPath;
    if ((path === "/undo" || path === "/redo") && event.detail.successful) {
      say(event.detail.xhr.responseText);
      const node = $("source").value;
      // What was shown may be gone, or called otherwise.
      fetch(`/part/stage/${node}`).then((answer) => {
        if (answer.ok) htmx.ajax("GET", node ? `/part/stage/${node}` : "/part/stage", "#stage");
        else open("/", "/part/stage");
      });
    }
  });

  showTheme();
  sourceChanged();
})();
