//! Which slots a replicated service fills.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use shoal_types::{Desired, NodeId, Slot, object::TaskPlace};

use super::{Choice, ServiceView, place::Place};

/// Keeps `replicas` filled slots, and fills the lowest free numbers when there are fewer.
pub(super) fn choose<'a>(
    view: &ServiceView<'_>,
    places: &[Place<'a>],
    replicas: u64,
) -> Choice<'a> {
    let (mut filled, empty): (Vec<_>, Vec<_>) = places
        .iter()
        .cloned()
        .partition(|place| place.wanted().next().is_some() || place.finished(view).is_some());
    let wanted = usize::try_from(replicas).unwrap_or(usize::MAX);
    let removed = if filled.len() > wanted {
        sort_for_removal(view, &mut filled);
        filled.split_off(wanted)
    } else {
        Vec::new()
    };
    filled.sort_by(|a, b| a.at.cmp(&b.at));

    let taken: BTreeSet<&TaskPlace> = filled.iter().map(|place| &place.at).collect();
    let missing: Vec<TaskPlace> = (1..)
        .map(|slot| TaskPlace::Slot(Slot(slot)))
        .filter(|place| !taken.contains(place))
        .take((wanted - filled.len()).min(view.room))
        .collect();
    // The history of a slot that is filled again stays; that of any other empty slot goes.
    let refilled: BTreeSet<&TaskPlace> = missing.iter().collect();
    let forgotten: Vec<Place<'_>> = empty
        .into_iter()
        .filter(|place| !refilled.contains(&place.at))
        .collect();
    Choice {
        surplus: removed
            .into_iter()
            .chain(forgotten)
            .map(|place| (place, Desired::Remove))
            .collect(),
        missing,
        kept: filled,
    }
}

/// Puts what is to go first last: slots without a node or with several tasks, then the one more copy
/// on a node than elsewhere; among equals one that does not run, then the highest number. What remains
/// is balanced.
fn sort_for_removal(view: &ServiceView<'_>, places: &mut Vec<Place<'_>>) {
    places.sort_by_key(|place| (Reverse(place.is_running(view)), place.at.clone()));
    let mut copies: BTreeMap<NodeId, u32> = BTreeMap::new();
    let mut ordered: Vec<(u32, Place<'_>)> = std::mem::take(places)
        .into_iter()
        .map(|place| {
            let wanted: Vec<_> = place.wanted().collect();
            let node = match wanted.as_slice() {
                [only] => only.node,
                _several => None,
            };
            let copy = match node {
                Some(node) => {
                    let count = copies.entry(node).or_default();
                    *count += 1;
                    *count
                }
                None => u32::MAX,
            };
            (copy, place)
        })
        .collect();
    ordered.sort_by_key(|(copy, _)| *copy);
    places.extend(ordered.into_iter().map(|(_, place)| place));
}
