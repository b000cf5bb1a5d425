// Nodes, and nothing but nodes.
//
//   h("p", { class: "note" }, "5 < 6", h("b", null, name))    an element of HTML
//   s("path", { d: "M0 0h4" })                                  an element of SVG
//   replace(node, ...children)                                  new children for old ones
//   outside(text)                                               a string from elsewhere: any script, any length
//
// No string is ever read as markup: a child that is not a node becomes a text node, and there is no way here to parse
// HTML. Tags and attributes are those listed; others are a mistake of ours and throw. `on: { click: f }` listens. null,
// undefined and false are no child and no attribute. `href` leads within this origin only.

const SVG = "http://www.w3.org/2000/svg";

const TAGS = new Set(
  ("a article aside b bdi br button caption code dd details dialog div dl dt em fieldset figcaption figure footer form " +
    "h1 h2 h3 h4 header hr input kbd label legend li main nav ol optgroup option output p pre progress section select " +
    "small span strong sub summary sup table tbody td textarea tfoot th thead time tr ul datalist").split(" "),
);
const ATTRIBUTES = new Set(
  ("autocapitalize autocomplete autofocus checked class cols colspan datetime dir disabled download enterkeyhint for " +
    "hidden href id inputmode label lang list max maxlength method min minlength multiple name novalidate open pattern " +
    "placeholder readonly required role rows rowspan scope selected size spellcheck step tabindex title type value").split(" "),
);
const SHAPES = new Set("svg g path rect circle line polyline polygon text tspan title desc".split(" "));
const SHAPE_ATTRIBUTES = new Set(
  ("class cx cy d fill focusable height id points preserveAspectRatio r role rx stroke text-anchor transform viewBox " +
    "width x x1 x2 y y1 y2 dy dominant-baseline vector-effect tabindex").split(" "),
);
// These are what the user sees, not what the element began with.
const PROPERTIES = new Set(["value", "checked", "selected", "autofocus"]);

function check(name, listed) {
  if (!listed.has(name) && !name.startsWith("aria-") && !name.startsWith("data-")) {
    throw new TypeError(`not an attribute of ours: ${name}`);
  }
}

function within(href) {
  const text = String(href);
  if (!/^(#|\/(?!\/)|blob:)/.test(text)) throw new TypeError("a link leads within this origin");
  return text;
}

function fill(node, props, listed) {
  for (const [name, value] of Object.entries(props ?? {})) {
    if (name === "on") {
      for (const [event, listener] of Object.entries(value)) node.addEventListener(event, listener);
      continue;
    }
    check(name, listed);
    if (value === null || value === undefined || value === false) continue;
    if (name === "class") {
      const classes = [value].flat(Infinity).filter(Boolean).join(" ");
      if (classes) node.setAttribute("class", classes);
    } else if (PROPERTIES.has(name)) node[name] = value;
    else if (name === "href") node.setAttribute("href", within(value));
    else node.setAttribute(name, value === true ? "" : String(value));
  }
}

function nodes(children) {
  return children
    .flat(Infinity)
    .filter((child) => child !== null && child !== undefined && child !== false && child !== true)
    .map((child) => (child instanceof Node ? child : document.createTextNode(tame(child))));
}

/** Marks that turn text around reach beyond the element they are in, where they are not ended: they are shown, not obeyed. */
const tame = (text) => String(text).replace(/[\u202a-\u202e\u2066-\u2069]/g, "\ufffd");

export function h(tag, props, ...children) {
  if (!TAGS.has(tag)) throw new TypeError(`not a tag of ours: ${tag}`);
  const node = document.createElement(tag);
  // A button in a form sends it unless it says otherwise; ours say so when they mean it.
  if (tag === "button") node.type = "button";
  node.append(...nodes(children));
  // After the children: a select takes a value that one of its options has.
  fill(node, props, ATTRIBUTES);
  return node;
}

export function s(tag, props, ...children) {
  if (!SHAPES.has(tag)) throw new TypeError(`not a shape of ours: ${tag}`);
  const node = document.createElementNS(SVG, tag);
  fill(node, props, SHAPE_ATTRIBUTES);
  node.append(...nodes(children));
  return node;
}

export function replace(node, ...children) {
  node.replaceChildren(...nodes(children));
  return node;
}

/** A string from elsewhere, kept from turning its neighbours around, and cut where nobody reads on. */
export function outside(text, { max = 160, title } = {}) {
  const whole = String(text ?? "");
  const long = whole.length > max;
  const shown = long ? `${whole.slice(0, max - 1)}…` : whole;
  return h("bdi", { class: "outside", title: title ?? (long ? whole.slice(0, 2000) : null) }, shown);
}

let count = 0;

/** An id that nothing else on the page has. */
export function unique(prefix) {
  count += 1;
  return `${prefix}-${count}`;
}
