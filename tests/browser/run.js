// Drives the console in a real browser, flow by flow, and says how each went as JSON on stdout.
//
// `SIDEKEY_TEST` holds what the test that starts this knows: see `tests/it/browser.rs`.

import { Bench } from "./bench.js";

const FLOWS = ["journey", "providers", "conflicts", "door", "keyboard", "messages", "paging", "roles", "pages", "hostile", "figures", "records", "crowd"];

const given = JSON.parse(process.env.SIDEKEY_TEST);
const wanted = given.only ? given.only.split(",") : FLOWS;
const bench = await Bench.start(given);
// What takes its time is begun with.
const flows = new Map();
for (const name of wanted) flows.set(name, await import(`./flows/${name}.js`));
const prepared = Promise.all([...flows.values()].map(({ prepare }) => prepare?.(bench)));
prepared.catch(() => {});
const report = { flows: [], figures: bench.figures };
try {
  for (const [name, { prepare, run }] of flows) {
    const began = performance.now();
    const flow = { name, failed: null };
    console.error(`${name} …`);
    try {
      if (prepare) await prepared;
      await run(bench);
    } catch (error) {
      flow.failed = String(error?.stack ?? error);
    }
    const faults = await bench.endFlow(name, flow.failed !== null);
    if (faults.length > 0) flow.failed = [flow.failed, ...faults].filter(Boolean).join("\n");
    flow.ms = Math.round(performance.now() - began);
    console.error(flow.failed ? `${name}: FAILED\n${flow.failed}` : `${name}: ok, ${flow.ms} ms`);
    report.flows.push(flow);
  }
} finally {
  await bench.stop();
}
console.log(JSON.stringify(report));
