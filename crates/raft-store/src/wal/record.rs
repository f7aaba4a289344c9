//! What the log writes down.

use serde::{Deserialize, Serialize};

use crate::stored::{Ballot, Point};

/// One record. Generic so that an entry can be written from behind a reference.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) enum Record<I> {
    /// The first record of every segment, and of every new run of the writer.
    Head(Head),
    Item(I),
    Vote(Ballot),
    /// Entries past this index do not count any more; all of them, when there is none.
    TruncateAfter(Option<u64>),
    /// Entries up to and with this one are in a snapshot.
    Purged(Point),
    Committed(Point),
    /// Which group this member belongs to from here on.
    Group(u64),
    /// The entry that makes this member the only one of a new group, with all that goes with it: one
    /// record, so that after a crash there is all of it or nothing.
    Alone {
        group: u64,
        vote: Ballot,
        item: I,
    },
}

/// What a reader needs that may only stand in segments that are deleted by now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Head {
    /// Whose log this is.
    pub(super) member: u64,
    /// How many bytes of the segment before this one are in use.
    pub(super) previous_end: Option<u64>,
    pub(super) marks: Marks,
}

/// The log's state besides its entries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Marks {
    pub(crate) vote: Option<Ballot>,
    pub(crate) purged: Option<Point>,
    /// A lower bound: it is written along with the next record that has to be.
    pub(crate) committed: Option<Point>,
    /// Members of other groups are not listened to.
    pub(crate) group: Option<u64>,
}

#[cfg(test)]
mod tests {
    use shoal_transport::codec;

    use super::*;
    use crate::stored::{Body, Item};

    #[test]
    fn golden_bytes_of_every_record_do_not_change() {
        let at = Point {
            term: 2,
            leader: 1,
            index: 9,
        };
        let vote = Ballot {
            term: 2,
            candidate: 1,
            committed: true,
        };
        let marks = Marks {
            vote: Some(vote),
            purged: None,
            committed: Some(at),
            group: Some(7),
        };
        let head = Head {
            member: 1,
            previous_end: Some(64),
            marks,
        };
        let item = Item {
            at,
            body: Body::Blank,
        };
        let alone = Record::Alone {
            group: 8,
            vote,
            item: item.clone(),
        };
        let golden: [(Record<Item>, &[u8]); 8] = [
            (
                Record::Head(head),
                &[1, 0, 1, 1, 64, 1, 2, 1, 1, 0, 1, 2, 1, 9, 1, 7],
            ),
            (Record::Item(item), &[1, 1, 2, 1, 9, 0]),
            (Record::Vote(vote), &[1, 2, 2, 1, 1]),
            (Record::TruncateAfter(Some(9)), &[1, 3, 1, 9]),
            (Record::Purged(at), &[1, 4, 2, 1, 9]),
            (Record::Committed(at), &[1, 5, 2, 1, 9]),
            (Record::Group(7), &[1, 6, 7]),
            (alone, &[1, 7, 8, 2, 1, 1, 2, 1, 9, 0]),
        ];
        for (record, bytes) in golden {
            assert_eq!(codec::encode(&record).expect("encodes"), bytes);
            let decoded: Record<Item> = codec::decode(bytes).expect("decodes");
            assert_eq!(decoded, record);
        }
    }
}
