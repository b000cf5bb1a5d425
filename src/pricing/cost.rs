//! What a call costs: its figures, cut into parts that do not overlap, each at its own rate.
//!
//! Owns the arithmetic. It is exact: rates are whole numbers, sums have 128 bits, and the total is rounded once, half up, to
//! whole nano-USD. What would not fit ends at the largest figure there is.

use super::price::Price;
use super::rate::{Item, Rate, Rates};
use crate::unit::{ServiceTier, Usage};

/// Sums are kept in 10^-21 USD: a millisecond at a rate in atto-USD per second is a whole number of these.
const OF_FEMTO: u128 = 1_000_000;
/// How many of those are a nano-USD.
const OF_NANO: u128 = 1_000_000 * OF_FEMTO;

/// Tokens of an image whose size nobody has said: a large one of good quality at OpenAI
/// (<https://platform.openai.com/docs/guides/image-generation#cost-and-latency>).
const IMAGE_TOKENS: u64 = 4_160;

/// What a call is thought to need of all that has a price.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    /// Tokens of the request.
    pub input: u64,
    /// Tokens of the answer.
    pub output: u64,
    /// Images of the answer.
    pub images: u64,
    /// Sound of the request, milliseconds.
    pub audio_ms: u64,
}

/// A part of a call, and the items whose rate may be its own, the first known one counts.
///
/// What has no rate of its own is part of something that has: a cached token without a price for cached ones was read like
/// any other.
const PARTS: [&[Item]; 12] = [
    &[Item::Input],
    &[Item::CachedInput, Item::Input],
    &[Item::CacheWrite, Item::Input],
    &[Item::CacheWrite1h, Item::CacheWrite, Item::Input],
    &[Item::AudioInput, Item::Input],
    &[Item::CachedAudioInput, Item::CachedInput, Item::AudioInput, Item::Input],
    &[Item::ImageInput, Item::Input],
    &[Item::CachedImageInput, Item::CachedInput, Item::ImageInput, Item::Input],
    // Models that only make images or speech have a rate for these alone.
    &[Item::Output, Item::ImageOutput, Item::AudioOutput],
    &[Item::Reasoning, Item::Output],
    &[Item::AudioOutput, Item::Output],
    &[Item::ImageOutput, Item::Output],
];

/// The tokens of each of [`PARTS`]. They sum up to input and output: parts that a provider gives and that are together more
/// than the whole are cut, in this order.
fn parts(usage: &Usage) -> [u64; PARTS.len()] {
    fn take(left: &mut u64, wanted: u64) -> u64 {
        let taken = wanted.min(*left);
        *left -= taken;
        taken
    }
    let figure = |figure: Option<u64>| figure.unwrap_or(0);
    let mut input = figure(usage.input);
    let mut cached = take(&mut input, figure(usage.cached_input));
    let mut written = take(&mut input, figure(usage.cache_write));
    let written_1h = take(&mut written, figure(usage.cache_write_1h));
    let cached_audio = take(&mut cached, figure(usage.cached_audio_input).min(figure(usage.audio_input)));
    let cached_image = take(&mut cached, figure(usage.cached_image_input).min(figure(usage.image_input)));
    let audio = take(&mut input, figure(usage.audio_input) - cached_audio);
    let image = take(&mut input, figure(usage.image_input) - cached_image);
    let mut output = figure(usage.output);
    let reasoning = take(&mut output, figure(usage.reasoning));
    let spoken = take(&mut output, figure(usage.audio_output));
    let drawn = take(&mut output, figure(usage.image_output));
    [input, cached, written, written_1h, audio, cached_audio, image, cached_image, output, reasoning, spoken, drawn]
}

impl Price {
    /// The rates in force for a prompt of `input` tokens in this class of service. A long prompt's rates go before the
    /// class's, which are made for prompts of the usual length.
    #[must_use]
    pub fn rates_for(&self, input: u64, tier: Option<ServiceTier>) -> Rates {
        let mut rates = self.rates;
        if let Some(other) = tier.and_then(|tier| self.tiers.get(&tier)) {
            rates.overlay(other);
        }
        if let Some(above) = self.above.iter().rev().find(|above| input > above.over_input_tokens) {
            rates.overlay(&above.rates);
        }
        rates
    }

    /// What a call of so much costs at most, in nano-USD, rounded up: what a reservation takes. Every token is charged as
    /// the dearest kind of text it can turn out to be: read, or written to a cache; answer, or reasoning. What has no rate
    /// costs nothing here.
    #[must_use]
    pub fn estimate(&self, expected: &Expected, tier: Option<ServiceTier>) -> u64 {
        let rates = self.rates_for(expected.input, tier);
        let dearest = |items: &[Item]| items.iter().filter_map(|item| rates[*item]).max().map_or(0, Rate::get);
        let read = match expected.audio_ms {
            0 => dearest(&[Item::Input, Item::CacheWrite, Item::CacheWrite1h]),
            _ => dearest(&[Item::Input, Item::AudioInput]),
        };
        let written = match dearest(&[Item::Output, Item::Reasoning]) {
            // Models that only make images or speech.
            0 => dearest(&[Item::ImageOutput, Item::AudioOutput]),
            rate => rate,
        };
        // An image has a price, or its tokens have.
        let (per_image, drawn) = match dearest(&[Item::PerImage]) {
            0 => (0, dearest(&[Item::Output, Item::ImageOutput])),
            rate => (rate, 0),
        };
        // Who charges for searches alone makes one at least.
        let searches = u64::from(read == 0 && written == 0);
        let parts = [
            (u128::from(expected.input) * OF_FEMTO, read),
            (u128::from(expected.output) * OF_FEMTO, written),
            (u128::from(expected.images) * OF_FEMTO, per_image),
            (u128::from(expected.images) * u128::from(IMAGE_TOKENS) * OF_FEMTO, drawn),
            (u128::from(expected.audio_ms), dearest(&[Item::PerSecond])),
            (u128::from(searches) * OF_FEMTO, dearest(&[Item::PerSearch])),
            (OF_FEMTO, dearest(&[Item::PerRequest])),
        ];
        let all = parts.iter().map(|(units, rate)| units.saturating_mul(u128::from(*rate)));
        u64::try_from(all.fold(0_u128, u128::saturating_add).div_ceil(OF_NANO)).unwrap_or(u64::MAX)
    }

    /// What a call of this usage costs, in nano-USD, rounded half up; `None` when that cannot be known: nothing was
    /// counted, or tokens were that have no rate.
    #[must_use]
    pub fn cost(&self, usage: &Usage, tier: Option<ServiceTier>) -> Option<u64> {
        let total = sum(&self.rates_for(usage.input.unwrap_or(0), tier), usage)?;
        let nano = total.saturating_add(OF_NANO / 2) / OF_NANO;
        Some(u64::try_from(nano).unwrap_or(u64::MAX))
    }
}

/// In 10^-21 USD.
fn sum(rates: &Rates, usage: &Usage) -> Option<u128> {
    let mut total = 0_u128;
    let mut counted = false;
    let mut charge = |units: u128, items: &[Item]| {
        let rate = items.iter().find_map(|item| rates[*item])?;
        total = total.saturating_add(units.saturating_mul(rate.get().into()));
        counted = true;
        Some(())
    };
    for (tokens, items) in parts(usage).into_iter().zip(PARTS) {
        if tokens > 0 {
            charge(u128::from(tokens) * OF_FEMTO, items)?;
        }
    }
    // Searches have a price beside the tokens; images and seconds have one where no tokens are counted.
    let units = [
        (usage.searches, Item::PerSearch, OF_FEMTO),
        (usage.images.filter(|_| usage.output.is_none()), Item::PerImage, OF_FEMTO),
        (usage.audio_input_ms.filter(|_| usage.input.is_none()), Item::PerSecond, 1),
        (Some(1), Item::PerRequest, OF_FEMTO),
    ];
    for (count, item, parts) in units {
        if let Some(count) = count {
            let _no_rate = charge(u128::from(count) * parts, &[item]);
        }
    }
    // Zero tokens cost nothing, which is known only if somebody counted them.
    (counted || usage.input.is_some() || usage.output.is_some()).then_some(total)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::pricing::Above;

    fn price(json: &str) -> Price {
        serde_json::from_str(json).unwrap()
    }

    fn usage(figures: &[(&str, u64)]) -> Usage {
        let mut all = [None; Usage::NAMES.len()];
        for (name, value) in figures {
            all[Usage::NAMES.iter().position(|known| known == name).unwrap()] = Some(*value);
        }
        Usage::from_figures(all)
    }

    const SONNET: &str = r#"{"input":"3","cached_input":"0.3","cache_write":"3.75","cache_write_1h":"6","output":"15",
        "per_search":"0.01","above":[{"over_input_tokens":200000,"input":"6","cached_input":"0.6","output":"22.5"}],
        "tiers":{"batch":{"input":"1.5","output":"7.5"}}}"#;
    const REALTIME: &str = r#"{"input":"4","cached_input":"0.4","audio_input":"32","output":"16","audio_output":"64"}"#;

    #[test]
    fn each_figure_at_its_own_rate() {
        for (name, json, figures, tier, want) in [
            (
                "plain",
                r#"{"input":"0.15","output":"0.6"}"#,
                &[("input", 1000), ("output", 500)][..],
                None,
                Some(450_000),
            ),
            ("a free model", r#"{"input":"0","output":"0"}"#, &[("input", 1000), ("output", 500)], None, Some(0)),
            ("nothing counted", SONNET, &[], None, None),
            ("zero counted", SONNET, &[("input", 0), ("output", 0)], None, Some(0)),
            ("no rate for output", r#"{"input":"1"}"#, &[("input", 5), ("output", 5)], None, None),
            ("cached", SONNET, &[("input", 1000), ("cached_input", 600), ("output", 10)], None, Some(1_530_000)),
            ("written", SONNET, &[("input", 1000), ("cache_write", 600), ("output", 10)], None, Some(3_600_000)),
            (
                "written for an hour",
                SONNET,
                &[("input", 1000), ("cache_write", 600), ("cache_write_1h", 400), ("output", 10)],
                None,
                Some(1_200_000 + 750_000 + 2_400_000 + 150_000),
            ),
            ("searched", SONNET, &[("input", 1000), ("output", 0), ("searches", 2)], None, Some(23_000_000)),
            ("not long", SONNET, &[("input", 200_000), ("output", 0)], None, Some(600_000_000)),
            ("long", SONNET, &[("input", 200_001), ("output", 1)], None, Some(1_200_028_500)),
            ("batch", SONNET, &[("input", 1000), ("output", 10)], Some(ServiceTier::Batch), Some(1_575_000)),
            ("no such class", SONNET, &[("input", 1000), ("output", 10)], Some(ServiceTier::Flex), Some(3_150_000)),
            (
                "long in a class",
                SONNET,
                &[("input", 300_000), ("output", 0)],
                Some(ServiceTier::Batch),
                Some(1_800_000_000),
            ),
            (
                "no rate for the cache",
                r#"{"input":"2","output":"8"}"#,
                &[("input", 100), ("cached_input", 40), ("cache_write", 40), ("output", 10), ("reasoning", 6)],
                None,
                Some(280_000),
            ),
            (
                "reasoning",
                r#"{"input":"2","output":"8","reasoning":"3"}"#,
                &[("input", 0), ("output", 10), ("reasoning", 6)],
                None,
                Some(50_000),
            ),
            (
                "audio",
                REALTIME,
                &[
                    ("input", 100),
                    ("audio_input", 60),
                    ("cached_input", 50),
                    ("cached_audio_input", 30),
                    ("output", 10),
                    ("audio_output", 7),
                ],
                None,
                Some(20 * 4_000 + 50 * 400 + 30 * 32_000 + 3 * 16_000 + 7 * 64_000),
            ),
            (
                "an image model",
                r#"{"input":"5","image_output":"40"}"#,
                &[("input", 10), ("output", 100)],
                None,
                Some(4_050_000),
            ),
            ("images", r#"{"per_image":"0.04"}"#, &[("images", 3)], None, Some(120_000_000)),
            (
                "images with tokens",
                r#"{"input":"5","output":"40","per_image":"0.04"}"#,
                &[("images", 3), ("input", 1), ("output", 1)],
                None,
                Some(45_000),
            ),
            ("seconds", r#"{"per_second":"0.0001"}"#, &[("audio_input_ms", 7_250)], None, Some(725_000)),
            ("images without a rate", SONNET, &[("images", 3)], None, None),
            (
                "a fee",
                r#"{"per_request":"0.005","input":"1","output":"1"}"#,
                &[("input", 1), ("output", 1)],
                None,
                Some(5_002_000),
            ),
            ("a fee alone", r#"{"per_request":"0.005"}"#, &[], None, Some(5_000_000)),
            ("half up", r#"{"input":"0.0005","output":"0"}"#, &[("input", 1)], None, Some(1)),
            ("below half", r#"{"input":"0.000499999","output":"0"}"#, &[("input", 1)], None, Some(0)),
            ("rounded once", r#"{"input":"0.0004","output":"0.0004"}"#, &[("input", 1), ("output", 1)], None, Some(1)),
            (
                "more parts than the whole",
                SONNET,
                &[("input", 10), ("cached_input", 30), ("cache_write", 5)],
                None,
                Some(3_000),
            ),
            ("all there is", r#"{"per_request":"18446"}"#, &[], None, Some(18_446_000_000_000)),
        ] {
            assert_eq!(price(json).cost(&usage(figures), tier), want, "{name}");
        }
    }

    #[test]
    fn an_estimate_is_the_dearest_it_can_be() {
        for (name, json, input, output, tier, want) in [
            ("plain", r#"{"input":"0.15","output":"0.6"}"#, 1000, 500, None, 450_000),
            ("written for an hour", SONNET, 1000, 10, None, 6_150_000),
            ("long", r#"{"input":"1","above":[{"over_input_tokens":9,"input":"2"}]}"#, 10, 0, None, 20_000),
            ("batch", r#"{"input":"2","tiers":{"batch":{"input":"1"}}}"#, 10, 0, Some(ServiceTier::Batch), 10_000),
            ("reasoning", r#"{"input":"2","output":"8","reasoning":"9"}"#, 0, 10, None, 90_000),
            ("speech", r#"{"input":"0.6","audio_output":"12"}"#, 10, 10, None, 126_000),
            ("a fee", r#"{"per_request":"0.005","input":"1"}"#, 1, 1, None, 5_001_000),
            ("rounded up", r#"{"input":"0.000000001"}"#, 1, 0, None, 1),
            ("nothing", SONNET, 0, 0, None, 0),
            ("too much to say", r#"{"input":"18446744073"}"#, u64::MAX, 0, None, u64::MAX),
        ] {
            let expected = Expected { input, output, ..Expected::default() };
            assert_eq!(price(json).estimate(&expected, tier), want, "{name}");
        }
    }

    #[test]
    fn what_is_not_counted_in_tokens_is_thought_of_too() {
        let (image, sound) = (Expected { input: 10, images: 2, ..Expected::default() }, 90_000);
        let sound = Expected { input: 900, audio_ms: sound, ..Expected::default() };
        for (name, json, expected, want) in [
            ("images", r#"{"per_image":"0.04"}"#, image, 80_000_000),
            ("tokens of images", r#"{"input":"5","image_output":"40"}"#, image, 332_850_000),
            ("seconds", r#"{"per_second":"0.0001"}"#, sound, 9_000_000),
            ("tokens of sound", r#"{"input":"2.5","audio_input":"6","output":"10"}"#, sound, 5_400_000),
            ("searches", r#"{"per_search":"0.002"}"#, Expected::default(), 2_000_000),
            ("searches beside tokens", SONNET, Expected::default(), 0),
        ] {
            assert_eq!(price(json).estimate(&expected, None), want, "{name}");
        }
    }

    #[test]
    fn nothing_overflows() {
        let mut price = Price::default();
        for item in Item::ALL {
            price.rates[item] = Some(Rate::new(u64::MAX));
        }
        let most = Usage::from_figures([Some(u64::MAX); Usage::NAMES.len()]);
        assert_eq!(price.cost(&most, None), Some(u64::MAX));
        price.rates = Rates::default();
        price.rates[Item::Input] = Some(Rate::new(1));
        let usage = Usage { input: Some(u64::MAX), ..Usage::default() };
        assert_eq!(price.cost(&usage, None), Some(18_446_744_073_710), "2^64 femto-USD, half up");
    }

    fn rates() -> impl Strategy<Value = Rates> {
        proptest::array::uniform16(proptest::option::weighted(0.7, 0_u64..1 << 50)).prop_map(|all| {
            let mut rates = Rates::default();
            for (item, rate) in Item::ALL.into_iter().zip(all) {
                rates[item] = rate.map(Rate::new);
            }
            // A price without these could not price much.
            rates[Item::Input].get_or_insert(Rate::new(7));
            rates[Item::Output].get_or_insert(Rate::new(11));
            rates
        })
    }

    /// A usage whose parts do not overlap by more than they may.
    fn whole_usage(most: u64) -> impl Strategy<Value = Usage> {
        proptest::array::uniform16(0..most).prop_map(|n| {
            let [text, cached, write, write_1h, audio, cached_audio, image, cached_image, rest @ ..] = n;
            let [output, reasoning, spoken, drawn, searches, images, ms, _] = rest;
            let (cached_input, cache_write) = (cached + cached_audio + cached_image, write + write_1h);
            Usage {
                input: Some(text + cached_input + cache_write + audio + image),
                cached_input: Some(cached_input),
                cache_write: Some(cache_write),
                cache_write_1h: Some(write_1h),
                audio_input: Some(audio + cached_audio),
                cached_audio_input: Some(cached_audio),
                image_input: Some(image + cached_image),
                cached_image_input: Some(cached_image),
                output: Some(output + reasoning + spoken + drawn),
                reasoning: Some(reasoning),
                audio_output: Some(spoken),
                image_output: Some(drawn),
                total: None,
                // Few, or their cost alone would be more than can be said.
                searches: Some(searches % 1000),
                images: Some(images % 1000),
                audio_input_ms: Some(ms % 1_000_000),
            }
        })
    }

    proptest! {
        /// Parts never overlap and never leave a token out, whatever a provider claims.
        #[test]
        fn parts_sum_up(figures in proptest::array::uniform16(proptest::option::of(any::<u64>()))) {
            let usage = Usage::from_figures(figures);
            let parts = parts(&usage);
            let sum = |range: std::ops::Range<usize>| parts[range].iter().map(|n| u128::from(*n)).sum::<u128>();
            prop_assert_eq!(sum(0..8), u128::from(usage.input.unwrap_or(0)));
            prop_assert_eq!(sum(8..12), u128::from(usage.output.unwrap_or(0)));
        }

        /// Two calls cost what their sum costs, but for a fee on each and for rounding.
        #[test]
        fn costs_add_up(rates in rates(), a in whole_usage(1 << 24), b in whole_usage(1 << 24)) {
            let mut rates = rates;
            rates[Item::PerRequest] = None;
            let mut both = a;
            both.add(&b);
            prop_assert_eq!(sum(&rates, &a).unwrap() + sum(&rates, &b).unwrap(), sum(&rates, &both).unwrap());
            let price = Price { rates, ..Price::default() };
            let [a, b, both] = [a, b, both].map(|usage| u128::from(price.cost(&usage, None).unwrap()));
            prop_assert!((a + b).abs_diff(both) <= 1, "{a} + {b}, {both}");
        }

        /// More tokens of any kind never cost less.
        #[test]
        fn costs_grow(rates in rates(), at in whole_usage(1 << 40), more in whole_usage(1 << 20)) {
            let price = Price { rates, ..Price::default() };
            let mut grown = at;
            grown.add(&more);
            prop_assert!(price.cost(&grown, None) >= price.cost(&at, None));
        }

        /// A call of text that takes no more tokens than were reserved costs no more than was.
        #[test]
        fn estimates_are_enough(
            input in 0_u64..1 << 40, output in 0_u64..1 << 40,
            parts in proptest::array::uniform4(0_u64..1 << 40), rates in proptest::array::uniform6(0_u64..1 << 50),
            fee in any::<bool>(), over in 0_u64..1 << 40,
        ) {
            let items = [Item::CachedInput, Item::CacheWrite, Item::CacheWrite1h, Item::Reasoning];
            let mut price = Price::default();
            for (item, rate) in [Item::Input, Item::Output].iter().chain(&items).zip(rates) {
                price.rates[*item] = Some(Rate::new(rate));
            }
            // A read from the cache is never dearer than any other.
            price.rates[Item::CachedInput] = price.rates[Item::CachedInput].min(price.rates[Item::Input]);
            price.rates[Item::PerRequest] = fee.then(|| Rate::new(1 << 40));
            let mut longer = price.rates;
            longer[Item::Input] = longer[Item::Input].map(|rate| Rate::new(rate.get() * 2));
            price.above.push(Above { over_input_tokens: over, rates: longer });
            let [cached_input, cache_write, cache_write_1h, reasoning] = parts.map(Some);
            let usage = Usage {
                input: Some(input),
                output: Some(output),
                cached_input,
                cache_write,
                cache_write_1h,
                reasoning,
                ..Usage::default()
            };
            let expected = Expected { input, output, ..Expected::default() };
            prop_assert!(price.cost(&usage, None).unwrap() <= price.estimate(&expected, None));
        }

        /// No figures and no rates make it panic, and a cost there is when all rates are.
        #[test]
        fn extremes(
            all in proptest::array::uniform16(prop_oneof![Just(0), Just(u64::MAX), any::<u64>()]),
            figures in proptest::array::uniform16(proptest::option::of(prop_oneof![Just(0), Just(u64::MAX), any::<u64>()])),
            over in any::<u64>(),
        ) {
            let mut rates = Rates::default();
            for (item, rate) in Item::ALL.into_iter().zip(all) {
                rates[item] = Some(Rate::new(rate));
            }
            let above = vec![Above { over_input_tokens: over, rates }];
            let price = Price { rates, above, tiers: [(ServiceTier::Flex, rates)].into(), same_as: None };
            prop_assert!(price.cost(&Usage::from_figures(figures), Some(ServiceTier::Flex)).is_some());
        }
    }
}
