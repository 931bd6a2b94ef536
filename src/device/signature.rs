//! What an entry of a PTX file takes, read from the file's own text, so that both launchers refuse a wrong argument
//! before anything runs.
//!
//! Only headers are read: `.version`, `.target`, and for each `.entry` its parameters and its limits. What the code
//! inside does is the driver's and the simulator's business.

use super::{Argument, Grid, Kernel};
use crate::base::{Error, Result};
use std::collections::HashMap;

/// Type of a parameter. PTX does not tell signed from unsigned here, so neither do we.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParameterType {
    /// `.u32`, `.s32`, `.b32`.
    Word,
    /// `.u64`, `.s64`, `.b64`: an address or a count.
    Long,
    /// `.f32`.
    Float,
}

impl ParameterType {
    fn bytes(self) -> usize {
        match self {
            ParameterType::Word | ParameterType::Float => 4,
            ParameterType::Long => 8,
        }
    }

    fn name(self) -> &'static str {
        match self {
            ParameterType::Word => ".u32",
            ParameterType::Long => ".u64",
            ParameterType::Float => ".f32",
        }
    }
}

/// One parameter of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Its name in the PTX.
    pub name: String,
    /// Its type.
    pub of: ParameterType,
    /// Where it lies in the packed parameters.
    pub offset: usize,
}

/// What one entry takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// The parameters, in order.
    pub parameters: Vec<Parameter>,
    /// Most threads of a block (`.maxntid` or `.reqntid`), where the entry says so.
    pub threads: Option<[u32; 3]>,
    /// Bytes of all parameters together.
    pub bytes: usize,
}

/// The headers of one PTX file.
#[derive(Clone, Debug)]
pub struct Signatures {
    /// `.version`, e.g. (8, 1).
    pub version: (u32, u32),
    /// `.target`, e.g. `sm_80` or `sm_90a`.
    pub target: String,
    entries: HashMap<String, Signature>,
}

impl Signatures {
    /// Reads the headers of the file `ptx/<stem>.ptx`.
    ///
    /// # Errors
    /// A file without its first lines, or an entry whose parameters cannot be read or cannot be passed.
    pub fn read(stem: &str, ptx: &str) -> Result<Signatures> {
        let broken = |what: String| {
            Error::device(
                format!("ptx/{stem}.ptx: {what}"),
                "the file is damaged: make it again with tools/ptx.py, or install latch again",
            )
        };
        let text = without_comments(ptx);
        let version = directive(&text, ".version")
            .and_then(|v| v.split_once('.').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?))))
            .ok_or_else(|| broken("no `.version` of two numbers at its head".into()))?;
        let target = directive(&text, ".target")
            .and_then(|t| t.split(',').next())
            .filter(|t| t.strip_prefix("sm_").is_some_and(|n| n.starts_with(|c: char| c.is_ascii_digit())))
            .map(String::from)
            .ok_or_else(|| broken("no `.target sm_NN` at its head".into()))?;
        let mut entries = HashMap::new();
        let mut rest = text.as_str();
        while let Some(at) = rest.find(".entry") {
            rest = &rest[at + ".entry".len()..];
            let body = rest.find('{').ok_or_else(|| broken("an entry without a body".into()))?;
            let head = &rest[..body];
            let name =
                head.split(|c: char| c == '(' || c.is_whitespace()).find(|w| !w.is_empty()).unwrap_or("");
            let signature = entry(head).map_err(|what| broken(format!("entry `{name}`: {what}")))?;
            if !rest[body..].contains('}') {
                return Err(broken(format!("entry `{name}` does not end: the file is cut off")));
            }
            entries.insert(name.to_string(), signature);
            rest = &rest[body..];
        }
        Ok(Signatures { version, target, entries })
    }

    /// What `kernel`'s entry takes.
    ///
    /// # Errors
    /// The file has no such entry.
    pub fn of(&self, kernel: &Kernel) -> Result<&Signature> {
        self.entries.get(kernel.entry).ok_or_else(|| {
            let mut known: Vec<&str> = self.entries.keys().map(String::as_str).collect();
            known.sort_unstable();
            let known = if known.is_empty() { "no entry at all".into() } else { known.join(", ") };
            Error::device(
                format!("ptx/{}.ptx has no entry `{}`; it holds {known}", kernel.stem, kernel.entry),
                "the Rust side and the kernel's file do not belong together: make the PTX again with tools/ptx.py",
            )
        })
    }
}

impl Signature {
    /// Packs `arguments` as the entry wants them.
    ///
    /// # Errors
    /// A number or a type of arguments that the entry does not take.
    pub fn pack(&self, kernel: &Kernel, arguments: &[Argument]) -> Result<Vec<u8>> {
        if arguments.len() != self.parameters.len() {
            return Err(mismatch(format!(
                "kernel `{}`: {} arguments, its PTX takes {}",
                kernel.entry,
                arguments.len(),
                self.parameters.len()
            )));
        }
        let mut packed = vec![0u8; self.bytes];
        for (index, (argument, parameter)) in arguments.iter().zip(&self.parameters).enumerate() {
            let (found, bytes): (_, &[u8]) = match argument {
                Argument::Address(value) | Argument::U64(value) => {
                    (ParameterType::Long, &value.to_le_bytes())
                }
                Argument::U32(value) => (ParameterType::Word, &value.to_le_bytes()),
                Argument::I32(value) => (ParameterType::Word, &value.to_le_bytes()),
                Argument::F32(value) => (ParameterType::Float, &value.to_le_bytes()),
            };
            if found != parameter.of {
                return Err(mismatch(format!(
                    "kernel `{}`, argument {index} ({}): found {argument:?}, which is {}, its PTX takes {}",
                    kernel.entry,
                    parameter.name,
                    found.name(),
                    parameter.of.name()
                )));
            }
            packed[parameter.offset..parameter.offset + bytes.len()].copy_from_slice(bytes);
        }
        Ok(packed)
    }

    /// Checks that a block of `grid` is no larger than the entry was compiled for.
    pub fn check_block(&self, kernel: &Kernel, grid: Grid) -> Result<()> {
        let Some(most) = self.threads else { return Ok(()) };
        let (found, bound) = (threads(grid.threads), threads(most));
        if found > bound {
            return Err(mismatch(format!(
                "kernel `{}`: a block of {found} threads {:?}, it was compiled for at most {bound} (.maxntid)",
                kernel.entry, grid.threads
            )));
        }
        Ok(())
    }
}

/// Number of threads or blocks of three extents.
pub(super) fn threads(of: [u32; 3]) -> u64 {
    of.iter().map(|&n| u64::from(n)).product()
}

fn mismatch(problem: String) -> Error {
    Error::device(
        problem,
        "this is a fault of the operation's GPU arm in src/ops: its arguments and the kernel's must agree",
    )
}

/// The text with `//` and `/* */` comments replaced by blanks.
fn without_comments(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('/') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        if rest.starts_with("//") {
            rest = &rest[rest.find('\n').unwrap_or(rest.len())..];
        } else if rest.starts_with("/*") {
            rest = rest.find("*/").map_or("", |end| &rest[end + 2..]);
            out.push(' ');
        } else {
            out.push('/');
            rest = &rest[1..];
        }
    }
    out.push_str(rest);
    out
}

/// The word after a directive.
fn directive<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let at = text.find(name)?;
    text[at + name.len()..].split_whitespace().next()
}

/// Parameters and limits from what stands between `.entry` and the body's brace.
fn entry(head: &str) -> std::result::Result<Signature, String> {
    let (mut parameters, mut bytes, mut limits) = (Vec::new(), 0usize, head);
    if let Some(open) = head.find('(') {
        let close = head.rfind(')').ok_or("its list of parameters does not end")?;
        limits = head.get(close..).unwrap_or("");
        let list = head.get(open + 1..close).ok_or("its list of parameters does not end")?;
        for text in list.split(',').map(str::trim).filter(|text| !text.is_empty()) {
            let words: Vec<&str> = text.split_whitespace().collect();
            let name = words.last().copied().unwrap_or("").to_string();
            let of = match words.get(1).copied() {
                Some(".u32" | ".s32" | ".b32") => ParameterType::Word,
                Some(".u64" | ".s64" | ".b64") => ParameterType::Long,
                Some(".f32") => ParameterType::Float,
                _ => {
                    return Err(format!(
                        "parameter `{text}` is neither a 32-bit or 64-bit number nor an f32"
                    ));
                }
            };
            if words[0] != ".param" || name.starts_with('.') || name.contains('[') {
                return Err(format!("parameter `{text}` cannot be passed by value"));
            }
            let offset = bytes.next_multiple_of(of.bytes());
            bytes = offset + of.bytes();
            parameters.push(Parameter { name, of, offset });
        }
    }
    let mut threads = None;
    for name in [".maxntid", ".reqntid"] {
        let Some(at) = limits.find(name) else { continue };
        let mut extents = [1u32; 3];
        let numbers = limits[at + name.len()..].split('.').next().unwrap_or("");
        for (extent, number) in extents.iter_mut().zip(numbers.split(',')) {
            *extent = number.trim().parse().map_err(|_| format!("`{name}` is not followed by numbers"))?;
        }
        threads = Some(extents);
    }
    Ok(Signature { parameters, threads, bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PTX: &str = "// a comment with .version 9.9
.version 8.1
.target sm_80, debug
.address_size 64
/* .entry not_here( .param .u32 a ) {} */
.visible .entry mixed(
\t.param .u64 mixed_param_0,
\t.param .f32 mixed_param_1,
\t.param .u64 .ptr .global .align 16 mixed_param_2,
\t.param .u32 mixed_param_3
)
.maxntid 256, 1, 1
.minnctapersm 2
{ ret; }
.visible .entry bare()
{ ret; }
";
    static MIXED: Kernel = Kernel::new("t", PTX, "mixed");
    static BARE: Kernel = Kernel::new("t", PTX, "bare");
    static MISSING: Kernel = Kernel::new("t", PTX, "not_here");

    fn arguments() -> [Argument; 4] {
        [Argument::Address(0x1122), Argument::F32(1.5), Argument::U64(7), Argument::I32(-1)]
    }

    #[test]
    fn headers_are_read() {
        let file = Signatures::read("t", PTX).unwrap();
        assert_eq!((file.version, file.target.as_str()), ((8, 1), "sm_80"));
        let hopper = Signatures::read("t", &PTX.replace("sm_80, debug", "sm_90a")).unwrap();
        assert_eq!(hopper.target, "sm_90a");
        let mixed = file.of(&MIXED).unwrap();
        assert_eq!(mixed.threads, Some([256, 1, 1]));
        assert_eq!(mixed.parameters.iter().map(|p| p.offset).collect::<Vec<_>>(), [0, 8, 16, 24]);
        assert_eq!(mixed.bytes, 28);
        let bare = file.of(&BARE).unwrap();
        assert!(bare.parameters.is_empty() && bare.threads.is_none() && bare.bytes == 0);
    }

    #[test]
    fn packing_follows_ptx_alignment() {
        let file = Signatures::read("t", PTX).unwrap();
        let packed = file.of(&MIXED).unwrap().pack(&MIXED, &arguments()).unwrap();
        let mut expected = Vec::new();
        expected.extend(0x1122u64.to_le_bytes());
        expected.extend(1.5f32.to_le_bytes());
        expected.extend([0; 4]);
        expected.extend(7u64.to_le_bytes());
        expected.extend((-1i32).to_le_bytes());
        assert_eq!(packed, expected);
    }

    #[test]
    fn wrong_arguments_are_named() {
        let file = Signatures::read("t", PTX).unwrap();
        let mixed = file.of(&MIXED).unwrap();
        let message = mixed.pack(&MIXED, &arguments()[..3]).unwrap_err().to_string();
        assert!(message.contains("kernel `mixed`: 3 arguments, its PTX takes 4"), "{message}");
        let mut wrong = arguments();
        wrong[1] = Argument::U32(3);
        let message = mixed.pack(&MIXED, &wrong).unwrap_err().to_string();
        assert!(message.contains("argument 1 (mixed_param_1): found U32(3), which is .u32"), "{message}");
        assert!(message.contains("takes .f32"), "{message}");
    }

    #[test]
    fn a_missing_entry_lists_those_there() {
        let message = Signatures::read("t", PTX).unwrap().of(&MISSING).unwrap_err().to_string();
        assert!(message.contains("no entry `not_here`; it holds bare, mixed"), "{message}");
    }

    #[test]
    fn damaged_files_are_refused() {
        for (text, says) in [
            ("", "no `.version`"),
            (".version 8.1\n", "no `.target"),
            (".version 8.1\n.target sm_a", "no `.target"),
            (".version eight\n.target sm_80", "no `.version`"),
            (".version 8.1\n.target sm_80\n.visible .entry a(.param .u32 a", "an entry without a body"),
            (".version 8.1\n.target sm_80\n.visible .entry a(.param .u32 a)\n{ ret;", "is cut off"),
            (".version 8.1\n.target sm_80\n.visible .entry a(.param .align 8 .b8 a[16])\n{}", "neither"),
        ] {
            let message = Signatures::read("t", text).unwrap_err().to_string();
            assert!(message.contains("ptx/t.ptx") && message.contains(says), "{says}: {message}");
        }
    }

    #[test]
    fn blocks_beyond_the_launch_bounds_are_refused() {
        let file = Signatures::read("t", PTX).unwrap();
        let mixed = file.of(&MIXED).unwrap();
        assert!(mixed.check_block(&MIXED, Grid::linear(1, 256)).is_ok());
        let message = mixed.check_block(&MIXED, Grid::linear(1, 257)).unwrap_err().to_string();
        assert!(message.contains("257 threads") && message.contains("at most 256"), "{message}");
    }
}
