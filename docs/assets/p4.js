// A replay is told to be as light or dark as this site, and to play.
const told = (link) => {
  const dark = document.body.dataset.mdColorScheme === "slate";
  return `${link.href.split("#")[0]}#play,${dark ? "dark" : "light"}`;
};
for (const link of document.querySelectorAll('.p4-links a[href*="replays/"]')) {
  link.addEventListener("click", () => { link.href = told(link); });
}

// A replay opens in its card when somebody asks for it; without this script its link opens a page.
for (const stage of document.querySelectorAll("a.p4-stage")) {
  stage.addEventListener("click", (event) => {
    if (event.metaKey || event.ctrlKey || event.shiftKey) return;
    event.preventDefault();
    const frame = document.createElement("iframe");
    frame.src = told(stage);
    frame.title = stage.getAttribute("aria-label");
    const card = stage.closest(".p4-card");
    card.classList.add("p4-open");
    stage.replaceWith(frame);
    card.scrollIntoView({ block: "start" });
    frame.focus();
  });
}

// Tables scroll by themselves where they are wider than the page; whoever has no mouse scrolls them by keys.
for (const box of document.querySelectorAll(".p4-formula, .md-typeset__scrollwrap")) {
  if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
}

// Material gives its search no name.
document.querySelector(".md-search")?.setAttribute("aria-label", "Search");
