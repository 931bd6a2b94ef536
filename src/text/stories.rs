//! The stories around word problems: a table of sentences with slots.
//!
//! Slots: `{name}`, `{She}` and `{she}` (He, he), `{things}`, `{n}`. A number never begins a sentence.
//! Held-out stories use only words that training stories have too: they test new sentences, not unseen words.

/// One story: how it begins, a sentence for each operation on the quantity it is about, and its question.
#[derive(Clone, Copy, Debug)]
pub(super) struct Story {
    pub opening: &'static str,
    pub add: &'static str,
    pub subtract: &'static str,
    pub multiply: &'static str,
    pub divide: &'static str,
    pub question: &'static str,
    pub things: &'static [&'static str],
}

impl Story {
    /// Every sentence with slots.
    pub fn sentences(&self) -> [&'static str; 6] {
        [self.opening, self.add, self.subtract, self.multiply, self.divide, self.question]
    }
}

/// Names and their pronouns.
pub(super) const NAMES: [(&str, &str, &str); 16] = [
    ("Ann", "She", "she"),
    ("Ben", "He", "he"),
    ("Cara", "She", "she"),
    ("Dan", "He", "he"),
    ("Emma", "She", "she"),
    ("Finn", "He", "he"),
    ("Grace", "She", "she"),
    ("Hugo", "He", "he"),
    ("Iris", "She", "she"),
    ("Jonas", "He", "he"),
    ("Kate", "She", "she"),
    ("Leo", "He", "he"),
    ("Mia", "She", "she"),
    ("Noah", "He", "he"),
    ("Olga", "She", "she"),
    ("Paul", "He", "he"),
];

const THINGS: &[&str] = &[
    "apples", "books", "cards", "coins", "cookies", "eggs", "marbles", "pears", "pencils", "shells",
    "stamps", "toys",
];

const FLOWERS: &[&str] = &["roses", "tulips", "lilies", "herbs"];

/// Stories that are trained on.
pub(super) const TRAINING: &[Story] = &[
    Story {
        opening: "{name} has {n} {things}.",
        add: "{She} buys {n} more.",
        subtract: "{She} gives away {n}.",
        multiply: "Now {she} has {n} times as many.",
        divide: "{She} keeps one of {n} equal parts.",
        question: "How many {things} does {name} have now?",
        things: THINGS,
    },
    Story {
        opening: "A box holds {n} {things}.",
        add: "Then {n} more go in.",
        subtract: "Then {n} are taken out.",
        multiply: "Now it holds {n} times as many.",
        divide: "One of {n} equal parts stays in it.",
        question: "How many {things} are in the box?",
        things: THINGS,
    },
    Story {
        opening: "A bus starts with {n} people.",
        add: "At a stop {n} get on.",
        subtract: "At a stop {n} get off.",
        multiply: "Now there are {n} times as many.",
        divide: "They form {n} equal groups and one stays.",
        question: "How many people are on the bus?",
        things: &["people"],
    },
    Story {
        opening: "A garden has {n} {things}.",
        add: "{name} plants {n} more.",
        subtract: "The wind takes {n}.",
        multiply: "By June there are {n} times as many.",
        divide: "Only one of {n} equal rows is kept.",
        question: "How many {things} are left in the garden?",
        things: FLOWERS,
    },
    Story {
        opening: "A shop has {n} {things} to sell.",
        add: "A truck brings {n}.",
        subtract: "The shop sells {n}.",
        multiply: "An order makes it {n} times as many.",
        divide: "A sale leaves one of {n} equal parts.",
        question: "How many {things} are left in the shop?",
        things: THINGS,
    },
    Story {
        opening: "{name} starts a game with {n} points.",
        add: "{She} wins {n}.",
        subtract: "{She} loses {n}.",
        multiply: "A bonus makes it {n} times as much.",
        divide: "A trap divides it by {n}.",
        question: "How many points does {name} have?",
        things: &["points"],
    },
    Story {
        opening: "{name} saves {n} coins.",
        add: "A gift adds {n}.",
        subtract: "A toy costs {n}.",
        multiply: "The bank makes it {n} times as much.",
        divide: "{She} divides it by {n} and keeps one part.",
        question: "How many coins are left for {name}?",
        things: &["coins"],
    },
    Story {
        opening: "A tank holds {n} liters.",
        add: "Rain adds {n}.",
        subtract: "A leak takes {n}.",
        multiply: "A pump makes it {n} times as much.",
        divide: "One of {n} equal parts is kept.",
        question: "How many liters does the tank hold?",
        things: &["liters"],
    },
];

/// Stories that are never trained on.
pub(super) const HELD_OUT: &[Story] = &[
    Story {
        opening: "{name} starts with {n} {things} in a box.",
        add: "A truck adds {n} more.",
        subtract: "The bank takes {n}.",
        multiply: "By now there are {n} times as many.",
        divide: "Only one of {n} equal groups is left.",
        question: "How many {things} are in it now?",
        things: THINGS,
    },
    Story {
        opening: "A game has {n} {things}.",
        add: "{name} brings {n}.",
        subtract: "{name} loses {n}.",
        multiply: "The shop makes it {n} times as much.",
        divide: "{name} keeps one of {n} equal rows.",
        question: "How many {things} does the game have now?",
        things: THINGS,
    },
    Story {
        opening: "A bank holds {n} coins.",
        add: "A sale adds {n}.",
        subtract: "The garden costs {n}.",
        multiply: "Rain makes it {n} times as many.",
        divide: "The wind divides it by {n}.",
        question: "How many coins are kept in the bank?",
        things: &["coins"],
    },
];
