// What the flows stand on: one browser, a context of its own for each page, and eyes on all of them.
//
// Whatever a page reports that it should not (a violation of its policy, an error on its console, an exception, an answer
// that a flow did not say it expects) fails the flow.

import { existsSync, mkdirSync, readFileSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";

import { Admin } from "./admin.js";

const PATIENCE_MS = 15_000;
const MOST_FAULTS = 20;
const RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"];

export class Bench {
  /** Starts the browser. */
  static async start(given) {
    // The modules are installed below target, not beside this file.
    const require = createRequire(join(given.modules, "/"));
    const { chromium } = require("playwright-core");
    const bench = new Bench();
    bench.given = given;
    bench.axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
    bench.figures = {};
    bench.seats = [];
    bench.seen = [];
    bench.admins = new Map();
    rmSync(given.shots, { recursive: true, force: true });
    mkdirSync(given.shots, { recursive: true });
    // One process for all pages of a site, and neither GPU nor sandbox: the build server has two cores and runs as root.
    const args = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--force-color-profile=srgb"];
    bench.browser = await chromium.launch({ executablePath: given.chromium, args });
    return bench;
  }

  /** One of the sidekeys that were started, by its name, and its admin API. */
  sidekey(name = "main") {
    const found = this.given.sidekeys[name];
    if (!found) throw new Error(`no sidekey ${name}`);
    if (!this.admins.has(name)) this.admins.set(name, new Admin(found.socket));
    return { ...found, admin: this.admins.get(name) };
  }

  /**
   * A page that nobody has seen before, logged in as `role`: by a code for an admin, else by a token. `role: null` is
   * nobody.
   */
  async seat({ sidekey = "main", role = "admin", theme = "light", width = 1280, height = 900, clock = false } = {}) {
    const target = this.sidekey(sidekey);
    const context = await this.browser.newContext({
      baseURL: target.url,
      viewport: { width, height },
      colorScheme: theme,
      reducedMotion: "reduce",
      permissions: ["clipboard-read", "clipboard-write"],
    });
    context.setDefaultTimeout(PATIENCE_MS);
    if (this.given.ui) await fromDisk(context, this.given.ui);
    const page = await context.newPage();
    const seat = new Seat(this, target, context, page);
    this.seats.push(seat);
    await seat.watch();
    if (clock) await page.clock.install();
    await seat.enter(role);
    return seat;
  }

  /** Closes a seat before its flow ends; what it saw counts all the same. */
  async leave(seat) {
    this.seen.push(...(await seat.close()));
    this.seats = this.seats.filter((other) => other !== seat);
  }

  /** Closes the seats of a flow; what they saw that they should not. */
  async endFlow(name, failed) {
    const faults = this.seen.splice(0);
    for (const [at, seat] of this.seats.entries()) {
      if (failed) await seat.shot(`failed-${name}-${at}`).catch(() => {});
      faults.push(...(await seat.close()));
    }
    this.seats = [];
    // What happens once a frame is told once.
    return [...new Set(faults)].slice(0, MOST_FAULTS);
  }

  async stop() {
    for (const admin of this.admins.values()) admin.close();
    await this.browser.close();
  }
}

/** Takes what is below `/ui/` from these folders, as far as it is there: to try a change without building the program. */
async function fromDisk(context, folders) {
  await context.route(/\/(ui\/.+)?$/, async (route) => {
    const path = new URL(route.request().url()).pathname.replace(/^\/(ui\/)?/, "") || "index.html";
    const found = folders.map((folder) => join(folder, path)).find((file) => existsSync(file));
    if (!found) return route.continue();
    const index = await route.fetch({ url: new URL("/", route.request().url()).href }).catch(() => null);
    if (!index) return undefined; // the page is closed
    const headers = index.headers();
    const kinds = { js: "text/javascript", css: "text/css", svg: "image/svg+xml", html: "text/html" };
    const type = `${kinds[path.split(".").at(-1)]}; charset=utf-8`;
    return route.fulfill({ body: readFileSync(found), headers: { ...headers, "content-type": type, "content-length": undefined } });
  });
}

/** Waits until `look` gives something that is true, which is what comes back; says `what` when it does not. */
export async function until(what, look) {
  const end = performance.now() + PATIENCE_MS;
  let last = null;
  for (;;) {
    try {
      const seen = await look();
      if (seen) return seen;
      last = null;
    } catch (error) {
      last = error;
    }
    if (performance.now() > end) throw new Error(`not in ${PATIENCE_MS} ms: ${what}${last ? `\n${last.stack}` : ""}`);
    await new Promise((resolve) => setTimeout(resolve, 25));
  }
}

/** Fails, saying `what`, unless both are the same by their JSON. */
export function same(what, is, wanted) {
  const [a, b] = [JSON.stringify(is), JSON.stringify(wanted)];
  if (a !== b) throw new Error(`${what}: is ${a}, should be ${b}`);
}

/** Fails unless it is so. */
export function truly(what, is) {
  if (!is) throw new Error(`not so: ${what}`);
}

/** A page, and what is expected of it. */
export class Seat {
  constructor(bench, sidekey, context, page) {
    Object.assign(this, { bench, sidekey, context, page });
    this.admin = sidekey.admin;
    this.faults = [];
    this.expected = new Set();
  }

  async watch() {
    const { page } = this;
    page.on("pageerror", (error) => this.faults.push(`an exception in ${page.url()}: ${error.stack ?? error}`));
    page.on("console", (message) => this.heard(message));
    page.on("response", (response) => {
      const status = response.status();
      if (status >= 400 && !this.expected.has(status)) {
        this.faults.push(`${response.request().method()} ${response.url()} was answered with ${status}`);
      }
    });
    page.on("requestfailed", (request) => {
      const why = request.failure()?.errorText;
      // A page that is left gives up what it asked for.
      if (why !== "net::ERR_ABORTED") this.faults.push(`${request.method()} ${request.url()}: ${why}`);
    });
    await page.exposeBinding("reportViolation", (_, text) => this.faults.push(`against the policy: ${text}`));
    await page.addInitScript(() => {
      addEventListener("securitypolicyviolation", (event) => {
        const { violatedDirective, blockedURI, sourceFile, lineNumber, sample } = event;
        window.reportViolation(JSON.stringify({ violatedDirective, blockedURI, sourceFile, lineNumber, sample }));
      });
    });
    // Not by the page's own means, which the policy forbids.
    await page.addInitScript({ content: this.bench.axe });
  }

  heard(message) {
    if (!["error", "warning"].includes(message.type())) return;
    const text = message.text();
    // The browser's own line about a status is judged as a response.
    if (/^Failed to load resource: the server responded with a status of \d+/.test(text)) return;
    this.faults.push(`on the console of ${this.page.url()}: ${text}`);
  }

  /** Says that these statuses are part of the flow. */
  expects(...statuses) {
    for (const status of statuses) this.expected.add(status);
    return this;
  }

  /** Logs in, as people do. */
  async enter(role) {
    const { page, admin } = this;
    if (role === "admin") {
      const { url } = await admin.post("/api/session/code");
      await page.goto(url);
    } else {
      await page.goto("/");
      if (role === null) return;
      const { token } = await admin.post("/api/tokens", { name: `a ${role}`, role });
      await page.getByLabel("Admin token").fill(token);
      await page.getByRole("button", { name: "Log in" }).click();
    }
    await page.locator("#side nav").waitFor({ state: "attached" });
    await this.settled();
  }

  /** Waits until the page that is shown is all there. */
  async settled() {
    await this.page.locator("main:not([aria-busy]) h1").waitFor();
    await this.page.waitForFunction(() => !document.querySelector("[aria-busy='true']"));
  }

  /** Goes to a page by its address, and waits until its heading is there. */
  async go(hash, heading) {
    await this.page.evaluate((to) => {
      location.hash = to;
    }, hash);
    await this.page.locator("main h1", { hasText: heading }).waitFor();
    await this.settled();
  }

  /** The paths of all pages that need no parameter, as whoever sits here has them in the navigation. */
  async pages() {
    const links = this.page.locator("#side nav a");
    const hrefs = await links.evaluateAll((all) => all.map((one) => one.getAttribute("href")));
    if (hrefs.length === 0) throw new Error("the navigation is empty");
    return hrefs.map((href) => href.replace(/^#/, ""));
  }

  /** Goes to a path, whatever its heading is, and waits until the page is all there. */
  async visit(path) {
    await this.page.evaluate((to) => {
      if (location.hash === to) return;
      // So that what was there before is not taken for it.
      document.querySelector("main h1")?.remove();
      location.hash = to;
    }, `#${path}`);
    await this.settled();
  }

  /** What is inside the dialog on top. */
  get dialog() {
    return this.page.getByRole("dialog").last();
  }

  /** A message with this text. */
  async told(text) {
    await this.page.locator(".message", { hasText: text }).last().waitFor();
  }

  /** Fails when the page, or a dialog on it, is wider than the window. */
  async fits(what) {
    const wide = await this.page.evaluate(() => {
      const beyond = (node) => node.scrollWidth - node.clientWidth;
      return [document.documentElement, ...document.querySelectorAll("dialog")].map(beyond).find((by) => by > 0) ?? 0;
    });
    if (wide > 0) throw new Error(`${what} scrolls sideways, by ${wide} px`);
  }

  /** A picture of the whole page, or of the window with its dialog, among the artefacts. */
  async shot(name) {
    const fullPage = (await this.page.locator("dialog[open]").count()) === 0;
    await this.page.screenshot({ path: join(this.bench.given.shots, `${name}.png`), fullPage, animations: "disabled" });
  }

  /** Nothing that axe finds wrong with the page as it is. */
  async accessible(what) {
    const found = await this.page.evaluate(async (rules) => {
      const options = { runOnly: { type: "tag", values: rules }, resultTypes: ["violations"], preload: false };
      const { violations } = await window.axe.run(document, options);
      return violations.map(({ id, help, nodes }) => {
        const places = nodes.slice(0, 4).map((node) => `${node.target.join(" ")}: ${node.failureSummary}`);
        return `${id}: ${help}\n    ${places.join("\n    ")}`;
      });
    }, RULES);
    if (found.length > 0) throw new Error(`axe on ${what}:\n  ${found.join("\n  ")}`);
  }

  async close() {
    await this.context.close();
    return this.faults;
  }
}
