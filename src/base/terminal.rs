//! What the system says of a terminal, and its keys without Enter; nothing on systems that are asked in another way.

#[cfg(unix)]
pub use unix::{Keys, Saved, size};

#[cfg(not(unix))]
pub use elsewhere::{Keys, Saved, size};

#[cfg(unix)]
mod unix {
    use rustix::termios::{
        LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcgetwinsize, tcsetattr,
    };
    use std::os::fd::AsFd;

    /// Columns and rows of the terminal that `of` is; nothing where it is none, or does not know.
    pub fn size(of: impl AsFd) -> Option<(usize, usize)> {
        let size = tcgetwinsize(of).ok()?;
        (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col.into(), size.ws_row.into()))
    }

    /// How the terminal of stdin was set before [`Keys`].
    #[derive(Clone, Debug)]
    pub struct Saved(Termios);

    impl Saved {
        /// Sets the terminal so again.
        pub fn restore(&self) {
            // A terminal that is gone needs nothing.
            let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.0);
        }
    }

    /// The terminal of stdin, giving keys as they are pressed and showing none of them; set as before when this is dropped.
    /// Ctrl-C stays what it is.
    #[derive(Debug)]
    pub struct Keys {
        saved: Saved,
    }

    impl Keys {
        /// Nothing where stdin is no terminal.
        pub fn of_stdin() -> Option<Keys> {
            let stdin = std::io::stdin();
            let before = tcgetattr(&stdin).ok()?;
            let mut raw = before.clone();
            raw.local_modes -= LocalModes::ICANON | LocalModes::ECHO;
            // A read waits for a fifth of a second at most. A program that was suspended here would leave its screen behind.
            raw.special_codes[SpecialCodeIndex::VMIN] = 0;
            raw.special_codes[SpecialCodeIndex::VTIME] = 2;
            raw.special_codes[SpecialCodeIndex::VSUSP] = 0;
            tcsetattr(&stdin, OptionalActions::Now, &raw).ok()?;
            Some(Keys { saved: Saved(before) })
        }

        /// The next key, when one is pressed within a fifth of a second; none also where the terminal is gone.
        pub fn next(&self) -> Option<u8> {
            let mut key = [0];
            match rustix::io::read(std::io::stdin(), &mut key) {
                Ok(1) => Some(key[0]),
                _ => None,
            }
        }

        /// What sets the terminal as it was, for a handler that ends the program.
        pub fn saved(&self) -> Saved {
            self.saved.clone()
        }
    }

    impl Drop for Keys {
        fn drop(&mut self) {
            self.saved.restore();
        }
    }
}

#[cfg(not(unix))]
mod elsewhere {
    /// Columns and rows of the terminal that `of` is.
    pub fn size<T>(_: T) -> Option<(usize, usize)> {
        None
    }

    /// How the terminal was set.
    #[derive(Clone, Debug)]
    pub struct Saved;

    impl Saved {
        /// Sets the terminal so again.
        pub fn restore(&self) {}
    }

    /// The keys of stdin.
    #[derive(Debug)]
    pub struct Keys;

    impl Keys {
        /// None are given.
        pub fn of_stdin() -> Option<Keys> {
            None
        }

        /// The next key.
        pub fn next(&self) -> Option<u8> {
            None
        }

        /// What sets the terminal as it was.
        pub fn saved(&self) -> Saved {
            Saved
        }
    }
}

#[cfg(all(test, unix))]
mod tests {
    #[test]
    fn a_file_is_no_terminal() {
        assert_eq!(super::size(std::fs::File::open("/dev/null").unwrap()), None);
    }
}
