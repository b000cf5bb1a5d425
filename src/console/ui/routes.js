// Routes of models as people write them: smart=3*openai/gpt-4o,groq/llama-3.3 (as the command line has it).
//
//   written(routes)               one line a route
//   routesOf(lines, before)       the routes that the lines say; a line that is as before keeps all that its route has
//
// A line that cannot be read throws an Error that says which.

const target = ({ provider, model, weight }) => `${weight ? `${weight}*` : ""}${provider}${model ? `/${model}` : ""}`;

const line = ([pattern, { targets }]) => `${pattern}=${targets.map(target).join(",")}`;

export const written = (routes) => Object.entries(routes ?? {}).map(line).join("\n");

export function routesOf(text, before) {
  const known = new Map(Object.entries(before ?? {}).map((entry) => [line(entry), entry[1]]));
  const routes = {};
  for (const said of (text ?? "").split("\n").map((one) => one.trim()).filter(Boolean)) {
    const [pattern, rest] = halves(said, "=");
    if (!rest) throw new Error(`“${said}” is no route: write model=provider/model`);
    if (routes[pattern]) throw new Error(`“${pattern}” has two routes`);
    routes[pattern] = known.get(said) ?? { targets: rest.split(",").map((one) => read(one.trim(), said)) };
  }
  return routes;
}

function read(text, said) {
  const found = /^(?:(\d+)\*)?([^/*\s]+)(?:\/(.+))?$/.exec(text);
  if (!found) throw new Error(`“${text}” in “${said}” is no target: write provider/model`);
  const [, weight, provider, model] = found;
  return { provider, ...(model && { model }), ...(weight && { weight: Number(weight) }) };
}

function halves(text, mark) {
  const at = text.indexOf(mark);
  return at < 1 ? [text, ""] : [text.slice(0, at).trim(), text.slice(at + 1).trim()];
}
