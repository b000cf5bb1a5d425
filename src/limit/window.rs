//! The stretch of time that a budget or quota lasts for.
//!
//! Owns where windows begin and end; leaves what is counted in one to `amount`.
//!
//! Days are civil days of a time zone: 23 or 25 hours long where its clocks change, and beginning after midnight where
//! a change takes midnight away. A window is asked for by the time of a request and never kept up by a timer, so none
//! is reset late.

use jiff::civil::Weekday;
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp, Zoned};

use crate::policy::{Per, zone_named};

/// A kind of window, in a time zone.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Window {
    per: Per,
    zone: TimeZone,
}

/// One window: from `start_ms` on, before `end_ms`; wall time, milliseconds since the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stretch {
    pub(super) start_ms: u64,
    pub(super) end_ms: u64,
}

/// What never begins anew.
const FOR_EVER: Stretch = Stretch { start_ms: 0, end_ms: u64::MAX };

impl Stretch {
    pub(super) fn contains(&self, wall_ms: u64) -> bool {
        (self.start_ms..self.end_ms).contains(&wall_ms)
    }
}

impl Window {
    /// In the zone of this IANA name; UTC without one, or when this machine does not know it.
    pub(super) fn new(per: Per, zone: Option<&str>) -> Self {
        let zone = zone.map_or(Ok(TimeZone::UTC), zone_named).unwrap_or_else(|error| {
            tracing::error!(error, "windows are taken in UTC");
            TimeZone::UTC
        });
        Self { per, zone }
    }

    pub(super) fn per(&self) -> Per {
        self.per
    }

    /// The name of its zone.
    pub(super) fn zone(&self) -> &str {
        self.zone.iana_name().unwrap_or("UTC")
    }

    /// The window that a time lies in.
    pub(super) fn at(&self, wall_ms: u64) -> Stretch {
        // A time outside of the calendar's range has no days.
        self.find(wall_ms).unwrap_or(FOR_EVER)
    }

    fn find(&self, wall_ms: u64) -> Option<Stretch> {
        let time = Timestamp::from_millisecond(i64::try_from(wall_ms).ok()?).ok()?.to_zoned(self.zone.clone());
        let (first, length) = match self.per {
            Per::Total => return None,
            Per::Day => (time.date(), Span::new().days(1)),
            Per::Week => {
                let since = time.date().weekday().since(Weekday::Monday);
                (time.date().checked_sub(Span::new().days(since)).ok()?, Span::new().weeks(1))
            }
            Per::Month => (time.date().first_of_month(), Span::new().months(1)),
        };
        let begin = |date: jiff::civil::Date| date.to_zoned(self.zone.clone()).ok()?.start_of_day().ok();
        let ms = |time: Zoned| Some(u64::try_from(time.timestamp().as_millisecond()).unwrap_or(0));
        let stretch = Stretch { start_ms: ms(begin(first)?)?, end_ms: ms(begin(first.checked_add(length).ok()?)?)? };
        stretch.contains(wall_ms).then_some(stretch)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::clock::parse_rfc3339;

    fn at(per: Per, zone: &str, time: &str) -> (String, String) {
        let Stretch { start_ms, end_ms } = Window::new(per, Some(zone)).at(parse_rfc3339(time).unwrap());
        let show = |ms: u64| Timestamp::from_millisecond(i64::try_from(ms).unwrap()).unwrap().to_string();
        (show(start_ms), show(end_ms))
    }

    #[test]
    fn windows_begin_where_the_calendar_says() {
        for (per, zone, time, start, end) in [
            (Per::Day, "UTC", "2026-11-25T23:59:59.999Z", "2026-11-25T00:00:00Z", "2026-11-26T00:00:00Z"),
            (Per::Day, "UTC", "2026-11-26T00:00:00Z", "2026-11-26T00:00:00Z", "2026-11-27T00:00:00Z"),
            (Per::Day, "Europe/Berlin", "2026-11-25T23:30:00Z", "2026-11-25T23:00:00Z", "2026-11-26T23:00:00Z"),
            (Per::Day, "Asia/Kathmandu", "2026-11-25T18:15:00Z", "2026-11-25T18:15:00Z", "2026-11-26T18:15:00Z"),
            (Per::Week, "UTC", "2026-11-29T12:00:00Z", "2026-11-23T00:00:00Z", "2026-11-30T00:00:00Z"),
            (Per::Month, "UTC", "2026-02-28T12:00:00Z", "2026-02-01T00:00:00Z", "2026-03-01T00:00:00Z"),
            (Per::Month, "America/New_York", "2026-12-31T12:00:00Z", "2026-12-01T05:00:00Z", "2027-01-01T05:00:00Z"),
            // 23 hours, 25 hours.
            (Per::Day, "Europe/Berlin", "2026-03-29T10:00:00Z", "2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z"),
            (Per::Day, "Europe/Berlin", "2026-10-25T10:00:00Z", "2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z"),
            // Clocks went forward at midnight: the day began at one.
            (Per::Day, "America/Sao_Paulo", "2018-11-04T12:00:00Z", "2018-11-04T03:00:00Z", "2018-11-05T02:00:00Z"),
            // A day that never was.
            (Per::Day, "Pacific/Apia", "2011-12-31T00:00:00Z", "2011-12-30T10:00:00Z", "2011-12-31T10:00:00Z"),
        ] {
            assert_eq!(at(per, zone, time), (start.to_owned(), end.to_owned()), "{per:?} {zone} {time}");
        }
        assert_eq!(Window::new(Per::Total, None).at(5), FOR_EVER);
        assert_eq!(Window::new(Per::Day, Some("Nowhere")).zone(), "UTC");
    }

    proptest! {
        /// Windows follow each other without gap or overlap, and each holds the time it was asked by.
        #[test]
        fn windows_tile_time(
            wall_ms in 0..4_000_000_000_000_u64,
            per in prop_oneof![Just(Per::Day), Just(Per::Week), Just(Per::Month)],
            zone in prop_oneof![
                Just("UTC"), Just("Europe/Berlin"), Just("America/St_Johns"), Just("Australia/Lord_Howe"),
                Just("America/Sao_Paulo"), Just("Pacific/Apia"), Just("Africa/Casablanca"), Just("Asia/Tehran"),
            ],
        ) {
            let window = Window::new(per, Some(zone));
            let now = window.at(wall_ms);
            prop_assert!(now.contains(wall_ms));
            prop_assert_eq!(window.at(now.end_ms).start_ms, now.end_ms);
            prop_assert_eq!(window.at(now.end_ms - 1), now);
            prop_assert_eq!(window.at(now.start_ms), now);
            if now.start_ms > 0 {
                prop_assert_eq!(window.at(now.start_ms - 1).end_ms, now.start_ms);
            }
        }
    }
}
