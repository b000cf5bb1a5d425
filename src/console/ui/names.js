// Ids of keys, by the names that people gave them.
//
//   const named = await names("key", { signal });      named(id) is the key's name, or the id when it is gone
//
// "key" and "provider_key" have ids; whatever else usage is told by is its own name.

import { gather } from "./api.js";

const LISTS = { key: ["/api/keys", "keys"], provider_key: ["/api/provider-keys", "provider_keys"] };
const MOST = 3000;

export async function names(dimension, { signal } = {}) {
  if (!LISTS[dimension]) return (id) => id;
  const [path, list] = LISTS[dimension];
  const { items } = await gather(path, list, { most: MOST, signal });
  const known = new Map(items.map((item) => [item.id, item.provider ? `${item.provider} / ${item.name}` : item.name]));
  return (id) => known.get(id) ?? id;
}
