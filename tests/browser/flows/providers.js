// What is done with a provider key after it is added.

import { same, truly } from "../bench.js";

export async function run(bench) {
  const seat = await bench.seat({ sidekey: "roles" });
  const { page, admin } = seat;
  for (const name of ["first", "then", "last"]) await admin.post("/api/provider-keys", { provider: "anthropic", name, secret: `sk-ant-${name}-abcdefgh` });
  await seat.go("#/providers?q=anthropic", "Providers");
  const more = async (name, action) => {
    await page.getByRole("button", { name: `More for anthropic/${name}` }).click();
    await page.getByRole("button", { name: action, exact: true }).click();
  };
  const names = () => page.locator(".provider-key h3").allInnerTexts();

  await more("last", "Make default");
  await seat.told("anthropic/last is served before the other keys of system.");
  await page.getByText("default", { exact: true }).waitFor();
  same("the order", await names(), ["last", "first", "then"]);
  await more("then", "Make default");
  await seat.told("anthropic/then is served before");
  await page.waitForFunction(() => document.querySelector(".provider-key h3").textContent === "then");
  same("the order after", await names(), ["then", "last", "first"]);

  await more("first", "Edit");
  await page.getByLabel("Models (optional)").fill("claude-*\nclaude-haiku");
  await page.getByLabel("Requests a minute").fill("50");
  await page.getByLabel("Dollars a day").fill("2.5");
  await seat.dialog.getByRole("button", { name: "Save" }).click();
  await seat.told("anthropic/first is changed.");
  await page.getByText("claude-haiku").waitFor();
  await page.getByText("$0.00 of $2.50").waitFor();

  await more("first", "Rotate");
  await page.getByLabel("New key").fill("sk-ant-bad-one-abcdefgh");
  seat.expects(422);
  await seat.dialog.getByRole("button", { name: "Rotate" }).click();
  await seat.dialog.getByText("the key is as it was").waitFor();
  await page.getByLabel("New key").fill("sk-ant-new-one-ijklmnop");
  await seat.dialog.getByRole("button", { name: "Rotate" }).click();
  await seat.told("anthropic/first has a new secret.");
  await page.getByText(/…mnop$/).waitFor();

  await page.getByRole("button", { name: "Disable anthropic/first" }).click();
  await seat.told("anthropic/first is disabled.");
  await page.getByRole("button", { name: "Enable anthropic/first" }).click();
  await seat.told("anthropic/first is enabled.");
  await page.getByRole("button", { name: "Add a key", exact: true }).click();
  await page.getByLabel("Provider", { exact: true }).selectOption("anthropic");
  await page.getByLabel("Name", { exact: true }).fill("refused");
  await page.getByLabel("Key", { exact: true }).fill("sk-ant-bad-abcdefgh");
  await seat.dialog.getByRole("button", { name: "Add", exact: true }).click();
  await seat.told("The provider refuses anthropic/refused");
  await page.locator(".provider-key", { hasText: "refused" }).getByText("error", { exact: true }).waitFor();
  await page.getByText(/^Reason: the provider refuses the key/).waitFor();

  await more("refused", "Delete");
  await seat.dialog.getByRole("button", { name: "Delete" }).click();
  await seat.told("anthropic/refused is deleted.");
  await page.getByText("refused", { exact: true }).first().waitFor({ state: "detached" });
  truly("no secret is on the page", !/new-one|bad-one/.test(await page.content()));
}
