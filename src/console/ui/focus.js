// The focus, where what had it is drawn anew.
//
//   await keepFocus(root, () => replace(root, …))
//
// What can be drawn anew carries `data-act`: a word that is its own within `root`, the same before and after.

export async function keepFocus(root, draw) {
  const held = () => document.activeElement?.closest?.("[data-act]");
  const had = root.contains(document.activeElement) ? held() : null;
  const act = had?.dataset.act;
  await draw();
  if (!act || root.contains(document.activeElement)) return;
  const same = [...root.querySelectorAll("[data-act]")].find((node) => node.dataset.act === act);
  (same?.matches("button, a, input, select") ? same : same?.querySelector("button, a"))?.focus();
}
