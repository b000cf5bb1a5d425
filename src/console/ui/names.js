// Ids of keys, by the names that people gave them.
//
//   const named = await names("key", { ids, signal });      named(id) is the key's name, or the id when it is gone
//
// "key" and "provider_key" have ids; whatever else usage is told by is its own name. One page of the list knows most of them;
// of the rest the first are asked for one by one, so that ten thousand keys are not fetched for ten names.

import { enc, request } from "./api.js";

const LISTS = { key: ["/api/keys", "keys"], provider_key: ["/api/provider-keys", "provider_keys"] };
const PAGE = 200;
const SINGLY = 60;

export async function names(dimension, { ids, signal } = {}) {
  if (!LISTS[dimension]) return (id) => id;
  const [path, list] = LISTS[dimension];
  const known = new Map();
  const note = (item) => known.set(item.id, item.provider ? `${item.provider} / ${item.name}` : item.name);
  const { data } = await request("GET", path, { query: { limit: PAGE }, signal });
  data[list].forEach(note);
  const one = async (id) => {
    try {
      note((await request("GET", `${path}/${enc(id)}`, { signal })).data);
    } catch (error) {
      // It is gone, and its usage stays.
      if (error.status !== 404) throw error;
    }
  };
  if (data.next_cursor) await Promise.all(ids.filter((id) => !known.has(id)).slice(0, SINGLY).map(one));
  return (id) => known.get(id) ?? id;
}
