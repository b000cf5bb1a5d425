//! `/api/activity`: what the installation did in the last minutes, for charts.
//!
//! Owns the answer's form; leaves the figures to [`Activity`].

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use http::StatusCode;
use serde::{Deserialize, Serialize};

use crate::activity::{Activity, Counts, MAX_MINUTES, Series};
use crate::clock::rfc3339;
use crate::control::ControlState;
use crate::control::problem::{Asked, Problem};
use crate::unit::usd;

const DEFAULT_MINUTES: u32 = 60;

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub(super) struct ActivityQuery {
    minutes: Option<u32>,
}

/// Steps of time, each right after the other; the last is still open.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "Activity"))]
pub(super) struct ActivityView {
    /// The start of the first step, RFC 3339.
    #[cfg_attr(test, schemars(extend("format" = "date-time")))]
    from: String,
    /// The time of the answer, RFC 3339.
    #[cfg_attr(test, schemars(extend("format" = "date-time")))]
    to: String,
    /// When counting began, RFC 3339: steps before it are empty because nobody counted.
    #[cfg_attr(test, schemars(extend("format" = "date-time")))]
    since: String,
    /// How long a step is, seconds: 10 up to an hour, else 60.
    step_s: u64,
    points: Vec<PointView>,
    now: NowView,
}

/// One step.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "ActivityPoint"))]
pub(super) struct PointView {
    /// Its start, RFC 3339.
    #[cfg_attr(test, schemars(extend("format" = "date-time")))]
    time: String,
    /// Requests that ended in it.
    requests: u64,
    /// Those that sidekey refused.
    refusals: u64,
    /// Those that came to no good end otherwise: by the provider, by the client that left, by our own stop.
    errors: u64,
    tokens: TokensView,
    /// US dollars, a decimal string.
    cost_usd: String,
    ttfb_ms: PercentilesView,
    /// The most responses that were seen being relayed at once.
    streams_in_flight: u64,
}

/// Tokens, as providers report them or as they were estimated.
#[derive(Clone, Copy, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "ActivityTokens"))]
pub(super) struct TokensView {
    /// Those read from a cache included.
    input: u64,
    output: u64,
    cached_input: u64,
}

/// From the request's head to the answer's head, milliseconds; null when no request was sent on.
#[derive(Clone, Copy, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "Percentiles"))]
pub(super) struct PercentilesView {
    p50: Option<f64>,
    p95: Option<f64>,
}

/// What is so at the time of the answer.
#[derive(Clone, Copy, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "ActivityNow"))]
pub(super) struct NowView {
    /// Responses being relayed.
    streams_in_flight: u64,
    /// True when the installation is about to end.
    draining: bool,
}

pub(super) async fn show(
    State(state): State<Arc<ControlState>>,
    Asked(query): Asked<ActivityQuery>,
) -> Result<Json<ActivityView>, Problem> {
    let minutes = query.minutes.unwrap_or(DEFAULT_MINUTES);
    if !(1..=MAX_MINUTES).contains(&minutes) {
        return Err(Problem::invalid("minutes", format!("must be from 1 to {MAX_MINUTES}")).fix("leave it out for 60"));
    }
    let series = activity(&state)?.last(minutes);
    let now = NowView { streams_in_flight: series.in_flight, draining: state.readiness.is_draining() };
    Ok(Json(ActivityView::new(&series, now)))
}

fn activity(state: &ControlState) -> Result<&Arc<Activity>, Problem> {
    state.activity.as_ref().ok_or_else(|| {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "no_daemon", "only the daemon has requests to tell of")
            .fix("start it: sidekey run")
    })
}

impl ActivityView {
    fn new(series: &Series, now: NowView) -> Self {
        let starts = (0..).map(|step| series.from_ms + step * series.step_ms);
        Self {
            from: rfc3339(series.from_ms),
            to: rfc3339(series.to_ms),
            since: rfc3339(series.since_ms),
            step_s: series.step_ms / 1000,
            points: series.points.iter().zip(starts).map(|(grown, start)| PointView::new(grown, start)).collect(),
            now,
        }
    }
}

impl PointView {
    fn new(grown: &Counts, start_ms: u64) -> Self {
        // To the microsecond: finer than that the buckets do not know.
        let ms = |q| grown.first_byte.quantile(q).map(|seconds| (seconds * 1e6).round() / 1e3);
        Self {
            time: rfc3339(start_ms),
            requests: grown.requests(),
            refusals: grown.refused,
            errors: grown.failed,
            tokens: TokensView { input: grown.input, output: grown.output, cached_input: grown.cached_input },
            cost_usd: usd(grown.cost_nano_usd),
            ttfb_ms: PercentilesView { p50: ms(0.5), p95: ms(0.95) },
            streams_in_flight: grown.in_flight,
        }
    }
}
