//! Names for services that were given none.

use rand::seq::IndexedRandom;

const ADJECTIVES: [&str; 24] = [
    "amber", "bold", "brisk", "calm", "clear", "deft", "eager", "fleet", "gentle", "glad", "keen",
    "kind", "lively", "lucid", "merry", "nimble", "proud", "quick", "quiet", "sleek", "steady",
    "swift", "warm", "wise",
];

const FISH: [&str; 32] = [
    "anchovy", "barb", "bass", "bream", "carp", "char", "cod", "dace", "darter", "eel", "goby",
    "guppy", "haddock", "hake", "halibut", "herring", "ling", "mackerel", "minnow", "mullet",
    "perch", "pike", "plaice", "roach", "salmon", "sardine", "smelt", "sole", "sprat", "tench",
    "trout", "tuna",
];

/// `swift_herring7f3a`: the digits make a clash unlikely without asking the store.
pub(crate) fn random() -> String {
    let mut rng = rand::rng();
    let word = |list: &[&'static str], rng: &mut rand::rngs::ThreadRng| {
        *list.choose(rng).expect("the lists are not empty")
    };
    let (adjective, fish) = (word(&ADJECTIVES, &mut rng), word(&FISH, &mut rng));
    format!("{adjective}_{fish}{:04x}", rand::random::<u16>())
}
