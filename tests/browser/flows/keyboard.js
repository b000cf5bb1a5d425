// Without a pointer: in, a key is made, dialogs are closed, and the focus is where it was.

import { same, truly } from "../bench.js";

const MOST_STEPS = 80;

export async function run(bench) {
  const seat = await bench.seat({ role: null });
  const { page, admin } = seat;
  const { token } = await admin.post("/api/tokens", { name: "of the keyboard", role: "operator" });
  const press = (key) => page.keyboard.press(key);

  await to(page, "Admin token");
  await page.keyboard.type(token);
  await press("Enter");
  await page.locator("#side nav").waitFor();
  await seat.settled();

  await page.reload();
  await seat.settled();
  await press("Tab");
  same("the first stop", await focused(page), "Skip to the page");
  await press("Enter");
  same("it leads past the navigation", await page.evaluate(() => document.activeElement.id), "main");

  await page.reload();
  await seat.settled();
  await to(page, "API keys");
  await press("Enter");
  await page.locator("main h1", { hasText: "API keys" }).waitFor();
  await seat.settled();
  same("the focus is on the heading of the page", await focused(page), "API keys");

  await to(page, "Create a key");
  await press("Enter");
  await seat.dialog.waitFor();
  same("a dialog begins with its first field", await focused(page), "Name");
  await press("Escape");
  await seat.dialog.waitFor({ state: "detached" });
  same("Escape gives the focus back", await focused(page), "Create a key");

  await press("Enter");
  await seat.dialog.waitFor();
  for (let n = 0; n < 40; n += 1) {
    await press("Tab");
    truly("the focus stays in the dialog", await page.evaluate(() => document.activeElement === document.body || document.activeElement.closest("dialog") !== null));
  }
  await to(page, "Name");
  // In a form without this, Enter sends it: what is missing is said, and has the focus.
  await press("Enter");
  await page.getByText("This is needed.").waitFor();
  same("what is missing", await focused(page), "Name");
  await page.keyboard.type("by keyboard");
  await press("Enter");
  await page.getByRole("heading", { name: "The key is made" }).waitFor();
  await to(page, "I have put it away");
  await press("Enter");
  await page.locator("main h1", { hasText: "by keyboard" }).waitFor();
  await seat.settled();
  same("the focus after it is made", await focused(page), "by keyboard");
  await to(page, "All keys");
  await press("Enter");
  await page.locator("main h1", { hasText: "API keys" }).waitFor();
  await seat.settled();

  await to(page, "Actions for by keyboard");
  await press("Enter");
  await press("Tab");
  same("the first action", await focused(page), "Edit");
  await press("Escape");
  same("Escape closes the actions", await focused(page), "Actions for by keyboard");
  await press("Enter");
  await to(page, "Disable");
  await press("Enter");
  await seat.dialog.waitFor();
  same("a question begins with what does no harm", await focused(page), "Cancel");
  await press("Escape");
  await seat.dialog.waitFor({ state: "detached" });
  same("the focus after a question", await focused(page), "Actions for by keyboard");
  await press("Enter");
  await to(page, "Disable");
  await press("Enter");
  await to(page, "Disable");
  await press("Enter");
  await seat.told("by keyboard is disabled.");
  await seat.settled();
  same("the focus after a change", await focused(page), "Actions for by keyboard");

  await to(page, "by keyboard");
  await press("Enter");
  await page.locator("main h1", { hasText: "by keyboard" }).waitFor();
  await seat.settled();
}

/** The name of what has the focus, as screen readers say it. */
async function focused(page) {
  return page.evaluate(() => {
    const node = document.activeElement;
    const label = node.labels?.[0] ?? node;
    return (node.getAttribute("aria-label") ?? label.textContent ?? "").replace(/ \(optional\)$/, "").trim();
  });
}

/** Goes on with Tab until `name` has the focus. */
async function to(page, name) {
  const passed = [];
  for (let step = 0; step < MOST_STEPS; step += 1) {
    const now = await focused(page);
    if (now === name) return;
    passed.push(now.slice(0, 30));
    await page.keyboard.press("Tab");
  }
  throw new Error(`Tab does not lead to ${name}, but to ${[...new Set(passed)].join(" | ")}`);
}
