// Audit and Settings: what was done is found, the log is checked, settings say where they stand, tokens come and go.

import { same, truly } from "../bench.js";

const MANY = 60;

export async function run(bench) {
  const { admin } = bench.sidekey("figures");
  for (let n = 0; n < MANY; n += 1) await admin.post("/api/tokens", { name: `of a record ${n}`, role: "reader" });
  const { key_data: key } = await admin.post("/api/keys", { name: "<i>recorded</i>" });
  await admin.ask("PATCH", `/api/keys/${key.id}`, { name: "recorded \u202Eagain" });
  const seat = await bench.seat({ sidekey: "figures" });
  await audit(seat, key.id);
  await settings(seat);
  const operator = await bench.seat({ sidekey: "figures", role: "operator" });
  await operator.go("#/settings", "Settings");
  same("tokens are for admins", await operator.page.getByRole("heading", { name: "Admin tokens" }).count(), 0);
  await out(seat);
}

async function audit(seat, id) {
  const { page } = seat;
  await seat.go("#/audit", "Audit");
  const rows = page.getByRole("table", { name: "Records" }).locator("tbody").getByRole("row");
  same("a page of records", await rows.count(), 50);
  await page.getByRole("button", { name: "Load more" }).click();
  await page.waitForFunction(() => document.querySelectorAll("main tbody tr").length > 50);
  await page.getByLabel("To what").fill(id);
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => document.querySelectorAll("main tbody tr").length === 2);
  same("newest first", await rows.first().locator("code").innerText(), "key.update");
  await page.getByRole("button", { name: /^Record \d+$/ }).first().click();
  const changed = seat.dialog.getByRole("table", { name: "What was changed" });
  const name = changed.getByRole("row", { name: /^name/ });
  same("before and after, as text", (await name.getByRole("cell").allInnerTexts()).map((text) => text.replace("\uFFFD", "")), ["<i>recorded</i>", "recorded again"]);
  await seat.accessible("a record");
  await seat.shot("audit-record");
  await page.keyboard.press("Escape");
  await page.getByRole("button", { name: "Verify the log" }).click();
  await page.getByText("The log is whole.").waitFor();
  await page.getByText("To prove it later").click();
  await page.getByText(/^sidekey audit verify --head \d+:[0-9a-f]{64}$/).waitFor();
  await seat.accessible("a log that is whole");
  await page.reload();
  await seat.settled();
  same("the filter stands in the address", await rows.count(), 2);
}

async function settings(seat) {
  const { page, sidekey } = seat;
  await seat.go("#/settings", "Settings");
  await page.getByText("ready", { exact: true }).waitFor();
  const proxy = sidekey.proxy.replace("http://", "");
  same("where it listens", await page.locator(".facts > div", { hasText: "Proxy" }).locator("dd").innerText(), proxy);
  await page.getByLabel("Search").fill("BASE_URL");
  const rows = page.locator(".section tbody tr");
  same("settings that are found", await rows.locator("th").allInnerTexts(), ["providers.anthropic.base_url", "providers.openai.base_url"]);
  truly(`who says it: ${await rows.first().innerText()}`, /file .*sidekey\.toml:\d+/s.test(await rows.first().innerText()));
  await page.getByLabel("Search").fill("nothing is like this");
  await page.getByText("No setting is like that.").waitFor();
  await page.getByLabel("Search").fill("");

  await page.getByRole("button", { name: "Create a token" }).click();
  await page.getByLabel("Name", { exact: true }).fill("<img src=x>");
  await page.getByLabel("Role", { exact: true }).selectOption("user");
  await page.getByLabel("User (optional)").fill("carol");
  await seat.dialog.getByRole("button", { name: "Create", exact: true }).click();
  await page.getByRole("heading", { name: "Token <img src=x>" }).waitFor();
  const token = await seat.dialog.locator("code").innerText();
  truly("a token of ours", /^sidekey-admin-[0-9a-f]{16}-\w+$/.test(token));
  await page.getByRole("button", { name: "I have put it away" }).click();
  const row = page.getByRole("table", { name: "Admin tokens" }).getByRole("row", { name: "<img src=x>" });
  await row.getByText("user:carol").waitFor();
  truly("the token is gone from the page", !(await page.content()).includes(token));
  await row.getByRole("button", { name: "Revoke" }).click();
  await seat.accessible("the question before");
  await seat.dialog.getByRole("button", { name: "Revoke" }).click();
  await seat.told("Revoked.");
  await row.waitFor({ state: "detached" });
}

/** Logging out ends the session for good, also for who has its token. */
async function out(seat) {
  const { page, admin } = seat;
  const sessions = async () => (await admin.get("/api/tokens?limit=1000")).tokens.filter(({ session }) => session).map(({ id }) => id);
  await seat.go("#/settings", "Settings");
  const id = await page.locator(".facts > div", { hasText: /^Token/ }).locator("code").innerText();
  truly("the session is there", (await sessions()).includes(id));
  await page.getByRole("button", { name: "Log out" }).click();
  await page.getByRole("heading", { name: "Log in to sidekey" }).waitFor();
  truly("the session has ended", !(await sessions()).includes(id));
}
