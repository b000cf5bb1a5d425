// Routes in the hash: #/keys/4f…?days=30.
//
//   start({ main, enter, marked })    shows pages in `main`, from now on; `enter` gives the table of those that may be
//                                     seen (see pages.js), or null when it shows something itself
//   go(path, query)                   leads on to a page
//   link(path, query)                 the href of one
//
// A page's module is loaded when it is first wanted, and its render(root, context) is given
//   params, query     of the route: plain objects of strings
//   signal            aborted when the page is left: pass it to request(), and to listeners and timers
//   actions           the place for buttons beside the heading
//   retitle(text)     the heading and the document's title, when they are known only then
//   keep(query)       writes the query into the address, without showing the page again
//
// On arrival the focus moves to the heading, the title is set and the navigation marks where one is. What render throws is
// shown with a button to try again.

import { h, replace } from "./dom.js";
import { failure } from "./failure.js";

const NAME = "sidekey";
let places = null;
let turn = null;
let current = null;

export function link(path, query) {
  const said = Object.entries(query ?? {}).filter(([, value]) => value !== null && value !== undefined && value !== "");
  return `#${path}${said.length ? `?${new URLSearchParams(said)}` : ""}`;
}

export function go(path, query) {
  const hash = link(path, query);
  if (location.hash === hash) show();
  else location.hash = hash;
}

export function start(given) {
  places = given;
  addEventListener("hashchange", () => show());
  show();
}

/** The same page once more; on `arrival` as if one came to it. */
export const again = ({ arrival = false } = {}) => show(arrival);

function asked() {
  const [path, query] = location.hash.replace(/^#/, "").split("?", 2);
  return { path: path.startsWith("/") ? path : null, query: Object.fromEntries(new URLSearchParams(query ?? "")) };
}

/** The route of a path, with its parameters; each matches one part. */
export function match(table, path) {
  const parts = path.split("/");
  for (const page of table) {
    const wanted = page.path.split("/");
    const params = {};
    const fits = (part, at) => {
      const name = /^\{(\w+)\}$/.exec(part)?.[1];
      if (!name) return part === parts[at];
      params[name] = decoded(parts[at]);
      return params[name] !== null && params[name] !== "";
    };
    if (wanted.length === parts.length && wanted.every(fits)) return { page, params };
  }
  return null;
}

function decoded(part) {
  try {
    return decodeURIComponent(part ?? "");
  } catch {
    return null;
  }
}

async function show(arrival = false) {
  let { path, query } = asked();
  turn?.abort();
  turn = new AbortController();
  const { signal } = turn;
  const arriving = arrival || (current !== null && current !== path);
  current = path ?? "";
  try {
    const table = await places.enter({ signal });
    if (signal.aborted || !table) return;
    ({ path, query } = asked());
    const found = path === null ? null : match(table, path);
    if (!found) {
      const home = table[0]?.path;
      if (path === null || path === "/") return location.replace(link(home));
      return lost(path, home, arriving);
    }
    await arrive(found, query, signal, arriving);
  } catch (error) {
    if (!signal.aborted) frame("Something went wrong", arriving).root.append(failure(error, { retry: () => again() }));
  }
}

async function arrive({ page, params }, query, signal, arriving) {
  const { main } = places;
  places.marked?.(page.under ?? page.path);
  main.setAttribute("aria-busy", "true");
  // What is quick needs no word; a page that was there stays until then.
  const slow = setTimeout(() => !signal.aborted && replace(main, h("p", { class: "busy" }, "Loading…")), 300);
  let place = null;
  try {
    const module = await page.load();
    if (signal.aborted) return;
    clearTimeout(slow);
    const title = typeof module.title === "function" ? module.title(params) : module.title;
    place = frame(title, arriving);
    const keep = (next) => history.replaceState(null, "", link(currentPath(), next));
    await module.render(place.root, { params, query, signal, keep, actions: place.actions, retitle: place.retitle });
  } catch (error) {
    if (signal.aborted) return;
    place ??= frame(page.label ?? NAME, arriving);
    replace(place.root, failure(error, { retry: () => again() }));
  } finally {
    clearTimeout(slow);
    if (!signal.aborted) main.removeAttribute("aria-busy");
  }
}

const currentPath = () => asked().path;

function lost(path, home, arriving) {
  places.marked?.(null);
  const { root } = frame("No such page", arriving);
  root.append(h("div", { class: "card" }, h("p", null, "There is nothing at this address."), h("p", null, h("a", { href: link(home) }, "To the start"))));
}

/** An empty page with its heading. */
function frame(title, arriving) {
  const heading = h("h1", { tabindex: "-1" }, title);
  const actions = h("div", { class: "actions" });
  const root = h("div", { class: "page" });
  replace(places.main, h("div", { class: "heading" }, heading, actions), root);
  const retitle = (text) => {
    replace(heading, text);
    document.title = `${heading.textContent.slice(0, 80)} · ${NAME}`;
  };
  retitle(title);
  if (arriving) {
    heading.focus({ preventScroll: true });
    scrollTo(0, 0);
  }
  return { root, actions, retitle };
}
