//! Events as clients ask for them: of the swarm's objects, read off its commits, and of the node's containers, images
//! and volumes (moby `daemon/cluster/noderunner.go`, `daemon/events.go`).

use axum::{extract::State, response::Response};
use futures_util::{StreamExt, future, stream};
use shoal_manager::ObjectChange;
use shoal_types::{
    Timestamp,
    object::{Node, Service},
    spec::ServiceMode,
};
use tokio::time::{Duration, sleep};
use tokio_stream::wrappers::BroadcastStream;

use super::{Engine, error::ApiResult, filters::Filters, query::Query, stream::json_lines};
use crate::{
    engine::{Change, LocalEvent},
    wire::{Actor, Event, Map},
};

const FILTERS: &[&str] = &[
    "type",
    "event",
    "container",
    "image",
    "volume",
    "network",
    "daemon",
    "service",
    "node",
    "secret",
    "config",
    "label",
    "scope",
    "plugin",
    "builder",
];

/// The kept ones since `since`, and all that follow until `until`; an end that has passed leaves the kept ones.
pub(crate) async fn events(State(engine): State<Engine>, query: Query) -> ApiResult<Response> {
    let filters = query.filters(FILTERS)?;
    let since = query.time("since")?;
    let end = query.time("until")?;
    engine.journal.catch_up().await;
    let (past, live) = engine.journal.read(since);
    // What a slow reader missed is gone for good, as in Docker.
    let live = BroadcastStream::new(live).filter_map(|event| future::ready(event.ok()));
    // Nothing may happen for hours, and the client is told at once that it is being served.
    let events = stream::iter(past)
        .chain(live.chain(stream::pending()).take_until(deadline(end)))
        .filter(move |event| future::ready(in_time(event, end) && wanted(&filters, event)));
    Ok(json_lines(events))
}

fn in_time(event: &Event, end: Option<Timestamp>) -> bool {
    end.is_none_or(|end| event.time_nano <= end.0)
}

async fn deadline(end: Option<Timestamp>) {
    let Some(end) = end else {
        return future::pending().await;
    };
    let now = jiff::Timestamp::now().as_nanosecond();
    let left = i128::from(end.0) - now;
    if let Ok(nanos) = u64::try_from(left) {
        sleep(Duration::from_nanos(nanos)).await;
    }
}

fn wanted(filters: &Filters, event: &Event) -> bool {
    let actor = &event.actor;
    let of_kind = |kind: &str| {
        filters.any(kind, |wanted| {
            event.kind == kind
                && (actor.id.starts_with(wanted)
                    || actor
                        .attributes
                        .get("name")
                        .is_some_and(|name| name == wanted))
        })
    };
    // `exec_create: cmd` is asked for as `exec_create`.
    let action = event.action.split(':').next().unwrap_or_default();
    filters.exact("type", &event.kind)
        && filters.any("event", |wanted| wanted == action || wanted == event.action)
        && filters.exact("scope", &event.scope)
        && filters.labels("label", &actor.attributes)
        && [
            "container",
            "volume",
            "network",
            "daemon",
            "service",
            "node",
            "secret",
            "config",
            "plugin",
            "builder",
        ]
        .iter()
        .all(|kind| of_kind(kind))
        && filters.any("image", |wanted| {
            let image = actor
                .attributes
                .get("image")
                .or_else(|| actor.attributes.get("name"));
            actor.id.starts_with(wanted) || image.is_some_and(|image| image.starts_with(wanted))
        })
}

pub(super) fn local_event(event: LocalEvent) -> Event {
    let (status, id) = (event.action.clone(), event.id.clone());
    let legacy = matches!(event.kind, "container" | "image");
    let from = event
        .attributes
        .get("image")
        .cloned()
        .filter(|_| event.kind == "container");
    Event {
        status: if legacy { status } else { String::new() },
        id: if legacy { id } else { String::new() },
        from: from.unwrap_or_default(),
        ..message(
            event.kind,
            &event.action,
            event.id,
            event.attributes,
            "local",
            event.at,
        )
    }
}

fn message(
    kind: &str,
    action: &str,
    id: String,
    attributes: Map,
    scope: &str,
    at: Timestamp,
) -> Event {
    Event {
        kind: kind.to_owned(),
        action: action.to_owned(),
        actor: Actor { id, attributes },
        scope: scope.to_owned(),
        time: at.0.div_euclid(1_000_000_000),
        time_nano: at.0,
        ..Event::default()
    }
}

/// The events of one commit. Tasks and the cluster itself have none, as in Docker.
pub(super) fn of_change(change: &Change) -> Vec<Event> {
    change
        .objects
        .iter()
        .filter_map(|object| of_object(object, change.at))
        .collect()
}

fn of_object(object: &ObjectChange, at: Timestamp) -> Option<Event> {
    let swarm = |kind: &str, action: &str, id: String, attributes: Map| {
        Some(message(kind, action, id, attributes, "swarm", at))
    };
    let named = |name: &str| Map::from([("name".to_owned(), name.to_owned())]);
    match object {
        ObjectChange::Node { before, after } => {
            let node = after.as_ref().or(before.as_ref())?;
            let action = action(before.is_some(), after.is_some());
            let changed = node_changes(before.as_deref(), after.as_deref());
            // Heartbeats and descriptions are no events.
            if action == "update"
                && changed.is_empty()
                && same_node_spec(before.as_deref(), after.as_deref())
            {
                return None;
            }
            let mut attributes = named(&node.description.hostname);
            attributes.extend(changed);
            swarm("node", action, node.id.to_string(), attributes)
        }
        ObjectChange::Service { before, after } => {
            let service = after.as_ref().or(before.as_ref())?;
            let mut attributes = named(&service.spec.name);
            attributes.extend(service_changes(before.as_deref(), after.as_deref()));
            let action = action(before.is_some(), after.is_some());
            swarm("service", action, service.id.to_string(), attributes)
        }
        ObjectChange::Network { before, after } => {
            let network = after.as_ref().or(before.as_ref())?;
            let mut attributes = named(&network.spec.name);
            attributes.insert("type".to_owned(), network.spec.driver.clone());
            let action = action(before.is_some(), after.is_some());
            swarm("network", action, network.id.to_string(), attributes)
        }
        ObjectChange::Secret { before, after } => {
            let secret = after.as_ref().or(before.as_ref())?;
            let action = action(before.is_some(), after.is_some());
            swarm("secret", action, secret.id.to_string(), named(&secret.name))
        }
        ObjectChange::Config { before, after } => {
            let config = after.as_ref().or(before.as_ref())?;
            let action = action(before.is_some(), after.is_some());
            swarm("config", action, config.id.to_string(), named(&config.name))
        }
        ObjectChange::Cluster { .. } | ObjectChange::Task { .. } => None,
    }
}

fn action(before: bool, after: bool) -> &'static str {
    match (before, after) {
        (false, _) => "create",
        (true, true) => "update",
        (true, false) => "remove",
    }
}

fn same_node_spec(before: Option<&Node>, after: Option<&Node>) -> bool {
    before.map(|n| &n.spec) == after.map(|n| &n.spec)
}

/// `x.new` and `x.old` of what differs.
fn pair(out: &mut Map, name: &str, old: &str, new: &str) {
    if old != new {
        out.insert(format!("{name}.new"), new.to_owned());
        out.insert(format!("{name}.old"), old.to_owned());
    }
}

fn node_changes(before: Option<&Node>, after: Option<&Node>) -> Map {
    let mut out = Map::new();
    if let (Some(old), Some(new)) = (before, after) {
        let availability = |n: &Node| n.spec.availability.as_str();
        pair(
            &mut out,
            "availability",
            availability(old),
            availability(new),
        );
        pair(
            &mut out,
            "role",
            old.spec.role.as_str(),
            new.spec.role.as_str(),
        );
        pair(
            &mut out,
            "state",
            old.status.state.as_str(),
            new.status.state.as_str(),
        );
    }
    out
}

fn service_changes(before: Option<&Service>, after: Option<&Service>) -> Map {
    let mut out = Map::new();
    if let (Some(old), Some(new)) = (before, after) {
        let image = |s: &Service| s.spec.task.container.image.clone();
        pair(&mut out, "image", &image(old), &image(new));
        let replicas = |s: &Service| match s.spec.mode {
            ServiceMode::Replicated { replicas } => replicas.to_string(),
            _ => String::new(),
        };
        pair(&mut out, "replicas", &replicas(old), &replicas(new));
        let update = |s: &Service| s.update.as_ref().map_or("", |u| u.state.as_str());
        if !update(new).is_empty() {
            pair(&mut out, "updatestate", update(old), update(new));
        }
    }
    out
}
