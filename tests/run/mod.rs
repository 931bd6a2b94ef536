//! The mechanics of a run: recipes, folders, checkpoints, what the terminal shows.

mod recipe;

/// A message has all of these words.
#[track_caller]
fn says(message: &str, words: &[&str]) {
    for word in words {
        assert!(message.contains(word), "`{word}` is missing in: {message}");
    }
}
