// Messages clear after five seconds, and stay as long as somebody is at them. The clock of the page is ours: nothing waits.

import { same } from "../bench.js";

export async function run(bench) {
  const seat = await bench.seat({ sidekey: "paging", clock: true });
  const { page, admin } = seat;
  await admin.post("/api/provider-keys", { provider: "openai", name: "messages", secret: "sk-of-the-messages" });
  await seat.go("#/providers?q=openai", "Providers");
  await page.clock.pauseAt(Date.now() + 60_000);

  const turn = page.getByRole("button", { name: /^(Disable|Enable) openai\/messages$/ });
  const message = page.locator(".message");
  const raise = async () => {
    const was = await turn.innerText();
    await turn.click();
    await message.waitFor();
    await page.getByRole("button", { name: `${was === "Disable" ? "Enable" : "Disable"} openai/messages` }).waitFor();
    await page.mouse.move(5, 5);
  };
  const pass = (ms) => page.clock.runFor(ms);
  const count = async (what, wanted) => same(what, await message.count(), wanted);

  await raise();
  same("screen readers hear it", await message.evaluate((node) => node.parentElement.getAttribute("role")), "status");
  await pass(4900);
  await count("before five seconds", 1);
  await pass(200);
  await count("after five seconds", 0);

  await raise();
  await pass(2000);
  await message.hover();
  await pass(60_000);
  await count("while the pointer is on it", 1);
  await page.mouse.move(5, 5);
  await pass(2800);
  await count("the time before the pointer came counts, and that while it was there does not", 1);
  await pass(300);
  await count("five seconds without the pointer", 0);

  await raise();
  await message.getByRole("button", { name: "Dismiss" }).focus();
  await pass(60_000);
  await count("while the focus is on it", 1);
  await turn.focus();
  await pass(5100);
  await count("after the focus has left", 0);

  await raise();
  await message.getByRole("button", { name: "Dismiss" }).click();
  await count("dismissed", 0);
}
