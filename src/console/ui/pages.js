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
  { path: "/providers", label: "Providers", icon: "providers", least: "reader", own: true, load: () => import("./pages/providers.js") },
  { path: "/keys", label: "API keys", icon: "keys", least: "reader", own: true, load: () => import("./pages/keys.js") },
  { path: "/keys/{id}", under: "/keys", least: "reader", own: true, load: () => import("./pages/key.js") },
  { path: "/usage", label: "Usage", icon: "usage", least: "reader", own: true, load: () => import("./pages/usage.js") },
  { path: "/pools", label: "Pools and plans", icon: "pools", least: "reader", load: () => import("./pages/pools.js") },
  { path: "/audit", label: "Audit", icon: "audit", least: "reader", load: () => import("./pages/audit.js") },
  { path: "/settings", label: "Settings", icon: "settings", least: "reader", load: () => import("./pages/settings.js") },
];
