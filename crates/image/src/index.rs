//! The catalog on disk: one redb file, one transaction an operation.
//!
//! Every value starts with a format byte, then JSON. Configurations are not here: they are blobs.

use std::path::Path;

use redb::{
    Database, ReadableDatabase as _, ReadableTable as _, TableDefinition, WriteTransaction,
};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    catalog::{Change, ImageRecord, LayerRecord},
    digest::ImageId,
};

type Table = TableDefinition<'static, &'static str, &'static [u8]>;

const LAYERS: Table = Table::new("layers");
const IMAGES: Table = Table::new("images");
const TAGS: Table = Table::new("tags");
const DIGESTS: Table = Table::new("digests");
const META: Table = Table::new("meta");
const NEXT_LAYER: &str = "next_layer";
/// The only format so far.
const FORMAT: u8 = 1;

/// The index file cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    #[error("image index")]
    Database(#[source] Box<redb::Error>),
    #[error("image index: entry {0:?} was written by a newer release or is damaged")]
    Format(String),
}

/// Everything the index holds.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    pub(crate) layers: Vec<LayerRecord>,
    pub(crate) images: Vec<ImageRecord>,
    pub(crate) tags: Vec<(String, ImageId)>,
    pub(crate) digests: Vec<(String, ImageId)>,
    pub(crate) next_layer: u64,
}

/// The open index. Its file lock keeps a second daemon out.
pub(crate) struct Index {
    database: Database,
}

impl Index {
    pub(crate) fn open(path: &Path) -> Result<Self, IndexError> {
        let database = Database::create(path).map_err(wrap)?;
        let transaction = database.begin_write().map_err(wrap)?;
        for table in [LAYERS, IMAGES, TAGS, DIGESTS, META] {
            transaction.open_table(table).map_err(wrap)?;
        }
        transaction.commit().map_err(wrap)?;
        Ok(Self { database })
    }

    pub(crate) fn read(&self) -> Result<Contents, IndexError> {
        let next_layer: Vec<(String, u64)> = self.table(META)?;
        Ok(Contents {
            layers: self
                .table(LAYERS)?
                .into_iter()
                .map(|(_, layer)| layer)
                .collect(),
            images: self
                .table(IMAGES)?
                .into_iter()
                .map(|(_, image)| image)
                .collect(),
            tags: self.table(TAGS)?,
            digests: self.table(DIGESTS)?,
            next_layer: next_layer
                .into_iter()
                .find_map(|(key, next)| (key == NEXT_LAYER).then_some(next))
                .unwrap_or(0),
        })
    }

    /// Writes all changes or none; durable when this returns.
    pub(crate) fn write(&self, changes: &[Change]) -> Result<(), IndexError> {
        let transaction = self.database.begin_write().map_err(wrap)?;
        for change in changes {
            match change {
                Change::PutLayer(layer) => {
                    put(&transaction, LAYERS, layer.diff_id.as_str(), layer)?;
                }
                Change::DropLayer(id) => remove(&transaction, LAYERS, id.as_str())?,
                Change::PutImage(image, _) => put(&transaction, IMAGES, image.id.as_str(), image)?,
                Change::DropImage(id) => remove(&transaction, IMAGES, id.as_str())?,
                Change::SetTag(key, id) => put(&transaction, TAGS, key, id)?,
                Change::DropTag(key) => remove(&transaction, TAGS, key)?,
                Change::SetDigest(key, id) => put(&transaction, DIGESTS, key, id)?,
                Change::DropDigest(key) => remove(&transaction, DIGESTS, key)?,
                Change::SetNextLayer(next) => put(&transaction, META, NEXT_LAYER, next)?,
            }
        }
        transaction.commit().map_err(wrap)
    }

    fn table<T: DeserializeOwned>(&self, table: Table) -> Result<Vec<(String, T)>, IndexError> {
        let transaction = self.database.begin_read().map_err(wrap)?;
        let table = transaction.open_table(table).map_err(wrap)?;
        let mut rows = Vec::new();
        for row in table.iter().map_err(wrap)? {
            let (key, value) = row.map_err(wrap)?;
            let key = key.value().to_owned();
            let value = match value.value().split_first() {
                Some((&FORMAT, json)) => serde_json::from_slice(json).ok(),
                _ => None,
            };
            match value {
                Some(value) => rows.push((key, value)),
                None => return Err(IndexError::Format(key)),
            }
        }
        Ok(rows)
    }
}

fn put(
    transaction: &WriteTransaction,
    table: Table,
    key: &str,
    value: &impl Serialize,
) -> Result<(), IndexError> {
    let mut bytes = vec![FORMAT];
    serde_json::to_writer(&mut bytes, value)
        .expect("records have string keys and no failing parts");
    let mut table = transaction.open_table(table).map_err(wrap)?;
    table.insert(key, bytes.as_slice()).map_err(wrap)?;
    Ok(())
}

fn remove(transaction: &WriteTransaction, table: Table, key: &str) -> Result<(), IndexError> {
    transaction
        .open_table(table)
        .map_err(wrap)?
        .remove(key)
        .map_err(wrap)?;
    Ok(())
}

fn wrap(error: impl Into<redb::Error>) -> IndexError {
    IndexError::Database(Box::new(error.into()))
}
