// Strings that mean harm, wherever somebody outside can put them: they are shown as what they are.

import { same, truly, until } from "../bench.js";

const MARKUP = `<img src=x onerror="window.harmed=1"><script>window.harmed=1</script>`;
const TURNED = "\u202Egnp.exe\u2066 rtl \u05d0\u05d1\u05d2";
const TURNS = /[\u202a-\u202e\u2066-\u2069]/;
const EMOJI = "👩‍👩‍👧‍👦🏳️‍🌈 zalgo Z̸̡̛͓a̷͇͝l̴̢̈g̶̱̈o̵͉͝";
const LONG = "W".repeat(128);
/** As much as a record takes beside the rest, and more than one takes. */
const MUCH = `${"<b>x</b>".repeat(60)}${"W".repeat(700)}`;
const HUGE = `${"<b>x</b>".repeat(700)}${"W".repeat(5000)}`;
const NAMES = [MARKUP, TURNED, EMOJI, LONG, "javascript:alert(1)", "{{constructor.constructor('window.harmed=1')()}}", "'\"><svg onload=window.harmed=1>"];

export async function run(bench) {
  const { admin } = bench.sidekey("hostile");
  await planted(bench, admin);
  for (const width of [320, 1280]) {
    const seat = await bench.seat({ sidekey: "hostile", width });
    await everywhere(seat, width);
    if (width === 320) await inErrors(seat);
    await bench.leave(seat);
  }
}

/** Puts them into the store, and through the proxy into the ledger. */
async function planted(bench, admin) {
  const { keys } = await many(admin);
  const { proxy } = bench.sidekey("hostile");
  const headers = { authorization: `Bearer ${keys[0].key}`, "content-type": "application/json" };
  for (const model of [MARKUP, TURNED, EMOJI, HUGE]) {
    const body = JSON.stringify({ model, messages: [{ role: "user", content: MARKUP }] });
    await fetch(`${proxy}/openai/v1/chat/completions`, { method: "POST", headers, body });
  }
  // The last one is too long to be a name of a model, and is refused.
  await until("the ledger", async () => (await admin.get("/api/ledger")).entries.length >= 3);
}

async function many(admin) {
  const members = [];
  for (const name of NAMES) {
    const body = { provider: "openai", name, secret: "sk-of-the-hostile", owner: "system", models: [MARKUP, TURNED, MUCH, "*"] };
    members.push((await admin.post("/api/provider-keys", body)).id);
    await admin.post("/api/plans", { name, description: MUCH, models: [MARKUP, MUCH], routes: { [LONG]: { targets: [{ provider: "openai", model: MARKUP.replaceAll(" ", "/") }] } } });
    await admin.post("/api/pools", { name, keys: members });
  }
  const keys = [];
  for (const name of NAMES) {
    const body = { name, user: name, team: name, pool: name, metadata: { [name]: MUCH, [MUCH.slice(0, 300)]: name } };
    // The first one is used, so nothing narrows it.
    if (keys.length > 0) Object.assign(body, { plan: name, models: [MARKUP, TURNED, EMOJI, LONG] });
    keys.push(await admin.post("/api/keys", body));
  }
  await admin.post("/api/tokens", { name: MARKUP, role: "reader" });
  return { keys };
}

async function everywhere(seat, width) {
  const { page, admin } = seat;
  const { keys } = await admin.get("/api/keys");
  const places = [...(await seat.pages()), ...keys.map(({ id }) => `/keys/${id}`)];
  for (const [at, path] of places.entries()) {
    await seat.visit(path);
    await unharmed(seat, `${path} at ${width} px`);
    if (at < places.length - keys.length + 2) await seat.shot(`hostile-${path.replaceAll("/", "-").slice(1, 20)}-${width}`);
  }
  await seat.go("#/keys", "API keys");
  for (const name of NAMES.slice(0, 3)) await page.getByText(tamed(name), { exact: true }).first().waitFor();
}

/** Errors of the API repeat what was sent. */
async function inErrors(seat) {
  const { page } = seat;
  seat.expects(409, 404, 422);
  await seat.go("#/pools", "Pools and plans");
  await page.getByRole("button", { name: "Create a plan" }).click();
  await page.getByLabel("Name", { exact: true }).fill(MARKUP);
  await seat.dialog.getByRole("button", { name: "Create" }).click();
  await seat.dialog.locator(".complaint, .form-error").filter({ hasText: "onerror" }).first().waitFor();
  await unharmed(seat, "an error in a dialog");
  await page.getByLabel("Name", { exact: true }).fill("too much");
  await page.getByLabel("Models (optional)").fill(HUGE);
  await seat.dialog.getByRole("button", { name: "Create" }).click();
  await seat.dialog.locator(".complaint, .form-error").filter({ hasText: "bytes" }).first().waitFor();
  await unharmed(seat, "more than a record takes");
  await page.keyboard.press("Escape");
  await page.getByRole("button", { name: `More for the plan ${MARKUP}` }).click();
  await page.getByRole("button", { name: "Delete" }).click();
  await unharmed(seat, "a question");
  await seat.dialog.getByRole("button", { name: "Delete" }).click();
  await seat.told(MARKUP);
  await unharmed(seat, "a message");
  await seat.go(`#/keys/${encodeURIComponent(MARKUP)}`, "API key");
  await unharmed(seat, "an error in place of a page");
  await seat.go(`#/${encodeURIComponent(MARKUP)}?q=${encodeURIComponent(HUGE)}`, "No such page");
  await unharmed(seat, "an address that is nowhere");
  await seat.go(`#/keys?q=${encodeURIComponent(MARKUP)}&plan=${encodeURIComponent(LONG)}`, "API keys");
  await unharmed(seat, "a search");
}

/** Marks that turn text around are shown as something, and do not. */
const tamed = (text) => text.replaceAll(new RegExp(TURNS, "g"), "\ufffd");

async function unharmed(seat, what) {
  truly(`no mark turns text around in ${what}`, !TURNS.test(await seat.page.locator("body").innerText()));
  const found = await seat.page.evaluate(() => ({
    harmed: window.harmed ?? null,
    planted: document.querySelectorAll("img, iframe, object, embed, script:not([src]), [onerror], [onload], a[href^='javascript']").length,
  }));
  same(what, found, { harmed: null, planted: 0 });
  truly(what, await seat.page.locator("main h1").isVisible());
  await seat.fits(what);
}
