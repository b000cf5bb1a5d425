// The admin API, as every page asks it: the same that the command line uses.
//
//   const { data, etag } = await request("PATCH", `/api/keys/${enc(id)}`, { body, etag, signal });
//   for await (const page of pages("/api/audit", { query, signal })) …     one answer a cursor
//   const { items, more } = await gather("/api/keys", "keys", { most: 2000, signal })
//   token() / keep(text) / forget()                                        what is shown to it, for this tab; `bearer`
//                                                                          shows another token, this once
//
// A refusal throws ApiError with what the problem+json says: status, code, title, detail, field, fix. No answer at all is
// one with status 0. After a 401 the login is shown (whoever called whenRefused), and the error is thrown all the same.

const STORED = "sidekey.token";
let held = read();
let refused = () => {};

function read() {
  try {
    return sessionStorage.getItem(STORED);
  } catch {
    return null; // storage is switched off: the token lives as long as the page
  }
}

export const token = () => held;

export function keep(text) {
  held = text;
  try {
    sessionStorage.setItem(STORED, text);
  } catch {
    // As above.
  }
}

export function forget() {
  held = null;
  try {
    sessionStorage.removeItem(STORED);
  } catch {
    // As above.
  }
}

/** Calls `listener(error)` whenever a token is not good, or none was shown. */
export function whenRefused(listener) {
  refused = listener;
}

/** One part of a path. */
export const enc = encodeURIComponent;

export class ApiError extends Error {
  constructor({ status, code, title, detail, field, fix, retryAfter }) {
    super(detail ?? title ?? "the request failed");
    this.name = "ApiError";
    this.status = status;
    this.code = code ?? null;
    this.title = title ?? words(code) ?? "The request failed";
    this.detail = detail ?? null;
    this.field = field ?? null;
    this.fix = fix ?? null;
    this.retryAfter = retryAfter ?? null;
  }
}

function words(code) {
  if (!code) return null;
  const text = code.replaceAll("_", " ");
  return text[0].toUpperCase() + text.slice(1);
}

function search(query) {
  const said = Object.entries(query ?? {}).filter(([, value]) => value !== null && value !== undefined && value !== "");
  return said.length ? `?${new URLSearchParams(said)}` : "";
}

export async function request(method, path, { body, etag, signal, query, bearer } = {}) {
  const headers = { accept: "application/json" };
  const shown = bearer ?? held;
  if (shown) headers.authorization = `Bearer ${shown}`;
  if (etag) headers["if-match"] = etag;
  if (body !== undefined) headers["content-type"] = "application/json";
  let response;
  try {
    response = await fetch(path + search(query), {
      method,
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
      cache: "no-store",
      credentials: "omit",
      redirect: "error",
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    const fix = "see whether it runs: sidekey status";
    throw new ApiError({ status: 0, title: "No answer", detail: "sidekey does not answer", fix });
  }
  if (!response.ok) {
    const error = await problem(response);
    if (error.status === 401 && !bearer) refused(error);
    throw error;
  }
  const kind = response.headers.get("content-type") ?? "";
  const data = response.status === 204 ? null : kind.includes("json") ? await response.json() : await response.text();
  return { data, etag: response.headers.get("etag"), status: response.status };
}

async function problem(response) {
  let said = {};
  try {
    said = await response.json();
  } catch {
    // Something in between has answered: the status says what there is to say.
  }
  const retryAfter = Number(response.headers.get("retry-after")) || null;
  return new ApiError({ title: `Status ${response.status}`, ...titled(said), status: response.status, retryAfter });
}

function titled(said) {
  const title = said.title ?? words(said.code);
  return title ? { ...said, title } : said;
}

export async function* pages(path, { query, signal } = {}) {
  let cursor = null;
  do {
    const { data } = await request("GET", path, { query: { ...query, cursor }, signal });
    yield data;
    cursor = data.next_cursor ?? null;
  } while (cursor !== null);
}

/** The items of a list, over its pages, up to `most`; `more` says that there are further ones. */
export async function gather(path, list, { query, signal, most = 5000 } = {}) {
  const items = [];
  for await (const page of pages(path, { query: { limit: Math.min(most, 1000), ...query }, signal })) {
    items.push(...page[list]);
    if (items.length >= most) return { items, more: (page.next_cursor ?? null) !== null };
  }
  return { items, more: false };
}
