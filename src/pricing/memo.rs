//! A [`Memo`]: what was looked up of late, for the request path.
//!
//! Owns a fixed number of places, so that no names a client makes up take memory. A place is taken by whoever comes last;
//! reading one takes no lock and allocates nothing.

use std::fmt;
use std::hash::BuildHasher;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rustc_hash::FxBuildHasher;

const PLACES: usize = 256;

/// Whose price is wanted: provider, model reported, model requested.
pub(super) type Key<'a> = (&'a str, Option<&'a str>, Option<&'a str>);

/// What was found, by [`Key`].
pub(super) struct Memo<T> {
    places: Box<[ArcSwapOption<Known<T>>]>,
}

struct Known<T> {
    provider: Box<str>,
    reported: Option<Box<str>>,
    requested: Option<Box<str>>,
    found: Option<Arc<T>>,
}

impl<T> fmt::Debug for Memo<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memo").finish_non_exhaustive()
    }
}

impl<T> Default for Memo<T> {
    fn default() -> Self {
        Self { places: (0..PLACES).map(|_| ArcSwapOption::empty()).collect() }
    }
}

impl<T> Memo<T> {
    /// What is known of `key`, else what `find` finds.
    pub(super) fn get(&self, key: Key<'_>, find: impl FnOnce() -> Option<T>) -> Option<Arc<T>> {
        // Names made up to meet in one place do no more than any others do: they push each other out.
        let place = &self.places[FxBuildHasher.hash_one(key) as usize % PLACES];
        let known = place.load();
        if let Some(known) = &*known
            && known.is(key)
        {
            return known.found.clone();
        }
        let found = find().map(Arc::new);
        let (provider, reported, requested) = key;
        place.store(Some(Arc::new(Known {
            provider: provider.into(),
            reported: reported.map(Into::into),
            requested: requested.map(Into::into),
            found: found.clone(),
        })));
        found
    }
}

impl<T> Known<T> {
    fn is(&self, (provider, reported, requested): Key<'_>) -> bool {
        *self.provider == *provider && self.reported.as_deref() == reported && self.requested.as_deref() == requested
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_once_and_forgets_rather_than_grows() {
        let memo = Memo::default();
        let key = ("p", Some("m"), None);
        assert_eq!(memo.get(key, || Some(1)).as_deref(), Some(&1));
        assert_eq!(memo.get(key, || unreachable!("known")).as_deref(), Some(&1));
        assert_eq!(memo.get(("p", None, Some("m")), || None::<i32>), None);
        assert_eq!(memo.get(("p", None, Some("m")), || unreachable!("known to be unknown")), None);
        for n in 0..10 * PLACES {
            let name = n.to_string();
            assert_eq!(memo.get(("p", Some(&name), Some("x")), || Some(n as i32)).as_deref(), Some(&(n as i32)));
        }
    }
}
