//! The machinery under a recipe: values that can be read from TOML, written back, described and bounded, and the macros
//! that make a section's struct and its table of keys from one list (schema.rs).

use std::fmt::Write;
use toml::de::DeValue;

/// What a key can hold.
pub trait Setting: Sized {
    /// The value before any recipe is read; never seen outside, since the built-in recipe names every key.
    fn blank() -> Self;
    /// The kind in words, e.g. `a whole number`.
    fn kind() -> String;
    /// The value, when it is of this kind.
    fn read(value: &DeValue) -> Option<Self>;
    /// As TOML.
    fn write(&self) -> String;
    /// A bare command-line word as TOML: text needs no quotes there.
    fn quote(word: &str) -> String {
        word.to_string()
    }
    /// For comparing with bounds.
    fn number(&self) -> Option<f64> {
        None
    }
}

/// Which numbers a key takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Allowed {
    low: f64,
    high: f64,
    /// Whether `low` and `high` themselves are allowed.
    ends: (bool, bool),
}

/// No bound: kinds that are no numbers.
pub const ANY: Allowed = between(f64::NEG_INFINITY, f64::INFINITY);

/// `low` to `high`, both allowed.
pub const fn between(low: f64, high: f64) -> Allowed {
    Allowed { low, high, ends: (true, true) }
}

/// Above `low`, up to `high`.
pub const fn above(low: f64, high: f64) -> Allowed {
    Allowed { low, high, ends: (false, true) }
}

/// From `low` to below `high`.
pub const fn below(low: f64, high: f64) -> Allowed {
    Allowed { low, high, ends: (true, false) }
}

impl Allowed {
    fn contains(&self, value: f64) -> bool {
        let from = if self.ends.0 { value >= self.low } else { value > self.low };
        from && if self.ends.1 { value <= self.high } else { value < self.high }
    }

    /// ` from 1 to 64`, ` above 0, at most 10`, or nothing.
    fn words(&self) -> String {
        match (self.low.is_finite(), self.ends) {
            (false, _) => String::new(),
            (true, (true, true)) => format!(" from {} to {}", self.low, self.high),
            (true, (false, _)) => format!(" above {}, at most {}", self.low, self.high),
            (true, (true, false)) => format!(" from {}, below {}", self.low, self.high),
        }
    }
}

/// One key of a section.
#[derive(Clone, Debug)]
pub struct KeyInfo {
    /// Name inside its section.
    pub name: &'static str,
    /// What it does, line by line.
    pub doc: &'static [&'static str],
    /// What it takes in words, e.g. `a whole number from 1 to 64`.
    pub takes: String,
}

/// The keys of one section, by name.
pub trait Keys {
    /// What the section is about.
    fn about(&self) -> &'static str;
    /// All keys, in the order in which they are written.
    fn keys(&self) -> Vec<KeyInfo>;
    /// The value of a key as TOML; none when there is no such key.
    fn get(&self, key: &str) -> Option<String>;
    /// Takes a value. None when there is no such key, false when the key cannot take it.
    fn set(&mut self, key: &str, value: &DeValue) -> Option<bool>;
    /// A bare command-line word as TOML for this key.
    fn quote(&self, key: &str, word: &str) -> Option<String>;
}

/// `value`, when it is of the right kind and allowed.
pub(super) fn read<T: Setting>(value: &DeValue, allowed: Allowed) -> Option<T> {
    T::read(value).filter(|value| value.number().is_none_or(|number| allowed.contains(number)))
}

/// Kind and bounds in words.
pub(super) fn takes<T: Setting>(allowed: Allowed) -> String {
    format!("{}{}", T::kind(), allowed.words())
}

/// A section: its struct and its [`Keys`], from one list.
macro_rules! section {
    ($(#[doc = $about:literal])+ $name:ident {
        $($(#[doc = $doc:literal])+ $key:ident: $type:ty, $allowed:expr;)+
    } $(holds { $($(#[doc = $inner_doc:literal])+ $inner:ident: $inner_type:ident,)+ })?) => {
        $(#[doc = $about])+
        #[derive(Clone, Debug, PartialEq)]
        pub struct $name {
            $($(#[doc = $doc])+ pub $key: $type,)+
            $($($(#[doc = $inner_doc])+ pub $inner: $inner_type,)+)?
        }

        impl $name {
            pub(super) fn blank() -> $name {
                $name {
                    $($key: Setting::blank(),)+
                    $($($inner: $inner_type::blank(),)+)?
                }
            }
        }

        impl Keys for $name {
            fn about(&self) -> &'static str {
                concat!($($about),+).trim()
            }
            fn keys(&self) -> Vec<KeyInfo> {
                vec![$(KeyInfo {
                    name: stringify!($key),
                    doc: &[$($doc),+],
                    takes: keys::takes::<$type>($allowed),
                }),+]
            }
            fn get(&self, key: &str) -> Option<String> {
                $(if key == stringify!($key) {
                    return Some(self.$key.write());
                })+
                None
            }
            fn set(&mut self, key: &str, value: &DeValue) -> Option<bool> {
                $(if key == stringify!($key) {
                    let value = keys::read(value, $allowed);
                    let fits = value.is_some();
                    self.$key = value.unwrap_or_else(|| self.$key.clone());
                    return Some(fits);
                })+
                None
            }
            fn quote(&self, key: &str, word: &str) -> Option<String> {
                $(if key == stringify!($key) {
                    return Some(<$type as Setting>::quote(word));
                })+
                None
            }
        }
    };
}
pub(super) use section;

/// An enum whose values have names in recipes.
macro_rules! choices {
    ($(#[doc = $about:literal])+ $name:ident { $($(#[doc = $doc:literal])+ $variant:ident = $text:literal,)+ }) => {
        $(#[doc = $about])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl $name {
            /// The name in recipes, tables and file names.
            pub fn name(self) -> &'static str {
                match self {
                    $($name::$variant => $text,)+
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.name())
            }
        }

        named!($name { $($text => $name::$variant,)+ });
    };
}
pub(super) use choices;

/// Names in recipes for the values of a type that lives elsewhere.
macro_rules! named {
    ($type:ty { $first:literal => $first_value:expr, $($text:literal => $value:expr,)* }) => {
        impl Setting for $type {
            fn blank() -> Self {
                $first_value
            }
            fn kind() -> String {
                concat!("one of ", $first, $(", ", $text),*).to_string()
            }
            fn read(value: &DeValue) -> Option<Self> {
                match value.as_str()? {
                    $first => Some($first_value),
                    $($text => Some($value),)*
                    _ => None,
                }
            }
            fn write(&self) -> String {
                let text = match self {
                    value if *value == $first_value => $first,
                    $(value if *value == $value => $text,)*
                    _ => "",
                };
                keys::quoted(text)
            }
            fn quote(word: &str) -> String {
                keys::quoted_word(word)
            }
        }
    };
}
pub(super) use named;

/// A TOML string.
pub(super) fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => out.extend(['\\', character]),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() => {
                // Writing into a String cannot fail.
                let _ = write!(out, "\\u{:04X}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A TOML string of a word that may have quotes already.
pub(super) fn quoted_word(word: &str) -> String {
    if word.starts_with(['"', '\'']) { word.to_string() } else { quoted(word) }
}

impl Setting for String {
    fn blank() -> Self {
        String::new()
    }
    fn kind() -> String {
        "text".into()
    }
    fn read(value: &DeValue) -> Option<Self> {
        value.as_str().map(str::to_string)
    }
    fn write(&self) -> String {
        quoted(self)
    }
    fn quote(word: &str) -> String {
        quoted_word(word)
    }
}

impl Setting for bool {
    fn blank() -> Self {
        false
    }
    fn kind() -> String {
        "true or false".into()
    }
    fn read(value: &DeValue) -> Option<Self> {
        value.as_bool()
    }
    fn write(&self) -> String {
        self.to_string()
    }
}

impl Setting for u64 {
    fn blank() -> Self {
        0
    }
    fn kind() -> String {
        "a whole number".into()
    }
    fn read(value: &DeValue) -> Option<Self> {
        let value = value.as_integer()?;
        u64::from_str_radix(value.as_str(), value.radix()).ok()
    }
    fn write(&self) -> String {
        self.to_string()
    }
    fn number(&self) -> Option<f64> {
        Some(*self as f64)
    }
}

impl Setting for usize {
    fn blank() -> Self {
        0
    }
    fn kind() -> String {
        u64::kind()
    }
    fn read(value: &DeValue) -> Option<Self> {
        usize::try_from(u64::read(value)?).ok()
    }
    fn write(&self) -> String {
        self.to_string()
    }
    fn number(&self) -> Option<f64> {
        Some(*self as f64)
    }
}

impl Setting for f64 {
    fn blank() -> Self {
        0.0
    }
    fn kind() -> String {
        "a number".into()
    }
    fn read(value: &DeValue) -> Option<Self> {
        let text = match value {
            DeValue::Float(value) => value.as_str(),
            DeValue::Integer(value) if value.radix() == 10 => value.as_str(),
            _ => return None,
        };
        text.parse().ok().filter(|value: &f64| value.is_finite())
    }
    fn write(&self) -> String {
        // The shortest text that reads back as the same bits; TOML knows Rust's exponent form.
        format!("{self:?}")
    }
    fn number(&self) -> Option<f64> {
        Some(*self)
    }
}

impl<T: Setting> Setting for Vec<T> {
    fn blank() -> Self {
        Vec::new()
    }
    fn kind() -> String {
        format!("a list, each {}", T::kind())
    }
    fn read(value: &DeValue) -> Option<Self> {
        value.as_array()?.iter().map(|item| T::read(item.get_ref())).collect()
    }
    fn write(&self) -> String {
        format!("[{}]", self.iter().map(T::write).collect::<Vec<_>>().join(", "))
    }
    fn quote(word: &str) -> String {
        if word.starts_with('[') {
            return word.to_string();
        }
        let items = word.split(',').map(str::trim).filter(|item| !item.is_empty());
        format!("[{}]", items.map(T::quote).collect::<Vec<_>>().join(", "))
    }
}

/// Edits (insert, delete, replace, swap of neighbours) that turn `a` into `b`.
pub(super) fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut table = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            table[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let replaced = table[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                let plain = replaced.min(table[i - 1][j] + 1).min(table[i][j - 1] + 1);
                let swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
                if swapped { plain.min(table[i - 2][j - 2] + 1) } else { plain }
            };
        }
    }
    table[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_are_counted() {
        for (a, b, expected) in
            [("", "", 0), ("group", "", 5), ("gruop", "group", 1), ("p", "q", 1), ("kitten", "sitting", 3)]
        {
            assert_eq!((distance(a, b), distance(b, a)), (expected, expected), "{a} {b}");
        }
    }

    #[test]
    fn bounds_hold_at_their_ends() {
        let inside = |allowed: Allowed| [0.0, 0.5, 1.0, 1.5, -0.5].map(|value| allowed.contains(value));
        assert_eq!(inside(between(0.0, 1.0)), [true, true, true, false, false]);
        assert_eq!(inside(above(0.0, 1.0)), [false, true, true, false, false]);
        assert_eq!(inside(below(0.0, 1.0)), [true, true, false, false, false]);
        assert_eq!(above(0.0, 10.0).words(), " above 0, at most 10");
    }

    #[test]
    fn strings_and_numbers_come_back() {
        for text in ["", "a\"b\\c", "tab\tline\nbell\u{7}", "naïve 7"] {
            let written = text.to_string().write();
            let value = DeValue::parse(&written).unwrap();
            assert_eq!(String::read(value.get_ref()).as_deref(), Some(text));
        }
        for number in [0.0, 3e-5, 0.1, 1.0 / 3.0, 1e22, 123456.75] {
            let written = number.write();
            let value = DeValue::parse(&written).unwrap();
            assert_eq!(f64::read(value.get_ref()).map(f64::to_bits), Some(number.to_bits()), "{written}");
        }
    }
}
