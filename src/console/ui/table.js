// Tables, which become cards where there is little room.
//
//   table({ caption, columns: [{ label, cell: (row) => node or text, figure, head }], rows, foot, empty })
//   more(node, rows)      adds rows to a table that table() has made
//
// A column with `figure` is set to the right; `head` is what names the row. The roles are said, because a table that is laid
// out as cards would lose them.

import { h } from "./dom.js";

const columnsOf = new WeakMap();

export function table({ caption, columns, rows, foot, empty, wide = false }) {
  if (rows.length === 0 && empty) return typeof empty === "string" ? h("p", { class: "empty" }, empty) : empty;
  const head = h("tr", { role: "row" }, columns.map((column) => h("th", { role: "columnheader", scope: "col", class: column.figure && "figure" }, column.label)));
  const body = h("tbody", { role: "rowgroup" }, rows.map((row) => line(columns, row)));
  columnsOf.set(body, columns);
  return h(
    "div",
    { class: ["table", wide && "wide"] },
    h(
      "table",
      { role: "table" },
      h("caption", { class: "unseen" }, caption),
      h("thead", { role: "rowgroup" }, head),
      body,
      foot && h("tfoot", { role: "rowgroup" }, line(columns, foot, "foot")),
    ),
  );
}

export function more(node, rows) {
  const body = node.querySelector("tbody");
  body?.append(...rows.map((row) => line(columnsOf.get(body), row)));
}

function line(columns, row, kind) {
  const cell = (column) => {
    const said = kind === "foot" && column.foot ? column.foot(row) : column.cell(row);
    // Beside its label, in a card, a cell has one part.
    const content = Array.isArray(said) ? h("div", null, said) : said;
    const props = { class: [column.figure && "figure", column.class], "data-label": column.label };
    return column.head ? h("th", { ...props, role: "rowheader", scope: "row" }, content) : h("td", { ...props, role: "cell" }, content);
  };
  return h("tr", { role: "row" }, columns.map(cell));
}
