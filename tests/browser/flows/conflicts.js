// Two people at once, and things that are in use: nobody's change is lost, and everybody is told.

import { same } from "../bench.js";

export async function run(bench) {
  const seat = await bench.seat({ sidekey: "roles" });
  const { page, admin } = seat;
  seat.expects(409, 412);
  await admin.post("/api/plans", { name: "shared", limits: { rpm: 10 } });
  const { key_data: key } = await admin.post("/api/keys", { name: "uses it", plan: "shared" });

  await seat.go("#/pools", "Pools and plans");
  await page.getByRole("button", { name: "Edit the plan shared" }).click();
  await page.getByLabel("Description").fill("mine");
  await admin.ask("PATCH", "/api/plans/shared", { description: "theirs" });
  await seat.dialog.getByRole("button", { name: "Save" }).click();
  await seat.dialog.getByText("somebody changed it in between").waitFor();
  same("what was typed is still there", await page.getByLabel("Description").inputValue(), "mine");
  await seat.shot("conflict");
  await page.keyboard.press("Escape");
  await page.getByText("theirs").waitFor();
  await page.getByRole("button", { name: "Edit the plan shared" }).click();
  await page.getByLabel("Description").fill("mine");
  await seat.dialog.getByRole("button", { name: "Save" }).click();
  await page.getByText("mine", { exact: true }).waitFor();
  same("what others said is kept", (await admin.get("/api/plans/shared")).limits.rpm, 10);

  await page.getByRole("button", { name: "More for the plan shared" }).click();
  await page.getByRole("button", { name: "Delete" }).click();
  await seat.dialog.getByRole("button", { name: "Delete" }).click();
  await seat.told(key.id);
  await page.getByRole("button", { name: "Create a plan" }).click();
  await page.getByLabel("Name", { exact: true }).fill("shared");
  await seat.dialog.getByRole("button", { name: "Create" }).click();
  await seat.dialog.locator(".complaint:visible, .form-error:not(:empty)").first().waitFor();
  await page.keyboard.press("Escape");

  await seat.go("#/keys", "API keys");
  const actions = page.getByRole("button", { name: "Actions for uses it" });
  await admin.ask("PATCH", `/api/keys/${key.id}`, { metadata: { note: "changed" } });
  await actions.click();
  await page.getByRole("button", { name: "Disable" }).click();
  await seat.dialog.getByRole("button", { name: "Disable" }).click();
  await seat.told("somebody changed it in between");
  same("it was not switched off", (await admin.get(`/api/keys/${key.id}`)).status, "active");
  await actions.click();
  await page.getByRole("button", { name: "Disable" }).click();
  await seat.dialog.getByRole("button", { name: "Disable" }).click();
  await seat.told("uses it is disabled.");
}
