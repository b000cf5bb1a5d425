// From an empty sidekey to a request that is seen: a provider key is added and tested, a virtual key is made, a request is
// sent with the key as it stands on the page, and its usage is looked at.

import { same, truly, until } from "../bench.js";

export async function run(bench) {
  const seat = await bench.seat();
  const { page } = seat;

  await seat.go("#/providers", "Providers");
  await page.getByRole("button", { name: "Add a key", exact: true }).click();
  await page.getByLabel("Provider", { exact: true }).selectOption("openai");
  await page.getByLabel("Name", { exact: true }).fill("main");
  await page.getByLabel("Key", { exact: true }).fill("sk-proj-only-a-test-1234abcd");
  same("the field of the secret", await page.getByLabel("Key", { exact: true }).getAttribute("type"), "password");
  await seat.dialog.getByRole("button", { name: "Add", exact: true }).click();
  await seat.told("openai/main is added.");
  await seat.told("The provider takes openai/main");
  await page.getByText("sk-…abcd").waitFor();
  truly("the secret is nowhere on the page", !(await page.content()).includes("only-a-test"));

  await page.getByRole("button", { name: "Test openai/main" }).click();
  await page.getByText(/The provider takes the key \(200, .*s\)/).waitFor();
  await seat.shot("journey-tested");

  const key = await createKey(seat);
  const answer = await fetch(`${seat.sidekey.proxy}/openai/v1/chat/completions`, {
    method: "POST",
    headers: { authorization: `Bearer ${key}`, "content-type": "application/json" },
    body: JSON.stringify({ model: "gpt-4o", messages: [{ role: "user", content: "Hello" }] }),
  });
  same("the request is served", answer.status, 200);

  // The ledger is written in batches: the page is asked for again until it is there.
  await until("the usage of the key", async () => {
    await page.reload();
    await seat.settled();
    return page.getByText("1 request, 12 tokens").isVisible();
  });
  const chart = page.getByRole("figure", { name: "Tokens by day" });
  same("bars: input and output of one day", await chart.locator("svg[role=img] rect").count(), 2);
  await chart.getByRole("button", { name: "Show as table" }).click();
  await chart.getByRole("cell", { name: "7", exact: true }).waitFor();
  await chart.getByRole("cell", { name: "5", exact: true }).waitFor();
  await seat.shot("journey-usage");
  await elsewhere(seat);
}

/** What was done, as the other pages tell it. */
async function elsewhere(seat) {
  const { page } = seat;
  await seat.go("#/providers", "Providers");
  await page.getByText("1 request · 12 tokens").waitFor();
  await page.getByRole("link", { name: "Usage of openai/main" }).click();
  await page.locator("main h1", { hasText: "Usage" }).waitFor();
  await seat.settled();
  await page.getByText("openai / main").waitFor();
  const model = page.getByRole("row").filter({ has: page.getByRole("rowheader", { name: "gpt-4o" }) });
  await model.first().getByRole("cell", { name: "7", exact: true }).waitFor();
  await seat.go("#/overview", "Overview");
  await page.locator(".stat", { hasText: "Requests today" }).getByText("1", { exact: true }).waitFor();
  await seat.go("#/audit", "Audit");
  for (const action of ["provider_key.create", "key.create"]) await page.getByText(action, { exact: true }).first().waitFor();
  await page.getByRole("button", { name: "Verify the log" }).click();
  await seat.settled();
}

async function createKey(seat) {
  const { page } = seat;
  await seat.go("#/keys", "API keys");
  await page.getByRole("button", { name: "Create a key" }).click();
  await page.getByLabel("Name", { exact: true }).fill("journey");
  await page.getByLabel("User (optional)").fill("alice");
  await page.getByLabel("Models (optional)").fill("gpt-4o*\no3");
  await page.getByLabel("Requests a minute").fill("60");
  await page.getByLabel("Dollars a month").fill("12.50");
  await seat.dialog.getByRole("button", { name: "Create" }).click();
  await page.getByRole("heading", { name: "The key is made" }).waitFor();
  await seat.shot("journey-once");
  const key = await seat.dialog.locator("code").innerText();
  truly(`a key of ours: ${key.slice(0, 8)}`, /^sk-side-[0-9a-f]{16}-\w{40,}$/.test(key));
  await page.keyboard.press("Escape");
  truly("Escape does not lose the key", await seat.dialog.isVisible());
  await page.getByRole("button", { name: "Copy the key" }).click();
  await seat.told("Copied.");
  truly("a message can be heard over the dialog", await seat.dialog.locator(".message", { hasText: "Copied." }).isVisible());
  same("what was copied", await page.evaluate(() => navigator.clipboard.readText()), key);
  await page.getByRole("button", { name: "I have put it away" }).click();
  await page.locator("main h1", { hasText: "journey" }).waitFor();
  await page.getByText("$0.00 of $12.50").waitFor();
  truly("the key is gone from the page", !(await page.content()).includes(key));
  return key;
}
