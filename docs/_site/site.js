// What the theme leaves out for people without a mouse: the search has a name, and whatever scrolls
// within a page can be reached and scrolled by keys.
const SCROLLS = ".md-typeset__scrollwrap, .md-typeset p:has(> img:only-child), .md-typeset pre > code";

function reach() {
  document.querySelector(".md-search")?.setAttribute("aria-label", "Search");
  for (const element of document.querySelectorAll(SCROLLS)) {
    if (element.scrollWidth > element.clientWidth) element.tabIndex = 0;
    else element.removeAttribute("tabindex");
  }
}

addEventListener("load", reach);
addEventListener("resize", reach);
