// Providers come six a page, however one goes through them.

import { same } from "../bench.js";

export async function run(bench) {
  const seat = await bench.seat({ sidekey: "paging" });
  const { page, admin } = seat;
  const { providers } = await admin.get("/api/providers");
  const some = providers.slice(0, 14);
  for (const { id } of some) await admin.post("/api/provider-keys", { provider: id, name: "main", secret: `sk-${id}-for-pages` });

  await seat.go("#/providers", "Providers");
  const cards = page.locator(".provider");
  const shown = async (what, count, of) => {
    await page.getByText(of, { exact: true }).waitFor();
    same(what, await cards.count(), count);
  };
  const nav = page.getByRole("navigation", { name: "Pages of providers" });
  await shown("the first page", 6, "1–6 of 14");
  await nav.getByRole("button", { name: "Next page" }).click();
  await shown("the second page", 6, "7–12 of 14");
  same("the focus stays on what was pressed", await page.evaluate(() => document.activeElement.getAttribute("aria-label")), "Next page");
  await page.keyboard.press("Enter");
  await shown("the last page", 2, "13–14 of 14");
  same("nothing follows the last page", await nav.getByRole("button", { name: "Next page" }).isDisabled(), true);
  same("where one is", await nav.locator("[aria-current=page]").innerText(), "3");

  await page.reload();
  await shown("the last page, after a reload", 2, "13–14 of 14");
  await nav.getByRole("button", { name: "Page 1", exact: true }).click();
  await shown("the first page again", 6, "1–6 of 14");

  const all = [];
  for (let at = 1; at <= 3; at += 1) {
    await nav.getByRole("button", { name: `Page ${at}`, exact: true }).click();
    all.push(...(await cards.locator(".card-head h2").allInnerTexts()));
  }
  same("every provider, once", all.toSorted(), some.map(({ id }) => id).toSorted());

  await page.getByLabel("Search").fill(some[3].id);
  await page.waitForFunction((id) => [...document.querySelectorAll(".provider h2")].every((one) => one.textContent.includes(id)), some[3].id);
}
