//! Which fields an encoded value has.
//!
//! bincode writes fields without their names, so a field that a type got later is there or not as the value's format says. Such
//! a field is marked `#[serde(with = "format::since_2")]`, and its default is what older values mean. A value is written in the
//! oldest format that can hold it: as long as nobody uses what is new, nodes of the release before understand everything.
//!
//! `transport::codec` is the one that [reads](reading) and [writes](writing) in a format. Whatever else serde is used for sees
//! every field.

use std::{cell::Cell, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// How encoded fields are laid out. Later ones have all that earlier ones have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Format {
    /// The first one, before [`Cluster::heartbeat_period`](crate::object::Cluster::heartbeat_period) came, which for once was
    /// added without a new number. It is read and never written.
    First,
    /// With that field.
    One,
    /// With [`TaskSpec::log_driver`](crate::spec::TaskSpec::log_driver).
    Two,
}

impl Format {
    pub const NEWEST: Self = Self::Two;
}

thread_local! {
    /// The format of the value that is being read or written on this thread.
    static CURRENT: Cell<Format> = const { Cell::new(Format::NEWEST) };
    /// What was found in it that depends on its format.
    static FOUND: Cell<bool> = const { Cell::new(false) };
}

/// What `work` gives, which writes a value in `format`; and whether that can hold all of it.
pub fn writing<T>(format: Format, work: impl FnOnce() -> T) -> (T, bool) {
    let (result, lost) = within(format, work);
    (result, !lost)
}

/// What `work` gives, which reads a value in `format`; and whether it came to a field that the format before lacks under the
/// same number.
pub fn reading<T>(format: Format, work: impl FnOnce() -> T) -> (T, bool) {
    within(format, work)
}

/// Values within values have formats of their own: the one around goes on afterwards.
fn within<T>(format: Format, work: impl FnOnce() -> T) -> (T, bool) {
    struct Restore(Format, bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            CURRENT.set(self.0);
            FOUND.set(self.1);
        }
    }
    let _restore = Restore(CURRENT.replace(format), FOUND.replace(false));
    let result = work();
    (result, FOUND.get())
}

/// A field that came with [`Format::Two`].
pub(crate) mod since_2 {
    use super::{CURRENT, Deserialize, Deserializer, FOUND, Format, Serialize, Serializer};

    pub(crate) fn serialize<T, S>(value: &T, serializer: S) -> Result<S::Ok, S::Error>
    where
        T: Serialize + Default + PartialEq,
        S: Serializer,
    {
        if CURRENT.get() >= Format::Two {
            return value.serialize(serializer);
        }
        if *value != T::default() {
            FOUND.set(true);
        }
        // No bytes.
        serializer.serialize_unit()
    }

    pub(crate) fn deserialize<'de, T, D>(deserializer: D) -> Result<T, D::Error>
    where
        T: Deserialize<'de> + Default,
        D: Deserializer<'de>,
    {
        if CURRENT.get() >= Format::Two {
            T::deserialize(deserializer)
        } else {
            Ok(T::default())
        }
    }
}

/// The heartbeat period, which the first format lacks.
pub(crate) mod heartbeat_period {
    use super::{
        CURRENT, Deserialize, Deserializer, Duration, FOUND, Format, Serialize, Serializer,
    };
    use crate::object::Cluster;

    pub(crate) fn serialize<S: Serializer>(
        period: &Duration,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        period.serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Duration, D::Error> {
        if CURRENT.get() == Format::First {
            return Ok(Cluster::HEARTBEAT_PERIOD);
        }
        FOUND.set(true);
        Duration::deserialize(deserializer)
    }
}
