// Icons, drawn of lines in the colour of the text; they say nothing to screen readers, the words beside them do.
//
//   icon("close")

import { s } from "./dom.js";

const PATHS = {
  overview: "M3 12a9 9 0 0 1 18 0M12 12l4-4M3 12v3M21 12v3M12 12v.01",
  providers: "M4 5h16v5H4zM4 14h16v5H4zM8 7.5h.01M8 16.5h.01",
  keys: "M8 15a4 4 0 1 1 3.9-5H21v4M17 10v3M8 11h.01",
  usage: "M4 20V4M4 20h16M8 16v-4M12 16V8M16 16v-6",
  pools: "M12 3l8 4-8 4-8-4zM4 12l8 4 8-4M4 17l8 4 8-4",
  audit: "M6 3h9l4 4v14H6zM14 3v5h5M9 12h6M9 16h6",
  settings: "M4 7h10M18 7h2M4 17h2M10 17h10M16 5v4M8 15v4",
  menu: "M4 7h16M4 12h16M4 17h16",
  close: "M6 6l12 12M18 6L6 18",
  check: "M5 12.5l4.5 4.5L19 7.5",
  info: "M12 11v6M12 7.5v.01M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18",
  warning: "M12 4l9 16H3zM12 10v4M12 17v.01",
  theme: "M12 3a9 9 0 1 0 9 9 7 7 0 0 1-9-9",
  logout: "M14 4h5v16h-5M4 12h11M11 8l4 4-4 4",
  copy: "M9 9h11v11H9zM5 15H4V4h11v1",
  download: "M12 4v11M7.5 11L12 15.5 16.5 11M4 20h16",
  plus: "M12 5v14M5 12h14",
  search: "M11 4a7 7 0 1 0 0 14 7 7 0 0 0 0-14M20 20l-4-4",
  left: "M14 6l-6 6 6 6",
  right: "M10 6l6 6-6 6",
  table: "M4 5h16v14H4zM4 10h16M10 10v9",
  refresh: "M20 11a8 8 0 0 0-14-4L4 9M4 4v5h5M4 13a8 8 0 0 0 14 4l2-2M20 20v-5h-5",
  more: "M4 12a1 1 0 1 0 2 0 1 1 0 1 0-2 0M11 12a1 1 0 1 0 2 0 1 1 0 1 0-2 0M18 12a1 1 0 1 0 2 0 1 1 0 1 0-2 0",
};

export function icon(name) {
  return s("svg", { class: "icon", viewBox: "0 0 24 24", "aria-hidden": "true", focusable: "false" }, s("path", { d: PATHS[name] ?? "" }));
}
