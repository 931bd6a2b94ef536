//! Safetensors files: read through a memory map, written as a stream. The only file that imports `safetensors`.
//!
//! Layout: u64 length of the header, JSON header, tensors without gaps. The crate checks that offsets are in order,
//! without gaps or overlaps, and that sizes match shapes; we check that the file ends where the last tensor does, and
//! turn what is wrong into a message with the tensor's name and the numbers.

use super::mapped::Mapped;
use super::stored::{Stored, Target};
use crate::base::{Error, Result};
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};

/// An open file.
#[derive(Debug)]
pub struct SafetensorsFile {
    path: PathBuf,
    mapped: Mapped,
    header: Metadata,
    data_start: usize,
}

/// A tensor of an open file.
#[derive(Clone, Copy, Debug)]
pub struct StoredTensor<'a> {
    /// How elements are stored.
    pub stored: Stored,
    /// Lengths of the axes.
    pub shape: &'a [usize],
    /// Elements, row-major, little-endian.
    pub bytes: &'a [u8],
}

/// Name, shape and element type of a tensor to write.
#[derive(Clone, Debug)]
pub struct TensorHeader {
    /// Name in the file.
    pub name: String,
    /// Lengths of the axes.
    pub shape: Vec<usize>,
    /// How elements are stored; not a quantised type.
    pub stored: Stored,
}

/// Longest header that is read, as in the reference implementation.
const LARGEST_HEADER: u64 = 100_000_000;

const INCOMPLETE: &str = "the download looks incomplete or damaged; fetch the file again";

impl SafetensorsFile {
    /// Opens a file and checks its header against its length.
    ///
    /// # Errors
    /// Anything but a well-formed file: the message names the tensor where there is one.
    pub fn open(path: &Path) -> Result<SafetensorsFile> {
        let mapped = Mapped::open(path)?;
        let bytes = mapped.bytes();
        if bytes.starts_with(b"version https://git-lfs") {
            let advice = "fetch the real file: git lfs pull";
            return Err(Error::file(path, "is a Git LFS pointer, not the weights", advice));
        }
        let length = bytes.first_chunk::<8>().map(|b| u64::from_le_bytes(*b));
        let Some(length) = length else {
            let problem = format!("has {} bytes, too short for a safetensors file", bytes.len());
            return Err(Error::file(path, problem, INCOMPLETE));
        };
        if length > bytes.len() as u64 - 8 {
            let problem = format!(
                "the header says it is {length} bytes long, the file has only {} after its length",
                bytes.len() - 8
            );
            return Err(Error::file(path, problem, INCOMPLETE));
        }
        if length > LARGEST_HEADER {
            let problem = format!("the header says it is {length} bytes long, more than {LARGEST_HEADER}");
            return Err(Error::file(path, problem, INCOMPLETE));
        }
        let data_start = 8 + length as usize;
        let (text, data) = (&bytes[8..data_start], bytes.len() - data_start);
        let header: Metadata = serde_json::from_slice(text)
            .map_err(|error| Error::file(path, explain(&error, text), INCOMPLETE))?;
        if header.data_len() != data {
            let problem =
                format!("the header describes {} bytes of tensors, the file has {data}", header.data_len());
            return Err(Error::file(path, problem, INCOMPLETE));
        }
        Ok(SafetensorsFile { path: path.to_path_buf(), data_start, mapped, header })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names of all tensors, in the order of their data.
    pub fn names(&self) -> Vec<String> {
        self.header.offset_keys()
    }

    /// The text entries of `__metadata__`.
    pub fn metadata(&self) -> Option<&HashMap<String, String>> {
        self.header.metadata().as_ref()
    }

    /// The tensor called `name`.
    ///
    /// # Errors
    /// There is none, or its element type is not one we read.
    pub fn tensor(&self, name: &str) -> Result<StoredTensor<'_>> {
        let info = self.header.info(name).ok_or_else(|| {
            let problem = format!("has no tensor \"{name}\"");
            Error::file(&self.path, problem, "check that the file belongs to this model")
        })?;
        let stored = match info.dtype {
            Dtype::F64 => Stored::F64,
            Dtype::F32 => Stored::F32,
            Dtype::F16 => Stored::F16,
            Dtype::BF16 => Stored::Bf16,
            Dtype::I64 => Stored::I64,
            Dtype::I32 => Stored::I32,
            Dtype::U8 => Stored::U8,
            other => {
                let problem = format!("tensor \"{name}\" has element type {other:?}, which is not supported");
                let advice = "known: F32, F16, BF16, F64 (and I64, I32, U8 for ids and masks)";
                return Err(Error::file(&self.path, problem, advice));
            }
        };
        let (start, end) = info.data_offsets;
        let bytes = &self.mapped.bytes()[self.data_start..][start..end];
        Ok(StoredTensor { stored, shape: &info.shape, bytes })
    }
}

/// What is wrong with a header, with names and numbers. Only called for broken files, so it may parse again.
fn explain(error: &serde_json::Error, header: &[u8]) -> String {
    let json: serde_json::Value = match serde_json::from_slice(header) {
        Ok(json) => json,
        Err(error) => return format!("the header is not valid JSON: {error}"),
    };
    let mut tensors = Vec::new();
    for (name, value) in json.as_object().into_iter().flatten().filter(|(name, _)| *name != "__metadata__") {
        let text = value.get("dtype").and_then(|d| d.as_str()).unwrap_or_default();
        if !text.is_empty() && serde_json::from_value::<Dtype>(serde_json::json!(text)).is_err() {
            return format!("tensor \"{name}\" has unknown element type \"{text}\"");
        }
        let info: TensorInfo = match serde_json::from_value(value.clone()) {
            Ok(info) => info,
            Err(error) => return format!("the header's entry for tensor \"{name}\" is malformed: {error}"),
        };
        tensors.push((info.data_offsets, name, info));
    }
    tensors.sort_by_key(|(offsets, ..)| *offsets);
    let mut expected = 0;
    for ((start, end), name, info) in tensors {
        if start != expected || end < start {
            return format!(
                "tensor \"{name}\" lies at bytes {start}..{end}, expected it to start at {expected}: \
                 tensors must neither overlap nor leave gaps"
            );
        }
        expected = end;
        let elements = info.shape.iter().try_fold(1usize, |n, axis| n.checked_mul(*axis));
        let bits = elements.and_then(|n| n.checked_mul(info.dtype.bitsize()));
        if bits != (end - start).checked_mul(8) || bits.is_none() {
            let (shape, dtype) = (&info.shape, info.dtype);
            return format!(
                "tensor \"{name}\" of shape {shape:?} and type {dtype:?} has {} bytes",
                end - start
            );
        }
    }
    format!("the header is not what safetensors expects: {error}")
}

/// Writes a whole safetensors file to `out`: the header, then for each tensor in order `fill(index, writer)`, which must
/// write exactly the bytes its header promises. `path` names the file in errors. Nothing but a small buffer is held.
///
/// # Errors
/// A header that cannot be written, a failed write, or a `fill` that wrote too little or too much.
pub fn write(
    path: &Path,
    out: &mut dyn Write,
    tensors: &[TensorHeader],
    metadata: &[(&str, &str)],
    fill: &mut dyn FnMut(usize, &mut TensorWriter) -> Result<()>,
) -> Result<()> {
    let mut end = 0usize;
    let mut entries = Vec::with_capacity(tensors.len());
    let mut sizes = Vec::with_capacity(tensors.len());
    for tensor in tensors {
        let dtype = match tensor.stored {
            Stored::F64 => Dtype::F64,
            Stored::F32 => Dtype::F32,
            Stored::F16 => Dtype::F16,
            Stored::Bf16 => Dtype::BF16,
            Stored::I64 => Dtype::I64,
            Stored::I32 => Dtype::I32,
            Stored::U8 => Dtype::U8,
            Stored::Q8_0 | Stored::Q4_0 | Stored::Q4_1 => {
                return Err(Error::dtype(
                    format!("tensor \"{}\"", tensor.name),
                    "a GGUF block type",
                    "a plain type",
                ));
            }
        };
        let elements = tensor.shape.iter().try_fold(1usize, |n, axis| n.checked_mul(*axis));
        let size = elements.and_then(|n| tensor.stored.bytes(n)).and_then(|n| Some((n, end.checked_add(n)?)));
        let Some((size, next)) = size else {
            return Err(Error::shape(
                format!("tensor \"{}\"", tensor.name),
                format!("{:?}", tensor.shape),
                "a size that fits memory",
            ));
        };
        let info = TensorInfo { dtype, shape: tensor.shape.clone(), data_offsets: (end, next) };
        entries.push((tensor.name.clone(), info));
        sizes.push(size);
        end = next;
    }
    let metadata = metadata.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
    let header = Metadata::new(Some(metadata), entries).map_err(|error| {
        Error::file(path, format!("cannot describe the tensors: {error}"), "this is a defect")
    })?;
    // The same tensors make the same bytes: a hash map of metadata has no order of its own.
    let header = serde_json::to_value(&header).and_then(|mut header| {
        if let Some(metadata) = header.get_mut("__metadata__").and_then(serde_json::Value::as_object_mut) {
            metadata.sort_keys();
        }
        serde_json::to_vec(&header)
    });
    let mut header = header.map_err(|error| {
        Error::file(path, format!("cannot write the header: {error}"), "this is a defect")
    })?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut writer = TensorWriter { path, out, left: 8 + header.len(), stored: Stored::U8 };
    writer.write(&(header.len() as u64).to_le_bytes())?;
    writer.write(&header)?;
    for (index, size) in sizes.into_iter().enumerate() {
        writer.left = size;
        writer.stored = tensors[index].stored;
        fill(index, &mut writer)?;
        if writer.left != 0 {
            let name = format!("bytes of tensor \"{}\"", tensors[index].name);
            return Err(Error::shape(name, size - writer.left, size));
        }
    }
    Ok(())
}

/// Takes the bytes of one tensor, in as many pieces as is convenient.
pub struct TensorWriter<'a> {
    path: &'a Path,
    out: &'a mut dyn Write,
    left: usize,
    stored: Stored,
}

impl TensorWriter<'_> {
    /// Appends `bytes`.
    ///
    /// # Errors
    /// The disk refuses, or the tensor is already complete.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        if bytes.len() > self.left {
            return Err(Error::shape(
                "bytes of a tensor to write",
                bytes.len(),
                format!("at most {}", self.left),
            ));
        }
        self.left -= bytes.len();
        self.out.write_all(bytes).map_err(Error::io(self.path, "cannot write"))
    }

    /// Appends real numbers, rounded to the element type of the tensor's header.
    ///
    /// # Errors
    /// As [`TensorWriter::write`]; or a number that is not finite, or not in that type.
    pub fn write_values<T: Target>(&mut self, values: &[T]) -> Result<()> {
        const CHUNK: usize = 16 << 10;
        let mut bytes = Vec::with_capacity(CHUNK.min(values.len()) * self.stored.block_bytes());
        for chunk in values.chunks(CHUNK) {
            bytes.clear();
            if let Some(value) = self.stored.encode(chunk, &mut bytes) {
                return Err(Error::NotFinite {
                    what: format!(
                        "{}: a number to save as {}",
                        self.path.display(),
                        self.stored.torch_name()
                    ),
                    found: value.to_string(),
                    advice: "the run diverged, or the number is too large for that type: save as float32"
                        .into(),
                });
            }
            self.write(&bytes)?;
        }
        Ok(())
    }
}
