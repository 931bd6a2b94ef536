//! A PTX file, understood: variables, entries, and the instructions of each entry in the form that warps run.

use super::decode::Code;
use super::fault::{Fault, Kind, Result};
use super::parse::parse;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// Types of PTX.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Type {
    Pred,
    B8,
    U8,
    S8,
    B16,
    U16,
    S16,
    F16,
    Bf16,
    B32,
    U32,
    S32,
    F32,
    F16x2,
    Bf16x2,
    B64,
    U64,
    S64,
    F64,
}

impl Type {
    /// Bytes of one value.
    pub fn bytes(self) -> u32 {
        match self {
            Type::Pred | Type::B8 | Type::U8 | Type::S8 => 1,
            Type::B16 | Type::U16 | Type::S16 | Type::F16 | Type::Bf16 => 2,
            Type::B32 | Type::U32 | Type::S32 | Type::F32 | Type::F16x2 | Type::Bf16x2 => 4,
            Type::B64 | Type::U64 | Type::S64 | Type::F64 => 8,
        }
    }

    /// The type that a name without its dot stands for.
    pub fn named(name: &str) -> Option<Type> {
        Some(match name {
            "pred" => Type::Pred,
            "b8" => Type::B8,
            "u8" => Type::U8,
            "s8" => Type::S8,
            "b16" => Type::B16,
            "u16" => Type::U16,
            "s16" => Type::S16,
            "f16" => Type::F16,
            "bf16" => Type::Bf16,
            "b32" => Type::B32,
            "u32" => Type::U32,
            "s32" => Type::S32,
            "f32" => Type::F32,
            "f16x2" => Type::F16x2,
            "bf16x2" => Type::Bf16x2,
            "b64" => Type::B64,
            "u64" => Type::U64,
            "s64" => Type::S64,
            "f64" => Type::F64,
            _ => return None,
        })
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&format!(".{self:?}").to_lowercase())
    }
}

/// A parameter of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Its name in the file.
    pub name: String,
    /// Type of an element.
    pub ty: Type,
    /// Bytes: more than the type's for a structure passed by value.
    pub bytes: u32,
    /// Offset in the block of parameters.
    pub offset: u32,
}

/// A kernel.
#[derive(Debug)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Its parameters in order.
    pub parameters: Vec<Parameter>,
    /// Bytes of the whole block of parameters.
    pub parameter_bytes: u32,
    /// `.maxntid`: the largest block it may be launched with.
    pub maxntid: Option<[u32; 3]>,
    /// `.reqntid`: the only block it may be launched with.
    pub reqntid: Option<[u32; 3]>,
    /// Bytes of static shared memory.
    pub static_shared: u32,
    pub(super) code: Code,
}

/// A variable of a file: `.global` or `.const`.
#[derive(Debug)]
pub(super) struct Variable {
    pub name: String,
    pub bytes: u64,
    pub initial: Vec<u8>,
    /// Addresses of variables in the initial value: where, which variable, and what is added.
    pub addresses: Vec<(usize, usize, u64)>,
}

/// A PTX file.
#[derive(Debug)]
pub struct Program {
    /// No two programs of a process have the same; machines keep variables by it.
    pub(super) id: u64,
    file: String,
    version: (u32, u32),
    target: String,
    entries: Vec<Entry>,
    pub(super) variables: Vec<Variable>,
}

impl Program {
    /// Understands the text of a PTX file; `file` is its name in messages.
    ///
    /// # Errors
    /// Text that is no PTX, and any instruction form that the simulator does not know, by file and line.
    pub fn parse(file: &str, text: &str) -> Result<Program> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let parsed = parse(file, text)?;
        Ok(Program {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            file: file.to_string(),
            version: parsed.version,
            target: parsed.target,
            entries: parsed.entries,
            variables: parsed.variables,
        })
    }

    /// Version of PTX that the file states.
    pub fn version(&self) -> (u32, u32) {
        self.version
    }

    /// Target that the file states, e.g. `sm_80`.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// The file's name.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// All entries, in the order of the file.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The entry of that name.
    pub fn entry(&self, name: &str) -> Result<&Entry> {
        self.entries.iter().find(|entry| entry.name == name).ok_or_else(|| {
            let names: Vec<&str> = self.entries.iter().map(|entry| entry.name.as_str()).collect();
            Fault::text(
                Kind::Launch,
                &self.file,
                0,
                format!("no entry `{name}`; it has: {}", names.join(", ")),
                "launch one of the entries of the file, or compile its source again",
            )
        })
    }
}
