// Overview and Usage: figures of requests that were really sent, live, told apart, narrowed down and taken along.

import { readFile } from "node:fs/promises";

import { same, truly, until } from "../bench.js";

export async function run(bench) {
  const { admin, proxy } = bench.sidekey("figures");
  const { key } = await admin.post("/api/keys", { name: "of the figures", user: "alice" });
  const other = await admin.post("/api/keys", { name: "<b>other</b>", team: "research" });
  await admin.post("/api/provider-keys", { provider: "openai", name: "figures", secret: "sk-proj-of-the-figures" });
  const send = async (as, model, headers = {}) => {
    const body = JSON.stringify({ model, messages: [] });
    const answer = await fetch(`${proxy}/openai/v1/chat/completions`, { method: "POST", headers: { authorization: `Bearer ${as}`, "content-type": "application/json", ...headers }, body });
    same(`a request for ${model}`, answer.status, 200);
    await answer.arrayBuffer();
  };
  const sent = async (count) => until("the ledger has it", async () => (await admin.get("/api/usage?days=1&by=none")).totals.requests === count);
  await send(key, "gpt-4o");
  await send(key, "=1+1");
  await sent(2);
  await overview(bench, () => send(other.key, "gpt-4o"), () => sent(3));
  await usage(bench);
  await own(bench);
}

const stat = (page, label) => page.locator(".stat", { has: page.getByText(label, { exact: true }) }).locator(".value");

async function overview(bench, send, sent) {
  const seat = await bench.seat({ sidekey: "figures", clock: true });
  const { page } = seat;
  await seat.go("#/overview", "Overview");
  same("requests today", await stat(page, "Requests today").innerText(), "2");
  const chart = page.getByRole("figure", { name: "Requests", exact: true });
  await chart.locator("svg[role=img]").waitFor();
  await chart.getByRole("slider").focus();
  await page.keyboard.press("Home");
  const read = () => chart.getByRole("slider").getAttribute("aria-valuetext");
  truly(`a place is read out: ${await read()}`, /^\d\d:\d\d: ok 0, refused 0, errors 0$/.test(await read()));
  await page.keyboard.press("End");
  await send();
  await sent();
  await page.clock.runFor(70_000);
  await until("requests today, live", async () => (await stat(page, "Requests today").innerText()) === "3");
  await until("the chart, live, with the focus where it was", async () => / ok [123],/.test(await read()) && (await chart.getByRole("slider").evaluate((node) => node === document.activeElement)));
  await chart.getByRole("button", { name: "Show as table" }).click();
  truly("the same as a table", (await chart.getByRole("row").count()) > 50);
  await page.getByRole("button", { name: "15 min" }).click();
  await seat.shot("overview-live");
  await page.reload();
  await seat.settled();
  same("what is looked at stands in the address", await page.getByRole("button", { name: "15 min" }).getAttribute("aria-pressed"), "true");
  await bench.leave(seat);
}

async function usage(bench) {
  const seat = await bench.seat({ sidekey: "figures" });
  const { page } = seat;
  await seat.go("#/usage", "Usage");
  await page.getByLabel("By", { exact: true }).selectOption("API key");
  await seat.settled();
  const table = page.getByRole("table", { name: "Usage by API key" });
  same("requests of one key", await cells(table, "of the figures"), ["2", "0", "14", "–", "10"]);
  same("a name with markup is text", await table.getByRole("row", { name: "<b>other</b>" }).count(), 1);
  await page.getByRole("button", { name: "Tokens", exact: true }).click();
  await seat.settled();
  same("who pressed keeps the focus", await focused(page), "Tokens");
  await page.getByRole("figure", { name: "Tokens by day" }).locator("svg[role=img] rect").first().waitFor();
  await table.getByRole("button", { name: "of the figures" }).click();
  await seat.settled();
  same("only of that key", await stat(page, "Requests").innerText(), "2");
  same("the focus is on the filter", await focused(page), "API key: of the figures, remove this filter");
  await page.getByLabel("By", { exact: true }).selectOption("Model");
  await seat.settled();
  await page.reload();
  await seat.settled();
  same("after loading it again", await stat(page, "Requests").innerText(), "2");
  await seat.accessible("usage, narrowed down");
  await seat.shot("usage-narrowed");

  const [download] = await Promise.all([page.waitForEvent("download"), page.getByRole("button", { name: "CSV" }).click()]);
  truly(`the file's name: ${download.suggestedFilename()}`, /^sidekey-usage-by-model-\d{4}-\d\d-\d\d-to-\d{4}-\d\d-\d\d\.csv$/.test(download.suggestedFilename()));
  const lines = (await readFile(await download.path(), "utf8")).replace("\ufeff", "").trimEnd().split("\r\n");
  same("its head", lines[0].split(",").slice(0, 3), ["model", "requests", "failed"]);
  same("what is no formula", lines.slice(1).map((line) => line.split(",").slice(0, 2).join(" ")).sort(), ["'=1+1 1", "gpt-4o 1"]);

  await page.getByRole("button", { name: /remove this filter/ }).click();
  await seat.settled();
  await page.getByRole("button", { name: "Dates…" }).click();
  await seat.settled();
  await page.getByLabel("From", { exact: true }).fill("2020-01-01");
  await seat.settled();
  await page.getByRole("figure", { name: "Tokens by month" }).locator("svg[role=img] rect").first().waitFor();
  await page.getByLabel("To, that day included").fill("2020-01-31");
  await seat.settled();
  await page.getByText("No requests in this time.").waitFor();
  await page.getByRole("button", { name: "7 days" }).click();
  await seat.settled();
  await page.getByLabel("Only of one").selectOption("Team");
  await page.getByLabel("Which").selectOption("research");
  await seat.settled();
  same("of one team", await stat(page, "Requests").innerText(), "1");
  await bench.leave(seat);
}

/** A user sees what is theirs. */
async function own(bench) {
  const seat = await bench.seat({ sidekey: "figures", role: "user:alice" });
  const { page } = seat;
  await seat.go("#/overview", "Overview");
  same("requests of alice", await stat(page, "Requests today").innerText(), "2");
  await page.getByRole("figure", { name: "Requests, last 14 days" }).locator("svg[role=img]").waitFor();
  await seat.accessible("the overview of a user");
  await seat.go("#/usage?by=user&user=bob", "Usage");
  same("usage of alice, whatever the address says", await stat(page, "Requests").innerText(), "2");
}

async function cells(table, name) {
  const row = table.getByRole("row", { name });
  return (await row.getByRole("cell").allInnerTexts()).slice(0, 5);
}

const focused = (page) => page.evaluate(() => document.activeElement.textContent);
