// Who is logged in, and what they may do.
//
//   await session()                      { role, user, rank, token } of the token, asked for once
//   may("operator")                      true for operators and admins
//   may("operator", { own: true })       … and for users, over what is theirs: as the API's table of routes says it
//   login(code), use(token), logout()
//
// Pages leave out what is not for the role; the API refuses it in any case.

import { forget, keep, request } from "./api.js";

const RANKS = { reader: 1, operator: 2, admin: 3 };
let now = null;

function described({ role, by, acts_as_user: acting, token_data: token }) {
  const user = typeof role === "string" && role.startsWith("user:") ? role.slice("user:".length) : null;
  return { role, user, rank: RANKS[role] ?? 0, by, acting, token };
}

export async function session({ signal } = {}) {
  if (!now) now = described((await request("GET", "/api/session", { signal })).data);
  return now;
}

export function may(least, { own = false } = {}) {
  if (!now) return false;
  return now.user !== null ? own : now.rank >= RANKS[least];
}

/** The user whose console this is, or null. */
export const self = () => now?.user ?? null;

export async function login(code) {
  const { data } = await request("POST", "/api/session", { body: { code } });
  now = null;
  keep(data.token);
}

/** Takes a token that somebody has pasted, when it is good. */
export async function use(text) {
  const { data } = await request("GET", "/api/session", { bearer: text });
  keep(text);
  now = described(data);
}

/** A login of `sidekey ui` ends for good; a token that was pasted is forgotten here only. */
export async function logout() {
  try {
    if (now?.token?.session) await request("DELETE", "/api/session");
  } finally {
    leave();
  }
}

export function leave() {
  now = null;
  forget();
}
