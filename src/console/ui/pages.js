// Every page: its route, its module, and whom it is for. A page is added here and nowhere else.
//
//   path    as the router takes it; `{id}` is a parameter
//   label   its name in the navigation, with an icon of icons.js; a page without one is reached from another, `under`
//   least   the least role, and with `own` users too, over what is theirs (see session.js)
//   load    its module, which exports
//             title                               a string, or a function of the parameters
//             async render(root, context)         fills `root`; see router.js for the context

export const PAGES = [
  { path: "/overview", label: "Overview", icon: "overview", least: "reader", own: true, load: () => import("./pages/overview.js") },
];
