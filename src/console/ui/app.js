// The console: puts the parts together and starts.
//
// Owns the frame around the pages: who is logged in, the navigation, the way in and out.

import { token, whenRefused } from "./api.js";
import { h, outside, replace, s } from "./dom.js";
import { icon } from "./icons.js";
import { login } from "./login.js";
import { say } from "./message.js";
import { PAGES } from "./pages.js";
import { again, link, start } from "./router.js";
import { leave, login as takeCode, logout, may, session } from "./session.js";

const main = document.getElementById("main");
const side = document.getElementById("side");
/** Why the login is shown, when there is a reason to tell. */
let why = null;

// The code of `sidekey ui`, which is good once: it goes out of the address before anything else.
async function code() {
  const found = /^#code=([\w-]+)$/.exec(location.hash)?.[1];
  if (!found) return;
  history.replaceState(null, "", link("/overview"));
  leave();
  try {
    await takeCode(found);
    why = null;
  } catch (error) {
    why = { detail: error.detail ?? error.title, fix: error.fix };
  }
}

/** The pages that whoever is logged in may see; null when nobody is, and the login is shown. */
async function enter({ signal }) {
  await code();
  if (!token()) return out();
  let who;
  try {
    who = await session({ signal });
  } catch (error) {
    // What was refused is shown already.
    if (error.status === 401) return null;
    throw error;
  }
  const table = PAGES.filter((page) => may(page.least, { own: page.own }));
  if (side.hidden) frame(who, table);
  return table;
}

function out() {
  side.hidden = true;
  replace(side);
  document.body.classList.add("outside-door");
  main.removeAttribute("aria-busy");
  for (const open of document.querySelectorAll("dialog[open]")) open.close();
  const done = () => {
    why = null;
    again({ arrival: true });
  };
  login(main, { done, why });
  return null;
}

whenRefused((error) => {
  if (!token()) return; // it is being shown right now
  leave();
  why = error.code === "bad_code" ? why : { detail: "The session has ended: its token is revoked or expired.", fix: null };
  out();
});

function frame(who, table) {
  document.body.classList.remove("outside-door");
  const items = table.filter((page) => page.label);
  const menu = h("button", { class: "button bare menu", "aria-expanded": "false", "aria-controls": "nav" }, icon("menu"), h("span", { class: "unseen" }, "Menu"));
  const nav = h("nav", { id: "nav", "aria-label": "Pages" }, h("ul", null, items.map((page) => h("li", null, h("a", { href: link(page.path), "data-path": page.path }, icon(page.icon), page.label)))));
  const fold = (open) => {
    menu.setAttribute("aria-expanded", String(open));
    side.classList.toggle("open", open);
  };
  menu.addEventListener("click", () => fold(menu.getAttribute("aria-expanded") !== "true"));
  nav.addEventListener("click", (event) => event.target.closest("a") && fold(false));
  side.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || menu.getAttribute("aria-expanded") !== "true") return;
    fold(false);
    menu.focus();
  });
  const name = who.token?.name !== (who.user ?? who.role) && who.token?.name;
  const role = who.user === null ? who.role : `user ${who.user}`;
  replace(
    side,
    h("div", { class: "brand" }, mark(), h("span", null, "sidekey"), menu),
    nav,
    h(
      "div",
      { class: "who" },
      h("p", null, name && [outside(name, { max: 40 }), " · "], h("b", null, outside(role, { max: 40 }))),
      h(
        "div",
        { class: "who-buttons" },
        h("button", { class: "button bare", "data-theme-toggle": "" }, icon("theme"), "Light or dark"),
        h("button", { class: "button bare", on: { click: goodbye } }, icon("logout"), "Log out"),
      ),
    ),
  );
  side.hidden = false;
}

function mark() {
  return s("svg", { class: "brand-mark", viewBox: "0 0 32 32", "aria-hidden": "true", focusable: "false" }, s("rect", { width: 32, height: 32, rx: 8 }), s("g", null, s("circle", { cx: 11.5, cy: 16, r: 4.5 }), s("path", { d: "M16 16h9.5M25.5 16v4M21 16v3" })));
}

async function goodbye() {
  try {
    await logout();
  } catch (error) {
    say("warning", `Logged out here, but the session could not be ended: ${error.detail ?? error.message}`);
  }
  why = null;
  out();
  main.querySelector("h1")?.focus();
}

function marked(path) {
  for (const one of side.querySelectorAll("nav a")) {
    if (one.dataset.path === path) one.setAttribute("aria-current", "page");
    else one.removeAttribute("aria-current");
  }
}

// An anchor of the page itself is followed by hand: the hash is the route.
document.addEventListener("click", (event) => {
  if (event.target instanceof Element && event.target.closest("a.skip")) {
    event.preventDefault();
    main.focus();
  }
});

start({ main, enter, marked });
