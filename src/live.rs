//! [`Live`]: a value that is replaced as a whole while others read it.
//!
//! Owns the replacing; leaves when and with what to `app`, which reloads the configuration.

use std::sync::Arc;

use arc_swap::ArcSwap;

/// A value in force. Cloning shares it.
#[derive(Debug, Default)]
pub struct Live<T>(Arc<ArcSwap<T>>);

impl<T> Clone for Live<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Live<T> {
    /// The first one.
    #[must_use]
    pub fn new(value: T) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(value)))
    }

    /// The one in force now; it stays as it is however long it is held.
    #[must_use]
    pub fn get(&self) -> Arc<T> {
        self.0.load_full()
    }

    /// Puts another in its place.
    pub fn set(&self, value: T) {
        self.0.store(Arc::new(value));
    }
}
