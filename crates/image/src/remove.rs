//! Removing images, by Docker's rules (moby `daemon/images/image_delete.go`).
//!
//! A name is removed first; the image goes with its last name, and untagged parents that only
//! it kept go after it. Docker distinguishes running containers from stopped ones; here any
//! container keeps its image's layers, because its root filesystem lies on them.

use std::collections::BTreeMap;

use crate::{
    catalog::{Catalog, Change, LookupError},
    digest::ImageId,
    index::IndexError,
    reference::{Reference, familiar_key},
    store::ImageStore,
};

/// What a removal did, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removed {
    /// This name is gone.
    Untagged(String),
    /// This image is gone, and its content as far as nothing else needs it.
    Deleted(ImageId),
}

/// How far a removal goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Removal {
    /// Names that containers use, and all names of an image at once, go as well.
    pub force: bool,
    /// Untagged parents that only the image kept stay.
    pub keep_parents: bool,
}

/// Nothing was removed. Messages are Docker's; all but the lookup are conflicts (409).
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    #[error(transparent)]
    Lookup(#[from] LookupError),
    #[error(
        "conflict: unable to remove repository reference {reference:?} (must force) - container {container} is using its referenced image {image}"
    )]
    ReferenceInUse {
        reference: String,
        container: String,
        image: String,
    },
    #[error(
        "conflict: unable to delete {image} (cannot be forced) - image is being used by container {container}"
    )]
    InUse { image: String, container: String },
    #[error(
        "conflict: unable to delete {image} (must be forced) - image is referenced in multiple repositories"
    )]
    SeveralReferences { image: String },
    #[error(
        "conflict: unable to delete {image} (cannot be forced) - image has dependent child images"
    )]
    HasChildren { image: String },
    #[error("remove image")]
    Index(#[from] IndexError),
}

impl ImageStore {
    /// Removes a name or an image. `used_by` gives the ids of the containers of an image; it is
    /// asked before anything changes, about the image and its parents.
    pub async fn remove(
        &self,
        name_or_id: &str,
        how: Removal,
        used_by: &(dyn Fn(&ImageId) -> Vec<String> + Sync),
    ) -> Result<Vec<Removed>, RemoveError> {
        let users = {
            let catalog = self.inner.catalog();
            let mut users = BTreeMap::new();
            let mut next = Some(catalog.find(name_or_id)?.clone());
            while let Some(id) = next {
                next = catalog
                    .stored(&id)
                    .and_then(|image| image.record.parent.clone());
                if users.contains_key(&id) {
                    break;
                }
                users.insert(id.clone(), used_by(&id));
            }
            users
        };
        let name = name_or_id.to_owned();
        self.blocking(move |inner| {
            let removed = inner.update(|catalog| decide(catalog, &name, how, &users))?;
            inner.sweep();
            Ok(removed)
        })
        .await
    }
}

type Users = BTreeMap<ImageId, Vec<String>>;

/// Works on a copy of the catalog, so that each step sees what the ones before it left.
struct Plan<'a> {
    catalog: Catalog,
    users: &'a Users,
    keep_parents: bool,
    changes: Vec<Change>,
    removed: Vec<Removed>,
}

fn decide(
    catalog: &Catalog,
    name: &str,
    Removal {
        force,
        keep_parents,
    }: Removal,
    users: &Users,
) -> Result<(Vec<Change>, Vec<Removed>), RemoveError> {
    let id = catalog.find(name)?.clone();
    let mut plan = Plan {
        catalog: catalog.clone(),
        users,
        keep_parents,
        changes: Vec::new(),
        removed: Vec::new(),
    };
    let is_single = plan.has_single_reference(&id);
    let user = plan.user(&id);
    let key = named_key(catalog, name, &id);
    if let Some(key) = key {
        if !force
            && is_single
            && let Some(container) = user
        {
            return Err(RemoveError::ReferenceInUse {
                reference: familiar_key(&key),
                container,
                image: id.short().to_owned(),
            });
        }
        plan.untag(&key);
        plan.untag_orphaned_digests(&id, &key);
        if plan.has_names(&id) {
            return Ok((plan.changes, plan.removed));
        }
        // The name is gone in any case; the image goes if nothing holds it.
        plan.delete(&id);
        return Ok((plan.changes, plan.removed));
    }
    let image = || id.short().to_owned();
    if let Some(container) = user {
        return Err(RemoveError::InUse {
            image: image(),
            container,
        });
    }
    if plan.catalog.children_of(&id).next().is_some() {
        return Err(RemoveError::HasChildren { image: image() });
    }
    if !is_single && !force {
        return Err(RemoveError::SeveralReferences { image: image() });
    }
    plan.delete(&id);
    Ok((plan.changes, plan.removed))
}

/// The key that `name` names, unless it is an id.
fn named_key(catalog: &Catalog, name: &str, id: &ImageId) -> Option<String> {
    let reference = Reference::parse(name).ok()?.with_default_tag();
    let key = match reference.digest() {
        Some(digest) => reference.digest_key(digest),
        None => reference.tag_key()?,
    };
    let named = catalog.tag(&key).or_else(|| catalog.digest(&key));
    (named == Some(id)).then_some(key)
}

impl Plan<'_> {
    fn step(&mut self, change: Change) {
        self.catalog.apply(vec![change.clone()]);
        self.changes.push(change);
    }

    fn user(&self, id: &ImageId) -> Option<String> {
        self.users
            .get(id)
            .and_then(|containers| containers.first())
            .map(|container| {
                // Container ids are 64 characters; Docker shows twelve.
                container.chars().take(12).collect()
            })
    }

    fn has_names(&self, id: &ImageId) -> bool {
        self.catalog.tags_of(id).next().is_some() || self.catalog.digests_of(id).next().is_some()
    }

    /// One tag and any number of digests of its repository, or one name of any kind.
    fn has_single_reference(&self, id: &ImageId) -> bool {
        let tags: Vec<&str> = self.catalog.tags_of(id).collect();
        let mut repositories: Vec<String> = self
            .catalog
            .digests_of(id)
            .chain(tags.iter().copied())
            .map(repository)
            .collect();
        repositories.sort();
        repositories.dedup();
        tags.len() <= 1 && repositories.len() <= 1
    }

    fn untag(&mut self, key: &str) {
        let change = if key.contains('@') {
            Change::DropDigest(key.to_owned())
        } else {
            Change::DropTag(key.to_owned())
        };
        self.step(change);
        self.removed.push(Removed::Untagged(familiar_key(key)));
    }

    /// A digest of a repository that has no tag left goes with the last tag.
    fn untag_orphaned_digests(&mut self, id: &ImageId, key: &str) {
        let gone = repository(key);
        if key.contains('@') || self.catalog.tags_of(id).any(|tag| repository(tag) == gone) {
            return;
        }
        let digests: Vec<String> = self
            .catalog
            .digests_of(id)
            .filter(|digest| repository(digest) == gone)
            .map(str::to_owned)
            .collect();
        for digest in &digests {
            self.untag(digest);
        }
    }

    /// Deletes `id` unless it is used, then parents that nothing else keeps.
    fn delete(&mut self, id: &ImageId) {
        if self.user(id).is_some() || self.catalog.children_of(id).next().is_some() {
            return;
        }
        let names: Vec<String> = self
            .catalog
            .tags_of(id)
            .chain(self.catalog.digests_of(id))
            .map(str::to_owned)
            .collect();
        for name in &names {
            self.untag(name);
        }
        let parent = self
            .catalog
            .stored(id)
            .and_then(|image| image.record.parent.clone());
        self.step(Change::DropImage(id.clone()));
        self.removed.push(Removed::Deleted(id.clone()));
        if let Some(parent) = parent.filter(|_| !self.keep_parents)
            && self.catalog.stored(&parent).is_some()
            && !self.has_names(&parent)
        {
            self.delete(&parent);
        }
    }
}

fn repository(key: &str) -> String {
    Reference::parse(key).map_or_else(|_| key.to_owned(), |reference| reference.name())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{catalog::ImageRecord, digest::Digest, document::ImageDocument};

    const FORCE: Removal = Removal {
        force: true,
        keep_parents: false,
    };

    fn put(catalog: &mut Catalog, marker: &str, parent: Option<&ImageId>) -> ImageId {
        let raw = format!(
            r#"{{"architecture":"amd64","os":"linux","author":"{marker}","rootfs":{{"type":"layers","diff_ids":[]}}}}"#
        );
        let document = ImageDocument::parse(raw.as_bytes()).unwrap();
        let id = document.id();
        let record = ImageRecord {
            id: id.clone(),
            manifests: Vec::new(),
            parent: parent.cloned(),
            tagged_at: 0,
        };
        catalog.apply(vec![Change::PutImage(record, document)]);
        id
    }

    fn tag(catalog: &mut Catalog, key: &str, id: &ImageId) {
        catalog.apply(vec![Change::SetTag(key.to_owned(), id.clone())]);
    }

    fn untagged(name: &str) -> Removed {
        Removed::Untagged(name.to_owned())
    }

    #[test]
    fn the_last_name_takes_the_image_and_its_digests_along() {
        let mut catalog = Catalog::default();
        let id = put(&mut catalog, "a", None);
        tag(&mut catalog, "docker.io/library/a:1", &id);
        tag(&mut catalog, "docker.io/library/a:2", &id);
        let digest = format!("docker.io/library/a@{}", Digest::of(b"m"));
        catalog.apply(vec![Change::SetDigest(digest.clone(), id.clone())]);
        let (changes, removed) =
            decide(&catalog, "a:1", Removal::default(), &Users::new()).unwrap();
        assert_eq!(removed, [untagged("a:1")]);
        catalog.apply(changes);
        let (changes, removed) =
            decide(&catalog, "a:2", Removal::default(), &Users::new()).unwrap();
        let familiar = format!("a@{}", Digest::of(b"m"));
        assert_eq!(
            removed,
            [untagged("a:2"), untagged(&familiar), Removed::Deleted(id)]
        );
        catalog.apply(changes);
        assert_eq!(catalog.stored_images().count(), 0);
    }

    #[test]
    fn an_id_with_several_names_needs_force() {
        let mut catalog = Catalog::default();
        let id = put(&mut catalog, "a", None);
        tag(&mut catalog, "docker.io/library/a:1", &id);
        tag(&mut catalog, "quay.io/b:1", &id);
        let error = decide(&catalog, id.short(), Removal::default(), &Users::new()).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "conflict: unable to delete {} (must be forced) - image is referenced in multiple repositories",
                id.short()
            )
        );
        let (_, removed) = decide(&catalog, id.short(), FORCE, &Users::new()).unwrap();
        assert_eq!(
            removed,
            [
                untagged("a:1"),
                untagged("quay.io/b:1"),
                Removed::Deleted(id)
            ]
        );
    }

    #[test]
    fn a_used_image_stays_and_loses_at_most_its_name() {
        let mut catalog = Catalog::default();
        let id = put(&mut catalog, "a", None);
        tag(&mut catalog, "docker.io/library/a:1", &id);
        let users = Users::from([(id.clone(), vec!["0123456789abcdef".to_owned()])]);
        let error = decide(&catalog, "a:1", Removal::default(), &users)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("\"a:1\" (must force) - container 0123456789ab is using"),
            "{error}"
        );
        assert!(matches!(
            decide(&catalog, id.as_str(), FORCE, &users),
            Err(RemoveError::InUse { .. })
        ));
        let (changes, removed) = decide(&catalog, "a:1", FORCE, &users).unwrap();
        assert_eq!(removed, [untagged("a:1")]);
        catalog.apply(changes);
        assert!(catalog.stored(&id).is_some());
    }

    #[test]
    fn untagged_parents_go_with_their_last_child() {
        let mut catalog = Catalog::default();
        let base = put(&mut catalog, "base", None);
        let middle = put(&mut catalog, "middle", Some(&base));
        let top = put(&mut catalog, "top", Some(&middle));
        tag(&mut catalog, "docker.io/library/base:1", &base);
        tag(&mut catalog, "docker.io/library/top:1", &top);
        let error = decide(&catalog, middle.as_str(), FORCE, &Users::new()).unwrap_err();
        assert!(matches!(error, RemoveError::HasChildren { .. }));
        let (_, removed) = decide(&catalog, "top:1", Removal::default(), &Users::new()).unwrap();
        assert_eq!(
            removed,
            [
                untagged("top:1"),
                Removed::Deleted(top.clone()),
                Removed::Deleted(middle)
            ]
        );
        let alone = Removal {
            keep_parents: true,
            ..Removal::default()
        };
        let (_, removed) = decide(&catalog, "top:1", alone, &Users::new()).unwrap();
        assert_eq!(removed, [untagged("top:1"), Removed::Deleted(top)]);
    }
}
