//! Events (moby `api/types/events`).

use super::{Map, object};

object! {
    Event {
        /// Before API 1.52, for containers and images only; the same as `action`.
        status: String = "status" omitempty;
        id: String = "id" omitempty;
        /// The image.
        from: String = "from" omitempty;
        /// `container`, `image`, `network`, `node`, `service`, `secret`, `config`…
        kind: String = "Type";
        /// `create`, `update`, `remove`, `start`, `die`…
        action: String = "Action";
        actor: Actor = "Actor";
        /// `local` or `swarm`.
        scope: String = "scope" omitempty;
        /// Seconds since the epoch.
        time: i64 = "time" omitempty;
        /// Nanoseconds since the epoch.
        time_nano: i64 = "timeNano" omitempty;
    }

    /// What it happened to.
    Actor {
        id: String = "ID";
        attributes: Map = "Attributes";
    }
}
