// What each role sees: readers no button that would be refused, users what is theirs and may be done by them.

import { same, truly } from "../bench.js";

/** Buttons that change something. */
const CHANGES = /^(Add|Create|Test|Disable|Enable|Edit|Rotate|Revoke|Delete|Make default|More for|Actions for)\b/;

export async function run(bench) {
  const { admin } = bench.sidekey("roles");
  await admin.ask("PATCH", "/api/users/alice", { budgets: [{ usd: "20", per: "month" }] });
  await admin.post("/api/provider-keys", { provider: "openai", name: "of all", secret: "sk-of-all-abcdefgh" });
  await admin.post("/api/provider-keys", { provider: "openai", name: "of bob", secret: "sk-of-bob-abcdefgh", owner: "user:bob" });
  await admin.post("/api/pools", { name: "a pool", keys: [] });
  await admin.post("/api/plans", { name: "a plan" });
  const of = async (name, user) => (await admin.post("/api/keys", { name, user })).key_data.id;
  await of("alice's app", "alice");
  const bobs = await of("bob's app", "bob");
  await reader(bench, bobs);
  await user(bench, bobs);
}

async function changes(page) {
  const names = await page.getByRole("button").evaluateAll((all) => all.map((one) => one.getAttribute("aria-label") ?? one.textContent.trim()));
  return names.filter((name) => CHANGES.test(name));
}

async function reader(bench, bobs) {
  const seat = await bench.seat({ sidekey: "roles", role: "reader" });
  for (const path of [...(await seat.pages()), `/keys/${bobs}`]) {
    await seat.visit(path);
    same(`what a reader may change on ${path}`, await changes(seat.page), []);
    await seat.shot(`reader-${path.slice(1).split("/")[0]}`);
  }
  await seat.go("#/keys", "API keys");
  await seat.page.getByRole("link", { name: "alice's app" }).waitFor();
  await seat.page.getByRole("link", { name: "bob's app" }).waitFor();
}

async function user(bench, bobs) {
  const seat = await bench.seat({ sidekey: "roles", role: "user:alice" });
  const { page } = seat;
  const places = await seat.pages();
  same("pages that are not for users", places.filter((path) => ["/pools", "/audit", "/settings"].includes(path)), []);
  for (const path of places) {
    await seat.visit(path);
    truly(`${path} shows nothing of bob's`, !(await page.locator("main").innerText()).includes("bob"));
    await seat.shot(`user-${path.slice(1)}`);
  }

  await seat.go("#/providers", "Providers");
  await page.getByRole("button", { name: "Add a key", exact: true }).click();
  same("whose key it is is not asked", await seat.dialog.getByLabel("Owner").count(), 0);
  await page.getByLabel("Provider", { exact: true }).selectOption("openai");
  await page.getByLabel("Name", { exact: true }).fill("my own");
  await page.getByLabel("Key", { exact: true }).fill("sk-of-alice-abcdefgh");
  await seat.dialog.getByRole("button", { name: "Add", exact: true }).click();
  await seat.told("The provider takes openai/my own");
  await page.getByText("user:alice", { exact: true }).waitFor();

  await seat.go("#/keys", "API keys");
  await page.getByRole("link", { name: "alice's app" }).waitFor();
  await page.getByRole("button", { name: "Create a key" }).click();
  await page.getByLabel("Name", { exact: true }).fill("one more app");
  await seat.dialog.getByRole("button", { name: "Create" }).click();
  await page.getByRole("heading", { name: "The key is made" }).waitFor();
  await page.getByRole("button", { name: "I have put it away" }).click();
  await page.locator("main h1", { hasText: "one more app" }).waitFor();
  await seat.settled();
  await page.getByRole("button", { name: "Edit", exact: true }).click();
  same("what a user changes of a key", await seat.dialog.locator("input, select, textarea").count(), 1);
  await page.getByLabel("Name", { exact: true }).fill("renamed");
  await seat.dialog.getByRole("button", { name: "Save" }).click();
  await page.locator("main h1", { hasText: "renamed" }).waitFor();
  await page.getByRole("button", { name: "Revoke" }).click();
  await seat.dialog.getByRole("button", { name: "Revoke" }).click();
  await seat.told("renamed is revoked.");

  seat.expects(404);
  await seat.go(`#/keys/${bobs}`, "API key");
  await page.getByText("there is no virtual key").waitFor();
}
