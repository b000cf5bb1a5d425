// The login: with the code of `sidekey ui`, which comes in the address, or with a token.
//
//   login(main, { done, why })      shows it; `done` is called when somebody is in

import { ApiError } from "./api.js";
import { copyable } from "./copy.js";
import { h, replace } from "./dom.js";
import { form, secret } from "./form.js";
import { use } from "./session.js";

export function login(main, { done, why }) {
  document.title = "Log in · sidekey";
  const shown = secret({ name: "token", label: "Admin token", required: true, autocomplete: "off", help: "It is kept in this tab only, and forgotten with it." });
  const enter = form({
    fields: [shown],
    action: "Log in",
    submit: async ({ token }) => {
      try {
        await use(token);
      } catch (error) {
        throw error instanceof ApiError && error.status === 401 ? new ApiError({ ...error, field: "token", detail: error.detail, fix: null }) : error;
      }
      done();
    },
  });
  const heading = h("h1", { tabindex: "-1" }, "Log in to sidekey");
  replace(
    main,
    h(
      "div",
      { class: "login" },
      heading,
      why && h("div", { class: "notice", role: "alert" }, h("p", null, why.detail), why.fix && h("p", null, why.fix)),
      h("section", { class: "card" }, h("h2", null, "On this machine"), h("p", null, "This command opens the console in a browser and logs it in, for twelve hours."), copyable("sidekey ui")),
      h("section", { class: "card" }, h("h2", null, "With a token"), h("p", { class: "quiet" }, "An operator makes one with ", h("code", null, "sidekey token create"), "."), enter),
    ),
  );
  if (why) heading.focus();
}
