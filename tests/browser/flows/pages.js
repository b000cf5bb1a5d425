// Every page and every dialog, in both themes, narrow and wide: axe finds nothing, and nothing scrolls sideways. Their
// pictures are kept.

const SIZES = [
  [320, 700],
  [768, 900],
  [1440, 900],
];

export async function run(bench) {
  const { admin } = bench.sidekey("main");
  await furnished(admin, bench.sidekey("main").proxy);
  const { keys } = await admin.get("/api/keys?limit=1");
  for (const theme of ["light", "dark"]) {
    const door = await bench.seat({ role: null, theme, width: 320 });
    await door.page.getByRole("heading", { name: "Log in to sidekey" }).waitFor();
    await looked(door, "login", theme, [SIZES[0], SIZES[2]]);
    await bench.leave(door);
    const seat = await bench.seat({ theme });
    for (const path of [...(await seat.pages()), `/keys/${keys[0].id}`, "/no/such/page"]) {
      await seat.visit(path);
      const name = path.startsWith("/keys/") ? "key" : path.slice(1).replaceAll("/", "-");
      await looked(seat, name, theme, SIZES);
    }
    await dialogs(seat, theme);
    await bench.leave(seat);
  }
}

async function looked(seat, name, theme, sizes) {
  for (const [width, height] of sizes) {
    await seat.page.setViewportSize({ width, height });
    await seat.fits(`${name} at ${width} px`);
    // What axe looks at changes with the layout, and that with the width: the ends of it are enough.
    if (width !== 768) await seat.accessible(`${name}, ${theme}, at ${width} px`);
    await seat.shot(`${name}-${theme}-${width}`);
  }
}

/** Dialogs by the button that opens them, and where it is. */
const DIALOGS = [
  ["#/providers", "Providers", ["Add a key"], "provider-add"],
  ["#/providers", "Providers", ["More for openai/main", "Edit"], "provider-edit"],
  ["#/providers", "Providers", ["More for openai/main", "Rotate"], "provider-rotate"],
  ["#/providers", "Providers", ["More for openai/main", "Delete"], "provider-delete"],
  ["#/keys", "API keys", ["Create a key"], "key-create"],
  ["#/keys", "API keys", ["Actions for furnished", "Edit"], "key-edit"],
  ["#/keys", "API keys", ["Actions for furnished", "Rotate"], "key-rotate"],
  ["#/keys", "API keys", ["Actions for furnished", "Revoke"], "key-revoke"],
  ["#/pools", "Pools and plans", ["Create a pool"], "pool-create"],
  ["#/pools", "Pools and plans", ["Create a plan"], "plan-create"],
  ["#/pools", "Pools and plans", ["Edit the plan basic"], "plan-edit"],
];

async function dialogs(seat, theme) {
  const { page } = seat;
  for (const [hash, heading, buttons, name] of DIALOGS) {
    await page.setViewportSize({ width: 320, height: 700 });
    await seat.go(hash, heading);
    for (const button of buttons) await page.getByRole("button", { name: button, exact: true }).click();
    await seat.dialog.waitFor();
    await seat.fits(`the dialog ${name} at 320 px`);
    await seat.accessible(`the dialog ${name}, ${theme}, at 320 px`);
    await seat.shot(`dialog-${name}-${theme}-320`);
    await page.setViewportSize({ width: 1280, height: 900 });
    await seat.shot(`dialog-${name}-${theme}-1280`);
    await page.keyboard.press("Escape");
    await seat.dialog.waitFor({ state: "detached" });
  }
}

/** Something of everything, so that pages have what to show. */
async function furnished(admin, proxy) {
  const add = (name, more) => admin.post("/api/provider-keys", { provider: "openai", name, secret: `sk-proj-of-the-${name}`, ...more });
  await admin.send("POST", "/api/provider-keys", { provider: "openai", name: "main", secret: "sk-proj-of-the-pages" });
  const second = await add("second", { priority: 1, models: ["gpt-4o*", "o3"], limits: { rpm: 500 }, budgets: [{ usd: "500", per: "month" }] });
  const bad = await add("bad", { owner: "team:research" });
  await admin.post(`/api/provider-keys/${bad.id}/test`, {});
  await admin.post("/api/pools", { name: "fast", policy: "weighted", sticky: true, keys: [second.id, bad.id] });
  const routes = { smart: { targets: [{ provider: "openai", model: "gpt-4o", weight: 3 }, { provider: "groq", model: "llama-3.3-70b" }] } };
  await admin.post("/api/plans", { name: "basic", description: "For interns", limits: { rpm: 60 }, shared: { budgets: [{ usd: "200", per: "month" }] }, routes });
  const body = { name: "furnished", user: "alice", plan: "basic", limits: { rpm: 600 }, budgets: [{ usd: "0.0001", per: "month", shadow: true }], quotas: [{ tokens: 900_000, per: "day" }] };
  const { key } = await admin.post("/api/keys", body);
  await admin.post("/api/keys", { name: "a canary", canary: true, models: ["gpt-4o*", "o3", "claude-*", "gemini-*"] });
  const { key_data: off } = await admin.post("/api/keys", { name: "switched off" });
  await admin.post(`/api/keys/${off.id}/disable`, {});
  const headers = { authorization: `Bearer ${key}`, "content-type": "application/json" };
  for (const model of ["gpt-4o", "gpt-4o-mini"]) {
    await fetch(`${proxy}/openai/v1/chat/completions`, { method: "POST", headers, body: JSON.stringify({ model, messages: [] }) });
  }
}
