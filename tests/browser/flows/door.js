// The ways in and out: tokens and codes that are good and that are not, the end of a session, and the theme.

import { same, truly } from "../bench.js";

const stored = (page) => page.evaluate(() => [sessionStorage.length, document.cookie]);

export async function run(bench) {
  const seat = await bench.seat({ role: null });
  const { page, admin } = seat;
  const door = page.getByRole("heading", { name: "Log in to sidekey" });
  await door.waitFor();
  same("nothing is asked of a stranger", await stored(page), [0, ""]);

  seat.expects(401);
  await page.getByLabel("Admin token").fill("sk-admin-0000000000000000-wrong");
  await page.getByRole("button", { name: "Log in" }).click();
  await page.locator(".complaint:visible").waitFor();
  await seat.accessible("a wrong token");

  const { url } = await admin.post("/api/session/code");
  await page.goto(url);
  await page.locator("#side nav").waitFor();
  await seat.settled();
  truly("the code is out of the address", !page.url().includes("code="));
  await page.getByRole("button", { name: "Log out" }).click();
  await door.waitFor();
  same("nothing stays", await stored(page), [0, ""]);
  await page.goto("/#/keys");
  await page.goto(url);
  await page.getByText("the code is wrong, used already, or older than a minute").waitFor();

  const made = await admin.post("/api/tokens", { name: "for a while", role: "reader" });
  await page.getByLabel("Admin token").fill(made.token);
  await page.getByRole("button", { name: "Log in" }).click();
  await page.locator("#side nav").waitFor();
  await seat.go("#/keys", "API keys");
  await page.getByRole("button", { name: "Light or dark" }).click();
  const theme = () => page.evaluate(() => getComputedStyle(document.documentElement).colorScheme);
  same("the theme is turned over", await theme(), "dark");
  await page.reload();
  await seat.settled();
  same("the theme stays", await theme(), "dark");

  const { tokens } = await admin.get("/api/tokens");
  await admin.ask("DELETE", `/api/tokens/${tokens.find(({ name }) => name === "for a while").id}`);
  await page.getByRole("link", { name: "Providers" }).click();
  await door.waitFor();
  await page.getByText("The session has ended").waitFor();
  same("a token that is no longer good is forgotten", await stored(page), [0, ""]);
}
