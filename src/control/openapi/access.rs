//! Who gets in: pages, sessions, tokens.

use serde_json::json;

use super::operation::Op;
use crate::control::named::ListQuery;
use crate::control::{session, tokens};

pub(super) fn operations() -> Vec<Op> {
    vec![
        Op::get("/", "getConsole", "The console's page").gives_other("text/html"),
        Op::get("/ui/{*path}", "getAsset", "What belongs to the console's page").gives_other("*/*"),
        Op::get("/openapi.json", "getOpenApi", "This document").gives_other("application/json"),
        Op::get("/api/session", "whoAmI", "Who asks, and what they may do").gives::<session::WhoAsks>(),
        Op::post("/api/session", "logIn", "Takes a code and gives a token")
            .takes_with::<session::Login>(&["code"])
            .makes::<session::Session<'_>>(),
        Op::delete("/api/session", "logOut", "Ends the session that a code began").may(&[409]),
        Op::post("/api/session/code", "createLoginCode", "A code for a login, good once and for a minute")
            .gives::<session::LoginCode<'_>>()
            .may(&[409]),
        Op::get("/api/tokens", "listTokens", "Tokens, the oldest first")
            .query::<ListQuery>()
            .gives::<tokens::TokenList>(),
        Op::post("/api/tokens", "createToken", "Makes a token, which is shown this once")
            .takes_with::<tokens::Wish>(&["name", "role"])
            .example(json!({"name": "dashboard", "role": "reader", "expires_days": 30}))
            .makes::<tokens::TokenMade<'_>>()
            .leads_to("getToken", "id", "/token_data/id")
            .leads_to("revokeToken", "id", "/token_data/id"),
        Op::get("/api/tokens/{id}", "getToken", "One token").gives::<tokens::TokenView>(),
        Op::delete("/api/tokens/{id}", "revokeToken", "Takes a token back: it is accepted no longer").versioned(),
    ]
}
