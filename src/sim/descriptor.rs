//! Matrix descriptors: where the operands of `wgmma` lie in shared memory.
//!
//! A descriptor is 64 bits, lengths and addresses in units of 16 bytes: address in bits 0-13, leading distance in
//! 16-29, stride distance in 32-45, base offset in 49-51, mode of swizzling in 62-63 (PTX ISA, "Matrix Descriptor
//! Format"). Known here is mode 1, rows of 128 bytes. Eight such rows are an atom of 1024 bytes, within which the 16-byte
//! chunk that belongs at place c of row r lies at place c ^ r: bits 4-6 of an address are XORed with bits 7-9.
//!
//! ```text
//! K-major (a row is one outer index, 64 values of k)        outer o, k in bytes: (o / 8) stride + (o % 8) 128 + 2 k
//! outer-major (transposed; a row is one k, 64 outer)        (o / 64) lead + (k / 8) stride + (k % 8) 128 + 2 (o % 64)
//! ```
//!
//! The leading distance of a K-major operand means nothing, as its 16 values of k lie within one row.

use super::fault::{Fault, Kind, Result};

/// Bytes of a row, of a chunk, and of the atom that swizzling permutes.
const ROW: u32 = 128;
pub(super) const CHUNK: u32 = 16;
const ATOM: u32 = 1024;
/// Values of k of an instruction.
pub(super) const DEPTH: usize = 16;

/// An operand of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Operand {
    start: u32,
    lead: u32,
    stride: u32,
    /// Rows of A or columns of B.
    outer: usize,
    transposed: bool,
}

impl Operand {
    /// What a descriptor says of an operand of `outer` rows (of A) or columns (of B).
    ///
    /// # Errors
    /// Another mode of swizzling, a base offset, and addresses that do not fit the mode.
    pub fn of(descriptor: u64, outer: usize, transposed: bool) -> Result<Operand> {
        let field = |from: u32| (descriptor >> from & 0x3fff) as u32 * CHUNK;
        let (start, lead, stride) = (field(0), field(16), field(32));
        let mode = ["no swizzling", "128 bytes", "64 bytes", "32 bytes"][(descriptor >> 62) as usize];
        if descriptor >> 62 != 1 {
            return Err(Fault::new(
                Kind::UnknownInstruction,
                format!(
                    "the simulator does not know swizzling mode {} ({mode}) of matrix descriptor {descriptor:#018x}",
                    descriptor >> 62
                ),
                "lay the operand out in rows of 128 bytes (mode 1 in bits 62-63), or teach the mode to src/sim/descriptor.rs",
            ));
        }
        let refuse = |problem: String| {
            let advice = "let atoms of 8 rows of 128 bytes begin at multiples of 1024 bytes, and step along k by 32 bytes \
                          (K-major) or by whole atoms (transposed)";
            Err(Fault::new(Kind::Misaligned, problem, advice).at_address(start.into()))
        };
        if descriptor >> 49 & 7 != 0 {
            return refuse(format!(
                "a matrix descriptor with base offset {}; the simulator knows 0 alone",
                descriptor >> 49 & 7
            ));
        }
        let within = start % ATOM;
        if within >= ROW {
            return refuse(format!("a matrix descriptor whose first row is row {} of an atom", within / ROW));
        }
        let width = 2 * if transposed { outer.min(64) } else { DEPTH } as u32;
        if within + width > ROW {
            return refuse(format!(
                "a matrix descriptor whose rows begin at byte {within} of 128 and hold {width} bytes"
            ));
        }
        let operand = Operand { start, lead, stride, outer, transposed };
        let rows = if transposed { DEPTH } else { outer };
        if rows > 8 && stride % ATOM != 0 {
            return refuse(format!("a matrix descriptor whose atoms lie {stride} bytes apart"));
        }
        if transposed && outer > 64 && lead % ATOM != 0 {
            return refuse(format!("a matrix descriptor whose 64 columns lie {lead} bytes apart"));
        }
        Ok(operand)
    }

    /// Where each chunk of eight values lies. K-major: two chunks for each outer index; transposed: `outer / 8` chunks
    /// for each k.
    pub fn chunks(&self) -> impl Iterator<Item = u32> + '_ {
        let across = if self.transposed { self.outer / 8 } else { DEPTH / 8 };
        let rows = if self.transposed { DEPTH } else { self.outer };
        (0..rows as u32).flat_map(move |row| {
            (0..across as u32).map(move |chunk| {
                // Only outer-major rows have more chunks than an atom is wide.
                let (group, chunk) = (chunk / 8, chunk % 8);
                let at =
                    self.start + group * self.lead + row / 8 * self.stride + row % 8 * ROW + chunk * CHUNK;
                at ^ at >> 3 & 0x70
            })
        })
    }

    /// Outer index and k of element `i` of chunk `chunk`, in the order of [`Operand::chunks`].
    pub fn place(&self, chunk: usize, i: usize) -> (usize, usize) {
        if self.transposed {
            let across = self.outer / 8;
            (chunk % across * 8 + i, chunk / across)
        } else {
            (chunk / 2, chunk % 2 * 8 + i)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(start: u64, lead: u64, stride: u64, mode: u64) -> u64 {
        let units = |bytes: u64| bytes / 16;
        units(start) | units(lead) << 16 | units(stride) << 32 | mode << 62
    }

    /// Byte of one element: the formulas of the module and the swizzle, spelled out.
    fn byte(start: u32, lead: u32, stride: u32, outer: u32, k: u32, transposed: bool) -> u32 {
        let at = start
            + if transposed {
                outer / 64 * lead + k / 8 * stride + k % 8 * 128 + outer % 64 * 2
            } else {
                outer / 8 * stride + outer % 8 * 128 + k * 2
            };
        let (row, chunk) = (at / 128 % 8, at / 16 % 8);
        at - chunk * 16 + (chunk ^ row) * 16
    }

    #[test]
    fn every_element_lies_where_the_formula_says() {
        for (start, lead, stride, outer, transposed) in [
            (1024, 16, 1024, 64, false),
            (2048 + 96, 0, 2048, 24, false),
            (0, 8192, 1024, 136, true),
            (1024, 8192, 1024, 64, true),
            (32, 0, 4096, 48, true),
        ] {
            let word = descriptor(start.into(), lead.into(), stride.into(), 1);
            let operand = Operand::of(word, outer, transposed).unwrap();
            let chunks: Vec<u32> = operand.chunks().collect();
            assert_eq!(chunks.len(), 2 * outer);
            let mut seen = vec![false; outer * DEPTH];
            for (chunk, &at) in chunks.iter().enumerate() {
                for i in 0..8 {
                    let (o, k) = operand.place(chunk, i);
                    let wanted = byte(start, lead, stride, o as u32, k as u32, transposed);
                    assert_eq!(at + 2 * i as u32, wanted, "({o}, {k}) of {word:#x}");
                    seen[o * DEPTH + k] = true;
                }
            }
            assert!(seen.iter().all(|&seen| seen));
        }
    }

    #[test]
    fn what_does_not_fit_the_mode_is_refused() {
        let said = |word, outer, transposed| match Operand::of(word, outer, transposed) {
            Err(fault) => fault.to_string(),
            Ok(operand) => panic!("{operand:?}"),
        };
        for (mode, name) in [(0, "mode 0 (no swizzling)"), (2, "mode 2 (64 bytes)"), (3, "mode 3 (32 bytes)")]
        {
            assert!(said(descriptor(0, 16, 1024, mode), 64, false).contains(name), "{name}");
        }
        assert!(said(descriptor(0, 16, 1024, 1) | 3 << 49, 64, false).contains("base offset 3"));
        assert!(said(descriptor(256, 16, 1024, 1), 64, false).contains("row 2 of an atom"));
        assert!(said(descriptor(112, 16, 1024, 1), 64, false).contains("begin at byte 112"));
        assert!(said(descriptor(32, 8192, 1024, 1), 64, true).contains("begin at byte 32"));
        assert!(said(descriptor(0, 16, 512, 1), 16, false).contains("512 bytes apart"));
        assert!(said(descriptor(0, 512, 1024, 1), 72, true).contains("64 columns lie 512 bytes"));
        assert!(Operand::of(descriptor(0, 512, 512, 1), 8, false).is_ok(), "neither distance is used");
    }
}
