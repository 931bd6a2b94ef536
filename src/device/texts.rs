//! What was read from PTX files, kept by their text for the whole process.

use std::sync::{Arc, Mutex, PoisonError};

/// Whether two PTX texts are the same. Statics that include one file may hold it at two addresses, and files of one stem
/// may differ (tests bring broken ones), so neither the address nor the stem says which file it is.
pub(super) fn same(one: &str, other: &str) -> bool {
    std::ptr::eq(one, other) || one == other
}

/// A value made from each text once. Reading the larger files takes a while, and tests open many devices.
#[derive(Debug)]
pub(super) struct Texts<T>(Mutex<Vec<(&'static str, Arc<T>)>>);

impl<T> Texts<T> {
    /// Nothing is known.
    pub(super) const fn new() -> Texts<T> {
        Texts(Mutex::new(Vec::new()))
    }

    /// What `read` makes of `text`, now or before.
    pub(super) fn of<E>(&self, text: &'static str, read: impl FnOnce() -> Result<T, E>) -> Result<Arc<T>, E> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, value)) = known.iter().find(|(before, _)| same(before, text)) {
            return Ok(value.clone());
        }
        let value = Arc::new(read()?);
        known.push((text, value.clone()));
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_read_once_and_a_refused_one_again() {
        let texts = Texts::new();
        let elsewhere: &'static str = String::from("two").leak();
        assert_eq!(*texts.of::<()>("two", || Ok(2)).unwrap(), 2);
        assert_eq!(*texts.of::<()>(elsewhere, || panic!("it is known")).unwrap(), 2);
        assert_eq!(texts.of("three", || Err("refused")).unwrap_err(), "refused");
        assert_eq!(*texts.of::<()>("three", || Ok(3)).unwrap(), 3);
    }
}
