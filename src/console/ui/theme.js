// The theme: light, dark, or what the system says, which is the default.
//
// A plain script in the head, so that no page is shown in the wrong theme first. It sets `data-theme` on the root
// element, and turns it over when anything with `data-theme-toggle` is clicked. The choice stays in localStorage.
"use strict";
(() => {
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const known = (theme) => (theme === "light" || theme === "dark" ? theme : null);
  const read = () => {
    try {
      return known(localStorage.getItem("sidekey.theme"));
    } catch {
      return null; // storage is switched off
    }
  };
  const shown = () => root.dataset.theme ?? (dark.matches ? "dark" : "light");
  const choose = (theme) => {
    // What the system says anyway needs no memory.
    const own = theme === (dark.matches ? "dark" : "light") ? null : theme;
    if (own) root.dataset.theme = own;
    else delete root.dataset.theme;
    try {
      if (own) localStorage.setItem("sidekey.theme", own);
      else localStorage.removeItem("sidekey.theme");
    } catch {
      // It holds until the page is left.
    }
  };
  const stored = read();
  if (stored) root.dataset.theme = stored;
  document.addEventListener("click", (event) => {
    if (event.target instanceof Element && event.target.closest("[data-theme-toggle]")) {
      choose(shown() === "dark" ? "light" : "dark");
    }
  });
})();
