//! The GGUF container: header, metadata and tensor infos of versions 2 and 3, little-endian.
//!
//! ```text
//! "GGUF" u32 version, u64 tensors, u64 keys
//! keys     string name, u32 kind, value       string = u64 length, bytes; array = u32 kind, u64 count, values
//! tensors  string name, u32 axes, u64 length of each axis (innermost first), u32 type, u64 offset
//! padding to general.alignment (32), then the data; offsets count from here and are aligned
//! ```
//!
//! Nothing in the file is believed: every length is checked against the bytes that are left before anything is
//! reserved, so a lying header costs no memory. Values stay in the map until somebody asks for them.
//! What the keys mean for a model: gguf_model.rs.

use super::mapped::Mapped;
use super::safetensors_file::StoredTensor;
use super::stored::Stored;
use crate::base::{Error, Result};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// An open file.
#[derive(Debug)]
pub struct GgufFile {
    path: PathBuf,
    mapped: Mapped,
    keys: HashMap<String, Place>,
    tensors: Vec<TensorPlace>,
}

/// Where a metadata value lies.
#[derive(Clone, Copy, Debug)]
struct Place {
    kind: Kind,
    /// Elements, for an array.
    count: Option<usize>,
    /// First byte of the value (of an array: of its first element).
    at: usize,
}

/// A tensor's place; lengths outermost first, as everywhere else in latch.
#[derive(Debug)]
pub struct TensorPlace {
    /// GGUF's name, e.g. `blk.0.attn_q.weight`.
    pub name: String,
    /// Lengths of the axes, outermost first.
    pub shape: Vec<usize>,
    /// How elements are stored.
    pub stored: Stored,
    start: usize,
    end: usize,
}

/// Kinds of metadata values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Unsigned(usize),
    Signed(usize),
    F32,
    F64,
    Bool,
    Text,
    Array,
}

impl Kind {
    fn from_number(number: u32) -> Option<Kind> {
        Some(match number {
            0 => Kind::Unsigned(1),
            1 => Kind::Signed(1),
            2 => Kind::Unsigned(2),
            3 => Kind::Signed(2),
            4 => Kind::Unsigned(4),
            5 => Kind::Signed(4),
            6 => Kind::F32,
            7 => Kind::Bool,
            8 => Kind::Text,
            9 => Kind::Array,
            10 => Kind::Unsigned(8),
            11 => Kind::Signed(8),
            12 => Kind::F64,
            _ => return None,
        })
    }

    /// Bytes of a value of fixed size.
    fn size(self) -> Option<usize> {
        match self {
            Kind::Unsigned(size) | Kind::Signed(size) => Some(size),
            Kind::F32 => Some(4),
            Kind::F64 => Some(8),
            Kind::Bool => Some(1),
            Kind::Text | Kind::Array => None,
        }
    }
}

const DAMAGED: &str = "the download looks incomplete or damaged; fetch the file again";

/// Arrays of arrays deeper than this are refused; no known key nests at all.
const DEEPEST_ARRAY: usize = 4;

/// Reads forward through the header, never past its end.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    path: &'a Path,
}

impl<'a> Cursor<'a> {
    fn wrong(&self, problem: impl Into<String>) -> Error {
        Error::file(self.path, problem, DAMAGED)
    }

    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn take(&mut self, count: usize, what: &str) -> Result<&'a [u8]> {
        if count > self.left() {
            return Err(self.wrong(format!(
                "{what} at byte {} needs {count} bytes, the file has {} left",
                self.at,
                self.left()
            )));
        }
        let taken = &self.bytes[self.at..self.at + count];
        self.at += count;
        Ok(taken)
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        let bytes = self.take(4, what)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        let low = self.u32(what)?;
        Ok(u64::from(low) | u64::from(self.u32(what)?) << 32)
    }

    /// A number of things that take at least `least` bytes each.
    fn count(&mut self, what: &str, least: usize) -> Result<usize> {
        let count = self.u64(what)?;
        match usize::try_from(count) {
            Ok(count) if count <= self.left() / least => Ok(count),
            _ => Err(self.wrong(format!("{what} is {count}, more than fit the {} bytes left", self.left()))),
        }
    }

    fn text(&mut self, what: &str) -> Result<&'a str> {
        let length = self.count(what, 1)?;
        let bytes = self.take(length, what)?;
        std::str::from_utf8(bytes).map_err(|_| self.wrong(format!("{what} is not UTF-8 text")))
    }

    fn kind(&mut self, what: &str) -> Result<Kind> {
        let number = self.u32(what)?;
        Kind::from_number(number).ok_or_else(|| self.wrong(format!("{what} has unknown kind {number}")))
    }

    /// Steps over a value and says where it lies.
    fn value(&mut self, kind: Kind, what: &str, depth: usize) -> Result<Place> {
        let at = self.at;
        match kind {
            Kind::Text => {
                self.text(what)?;
                Ok(Place { kind, count: None, at })
            }
            Kind::Array => {
                if depth >= DEEPEST_ARRAY {
                    return Err(self.wrong(format!("{what} nests arrays deeper than {DEEPEST_ARRAY}")));
                }
                let element = self.kind(what)?;
                // An empty text takes 8 bytes, an empty array 12.
                let count = self.count(what, element.size().unwrap_or(8))?;
                let at = self.at;
                match element.size() {
                    Some(size) => {
                        self.take(count * size, what)?;
                    }
                    None => {
                        for _ in 0..count {
                            self.value(element, what, depth + 1)?;
                        }
                    }
                }
                Ok(Place { kind: element, count: Some(count), at })
            }
            _ => {
                self.take(kind.size().unwrap_or(0), what)?;
                Ok(Place { kind, count: None, at })
            }
        }
    }
}

/// Name and our type of ggml's element types.
fn element_type(number: u32) -> (String, Option<Stored>) {
    let (name, stored) = match number {
        0 => ("F32", Some(Stored::F32)),
        1 => ("F16", Some(Stored::F16)),
        2 => ("Q4_0", Some(Stored::Q4_0)),
        3 => ("Q4_1", Some(Stored::Q4_1)),
        6 => ("Q5_0", None),
        7 => ("Q5_1", None),
        8 => ("Q8_0", Some(Stored::Q8_0)),
        9 => ("Q8_1", None),
        10 => ("Q2_K", None),
        11 => ("Q3_K", None),
        12 => ("Q4_K", None),
        13 => ("Q5_K", None),
        14 => ("Q6_K", None),
        15 => ("Q8_K", None),
        28 => ("F64", Some(Stored::F64)),
        30 => ("BF16", Some(Stored::Bf16)),
        _ => return (format!("number {number}"), None),
    };
    (name.to_string(), stored)
}

impl GgufFile {
    /// Opens a file and checks its header.
    ///
    /// # Errors
    /// Anything but a well-formed file with element types we read.
    pub fn open(path: &Path) -> Result<GgufFile> {
        let mapped = Mapped::open(path)?;
        let (keys, tensors) = Cursor { bytes: mapped.bytes(), at: 0, path }.header()?;
        Ok(GgufFile { path: path.to_path_buf(), mapped, keys, tensors })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All tensors, in the order of the header.
    pub fn tensors(&self) -> &[TensorPlace] {
        &self.tensors
    }

    /// The data of tensor `index` of [`GgufFile::tensors`].
    pub fn tensor(&self, index: usize) -> StoredTensor<'_> {
        let place = &self.tensors[index];
        let bytes = &self.mapped.bytes()[place.start..place.end];
        StoredTensor { stored: place.stored, shape: &place.shape, bytes }
    }

    /// An error about this file.
    pub(crate) fn wrong(&self, problem: impl Into<String>, advice: &str) -> Error {
        Error::file(&self.path, problem, advice)
    }

    fn single(&self, key: &str, expected: &str, fits: impl Fn(Kind) -> bool) -> Result<Option<Place>> {
        match self.keys.get(key) {
            None => Ok(None),
            Some(place) if place.count.is_none() && fits(place.kind) => Ok(Some(*place)),
            Some(_) => Err(self.wrong(format!("key {key} is not {expected}"), DAMAGED)),
        }
    }

    fn array(
        &self,
        key: &str,
        expected: &str,
        fits: impl Fn(Kind) -> bool,
    ) -> Result<Option<(Place, usize)>> {
        match self.keys.get(key) {
            None => Ok(None),
            Some(place) if fits(place.kind) => match place.count {
                Some(count) => Ok(Some((*place, count))),
                None => Err(self.wrong(format!("key {key} is not a list of {expected}"), DAMAGED)),
            },
            Some(_) => Err(self.wrong(format!("key {key} is not a list of {expected}"), DAMAGED)),
        }
    }

    /// Whether the metadata has `key`.
    pub fn has(&self, key: &str) -> bool {
        self.keys.contains_key(key)
    }

    /// A whole number that is not negative.
    pub fn whole(&self, key: &str) -> Result<Option<u64>> {
        let fits = |kind| matches!(kind, Kind::Unsigned(_) | Kind::Signed(_));
        let Some(place) = self.single(key, "a whole number", fits)? else { return Ok(None) };
        let value = self.number_at(place.kind, place.at);
        if value < 0.0 {
            return Err(self.wrong(format!("key {key} is {value}, expected no negative number"), DAMAGED));
        }
        let mut bytes = [0; 8];
        let size = place.kind.size().unwrap_or(0);
        bytes[..size].copy_from_slice(&self.mapped.bytes()[place.at..place.at + size]);
        Ok(Some(u64::from_le_bytes(bytes)))
    }

    /// A finite number of any kind.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        let fits = |kind: Kind| !matches!(kind, Kind::Bool | Kind::Text | Kind::Array);
        let Some(place) = self.single(key, "a number", fits)? else { return Ok(None) };
        let value = self.number_at(place.kind, place.at);
        if !value.is_finite() {
            return Err(self.wrong(format!("key {key} is {value}, expected a finite number"), DAMAGED));
        }
        Ok(Some(value))
    }

    /// True or false.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        let place = self.single(key, "true or false", |kind| kind == Kind::Bool)?;
        Ok(place.map(|place| self.mapped.bytes()[place.at] != 0))
    }

    /// A text.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        let Some(place) = self.single(key, "text", |kind| kind == Kind::Text)? else { return Ok(None) };
        let mut cursor = Cursor { bytes: self.mapped.bytes(), at: place.at, path: &self.path };
        cursor.text(key).map(Some)
    }

    /// A list of texts.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<&str>>> {
        let Some((place, count)) = self.array(key, "texts", |kind| kind == Kind::Text)? else {
            return Ok(None);
        };
        let mut cursor = Cursor { bytes: self.mapped.bytes(), at: place.at, path: &self.path };
        (0..count).map(|_| cursor.text(key)).collect::<Result<Vec<&str>>>().map(Some)
    }

    /// A list of numbers.
    pub fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>> {
        let fits = |kind: Kind| !matches!(kind, Kind::Bool | Kind::Text | Kind::Array);
        let Some((place, count)) = self.array(key, "numbers", fits)? else { return Ok(None) };
        let size = place.kind.size().unwrap_or(0);
        Ok(Some((0..count).map(|i| self.number_at(place.kind, place.at + i * size)).collect()))
    }

    /// The number at a place that the header's check has visited.
    fn number_at(&self, kind: Kind, at: usize) -> f64 {
        let size = kind.size().unwrap_or(0);
        let mut bytes = [0; 8];
        bytes[..size].copy_from_slice(&self.mapped.bytes()[at..at + size]);
        let unsigned = u64::from_le_bytes(bytes);
        match kind {
            Kind::Signed(size) => {
                let shift = 64 - 8 * size as u32;
                ((unsigned << shift) as i64 >> shift) as f64
            }
            Kind::F32 => f32::from_bits(unsigned as u32).into(),
            Kind::F64 => f64::from_bits(unsigned),
            _ => unsigned as f64,
        }
    }
}

impl Cursor<'_> {
    /// Reads the whole header.
    fn header(mut self) -> Result<(HashMap<String, Place>, Vec<TensorPlace>)> {
        let magic = self.take(4, "the magic number")?;
        if magic != b"GGUF" {
            let advice = "expected a file that starts with GGUF";
            return Err(Error::file(self.path, "is no GGUF file", advice));
        }
        let version = self.u32("the version")?;
        if version != 2 && version != 3 {
            let problem = match version.swap_bytes() {
                2 | 3 => "is a big-endian GGUF file".to_string(),
                _ => format!("has GGUF version {version}"),
            };
            return Err(Error::file(self.path, problem, "known: versions 2 and 3, little-endian"));
        }
        let tensor_count = self.u64("the number of tensors")?;
        let key_count = self.count("the number of metadata keys", 13)?;
        let mut keys = HashMap::new();
        for index in 0..key_count {
            let name = self.text(&format!("the name of metadata key {index}"))?;
            let what = format!("metadata key {name:?}");
            let kind = self.kind(&what)?;
            let place = self.value(kind, &what, 0)?;
            if keys.insert(name.to_string(), place).is_some() {
                return Err(self.wrong(format!("{what} appears twice")));
            }
        }
        let alignment = self.alignment(&keys)?;
        // Name, number of axes, one axis, type, offset.
        if tensor_count > (self.left() / 32) as u64 {
            return Err(self.wrong(format!(
                "the number of tensors is {tensor_count}, more than fit the {} bytes left",
                self.left()
            )));
        }
        let mut tensors = Vec::new();
        for index in 0..tensor_count {
            tensors.push(self.tensor(index, alignment)?);
        }
        self.place(&mut tensors, alignment)?;
        Ok((keys, tensors))
    }

    fn alignment(&self, keys: &HashMap<String, Place>) -> Result<usize> {
        let Some(place) = keys.get("general.alignment") else { return Ok(32) };
        let alignment = match (place.kind, place.count) {
            (Kind::Unsigned(4), None) => {
                self.bytes[place.at..].first_chunk::<4>().map(|b| u32::from_le_bytes(*b))
            }
            _ => None,
        };
        match alignment {
            Some(alignment) if alignment.is_power_of_two() && alignment <= 1 << 20 => Ok(alignment as usize),
            found => Err(self.wrong(format!("general.alignment is {found:?}, expected a power of two"))),
        }
    }

    /// One tensor info; `start` is still relative to the data, `end` holds the length.
    fn tensor(&mut self, index: u64, alignment: usize) -> Result<TensorPlace> {
        let name = self.text(&format!("the name of tensor {index}"))?;
        let what = format!("tensor \"{name}\"");
        let axes = self.u32(&what)?;
        if axes == 0 || axes > 4 {
            return Err(self.wrong(format!("{what} has {axes} axes, expected 1 to 4")));
        }
        let mut shape = [1usize; 4];
        for axis in shape.iter_mut().take(axes as usize) {
            let length = self.u64(&what)?;
            *axis = usize::try_from(length)
                .map_err(|_| self.wrong(format!("{what} has an axis of length {length}")))?;
        }
        let (type_name, stored) = element_type(self.u32(&what)?);
        let offset = self.u64(&what)?;
        let Some(stored) = stored else {
            let problem = format!("{what} has element type {type_name}, which is not supported");
            let advice =
                "known: F32, F16, BF16, F64, Q8_0, Q4_0, Q4_1; fetch or make the model in one of these";
            return Err(Error::file(self.path, problem, advice));
        };
        let mut shape = shape[..axes as usize].to_vec();
        if !shape[0].is_multiple_of(stored.block_elements()) {
            return Err(self.wrong(format!(
                "{what}: rows of {} elements do not fill {type_name} blocks of {}",
                shape[0],
                stored.block_elements()
            )));
        }
        shape.reverse();
        let elements = shape.iter().try_fold(1usize, |n, axis| n.checked_mul(*axis));
        let Some(size) = elements.and_then(|n| stored.bytes(n)) else {
            return Err(self.wrong(format!("{what} has shape {shape:?}, more than any memory holds")));
        };
        let start = usize::try_from(offset).ok().filter(|start| start.is_multiple_of(alignment));
        let Some(start) = start else {
            return Err(
                self.wrong(format!("{what}: offset {offset} is not a multiple of the alignment {alignment}"))
            );
        };
        Ok(TensorPlace { name: name.to_string(), shape, stored, start, end: size })
    }

    /// Turns offsets into places in the file; checks that all lie inside and none overlap.
    fn place(&self, tensors: &mut [TensorPlace], alignment: usize) -> Result<()> {
        let data_start = self.at.next_multiple_of(alignment);
        let available = self.bytes.len().saturating_sub(data_start);
        let mut order: Vec<usize> = (0..tensors.len()).collect();
        order.sort_by_key(|&i| (tensors[i].start, tensors[i].end));
        let mut previous: Option<usize> = None;
        for i in order {
            let (start, size) = (tensors[i].start, tensors[i].end);
            let end = start.checked_add(size).filter(|end| *end <= available);
            let Some(end) = end else {
                return Err(self.wrong(format!(
                    "tensor \"{}\" lies at bytes {start}..{} of the data, the file has {available}",
                    tensors[i].name,
                    start as u128 + size as u128
                )));
            };
            tensors[i].start = data_start + start;
            tensors[i].end = data_start + end;
            if let Some(previous) = previous
                && tensors[previous].end > tensors[i].start
            {
                return Err(self.wrong(format!(
                    "tensors \"{}\" and \"{}\" overlap",
                    tensors[previous].name, tensors[i].name
                )));
            }
            previous = Some(i);
        }
        let mut names: Vec<&str> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        names.sort_unstable();
        match names.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(self.wrong(format!("tensor \"{}\" appears twice", pair[0]))),
            None => Ok(()),
        }
    }
}
