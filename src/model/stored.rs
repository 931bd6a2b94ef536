//! How files store a tensor's elements, and turning them into the numbers we compute with.
//!
//! Plain types and the three block formats of GGUF that are read. A block covers 32 neighbours of a row:
//!
//! ```text
//! Q8_0  f16 d, 32 x i8 q                 x = d * q
//! Q4_0  f16 d, 16 bytes of nibbles q     x = d * (q - 8)      element j: low nibble of byte j,
//! Q4_1  f16 d, f16 m, 16 bytes of q      x = d * q + m        element j + 16: high nibble of byte j
//! ```
//! (ggml's block_q8_0, block_q4_0, block_q4_1.) All are expanded when a tensor is loaded.

use half::{bf16, f16};

/// An element type in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stored {
    /// IEEE double precision.
    F64,
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
    /// 64-bit integers: token ids of the probe.
    I64,
    /// 32-bit integers.
    I32,
    /// Bytes: masks of the probe.
    U8,
    /// GGUF: 8-bit blocks.
    Q8_0,
    /// GGUF: 4-bit blocks.
    Q4_0,
    /// GGUF: 4-bit blocks with an offset.
    Q4_1,
}

/// Elements of a quantised block.
const BLOCK: usize = 32;

impl Stored {
    /// Elements that are stored together.
    pub fn block_elements(self) -> usize {
        match self {
            Stored::Q8_0 | Stored::Q4_0 | Stored::Q4_1 => BLOCK,
            _ => 1,
        }
    }

    /// Bytes of one block.
    pub fn block_bytes(self) -> usize {
        match self {
            Stored::F64 | Stored::I64 => 8,
            Stored::F32 | Stored::I32 => 4,
            Stored::F16 | Stored::Bf16 => 2,
            Stored::U8 => 1,
            Stored::Q8_0 => 2 + BLOCK,
            Stored::Q4_0 => 2 + BLOCK / 2,
            Stored::Q4_1 => 4 + BLOCK / 2,
        }
    }

    /// Bytes of `elements`, or `None` when they do not fill blocks or the number overflows.
    pub fn bytes(self, elements: usize) -> Option<usize> {
        if !elements.is_multiple_of(self.block_elements()) {
            return None;
        }
        (elements / self.block_elements()).checked_mul(self.block_bytes())
    }

    /// Whether elements are real numbers.
    pub fn is_real(self) -> bool {
        !matches!(self, Stored::I64 | Stored::I32 | Stored::U8)
    }

    /// PyTorch's name, as config.json has it. Quantised blocks are written as float32.
    pub fn torch_name(self) -> &'static str {
        match self {
            Stored::F64 => "float64",
            Stored::F16 => "float16",
            Stored::Bf16 => "bfloat16",
            Stored::I64 => "int64",
            Stored::I32 => "int32",
            Stored::U8 => "uint8",
            Stored::F32 | Stored::Q8_0 | Stored::Q4_0 | Stored::Q4_1 => "float32",
        }
    }

    /// The real type with PyTorch's name.
    pub fn from_torch_name(name: &str) -> Option<Stored> {
        [Stored::F64, Stored::F32, Stored::F16, Stored::Bf16].into_iter().find(|s| s.torch_name() == name)
    }

    /// Expands whole blocks: `bytes` must hold exactly `out.len()` elements, else nothing after the shorter is
    /// written. Integers are not expanded ([`Stored::is_real`]).
    pub fn decode<T: Target>(self, bytes: &[u8], out: &mut [T]) {
        let halves = |pair: &[u8]| f16::from_le_bytes([pair[0], pair[1]]).to_f32();
        match self {
            Stored::F64 => each::<8, T>(bytes, out, |b| T::from_f64(f64::from_le_bytes(b))),
            Stored::F32 => each::<4, T>(bytes, out, |b| T::from_f32(f32::from_le_bytes(b))),
            Stored::F16 => each::<2, T>(bytes, out, |b| T::from_f32(f16::from_le_bytes(b).to_f32())),
            Stored::Bf16 => each::<2, T>(bytes, out, |b| T::from_f32(bf16::from_le_bytes(b).to_f32())),
            Stored::I64 | Stored::I32 | Stored::U8 => {}
            Stored::Q8_0 => {
                for (block, out) in bytes.chunks_exact(34).zip(out.chunks_exact_mut(BLOCK)) {
                    let d = halves(&block[..2]);
                    for (out, q) in out.iter_mut().zip(&block[2..]) {
                        *out = T::from_f32(d * f32::from(*q as i8));
                    }
                }
            }
            Stored::Q4_0 => {
                for (block, out) in bytes.chunks_exact(18).zip(out.chunks_exact_mut(BLOCK)) {
                    let d = halves(&block[..2]);
                    nibbles(&block[2..], out, |q| d * (q - 8.0));
                }
            }
            Stored::Q4_1 => {
                for (block, out) in bytes.chunks_exact(20).zip(out.chunks_exact_mut(BLOCK)) {
                    let (d, m) = (halves(&block[..2]), halves(&block[2..4]));
                    nibbles(&block[4..], out, |q| d * q + m);
                }
            }
        }
    }

    /// Appends `values` in this plain real type. Returns the first that is not finite in it, if any.
    pub fn encode<T: Target>(self, values: &[T], bytes: &mut Vec<u8>) -> Option<f64> {
        let mut wrong = None;
        for value in values.iter().map(|value| value.to_f64()) {
            let finite = match self {
                Stored::F64 => {
                    bytes.extend(value.to_le_bytes());
                    value.is_finite()
                }
                Stored::F16 => {
                    let rounded = f16::from_f64(value);
                    bytes.extend(rounded.to_le_bytes());
                    rounded.is_finite()
                }
                Stored::Bf16 => {
                    let rounded = crate::base::dtype::bf16_of_f64(value);
                    bytes.extend(rounded.to_le_bytes());
                    rounded.is_finite()
                }
                _ => {
                    let rounded = value as f32;
                    bytes.extend(rounded.to_le_bytes());
                    rounded.is_finite()
                }
            };
            if !finite && wrong.is_none() {
                wrong = Some(value);
            }
        }
        wrong
    }
}

/// Fixed-size elements one by one.
fn each<const N: usize, T>(bytes: &[u8], out: &mut [T], value: impl Fn([u8; N]) -> T) {
    let (elements, _) = bytes.as_chunks::<N>();
    for (out, element) in out.iter_mut().zip(elements) {
        *out = value(*element);
    }
}

/// The 32 nibbles of a 4-bit block in ggml's order: all low ones, then all high ones.
fn nibbles<T: Target>(bytes: &[u8], out: &mut [T], value: impl Fn(f32) -> f32) {
    let (low, high) = out.split_at_mut(BLOCK / 2);
    for ((low, high), byte) in low.iter_mut().zip(high).zip(bytes) {
        *low = T::from_f32(value(f32::from(byte & 15)));
        *high = T::from_f32(value(f32::from(byte >> 4)));
    }
}

/// A type that weights are loaded into. Rounding is to nearest, ties to even.
pub trait Target: Copy + Default + Send + Sync + 'static {
    /// From a single-precision value.
    fn from_f32(value: f32) -> Self;
    /// From a double-precision value.
    fn from_f64(value: f64) -> Self;
    /// As a double, for checks and messages.
    fn to_f64(self) -> f64;
    /// Neither NaN nor infinite.
    fn finite(self) -> bool;
}

impl Target for f32 {
    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        value
    }
    #[inline(always)]
    fn from_f64(value: f64) -> Self {
        value as f32
    }
    fn to_f64(self) -> f64 {
        self.into()
    }
    #[inline(always)]
    fn finite(self) -> bool {
        self.is_finite()
    }
}

impl Target for f64 {
    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        value.into()
    }
    #[inline(always)]
    fn from_f64(value: f64) -> Self {
        value
    }
    fn to_f64(self) -> f64 {
        self
    }
    #[inline(always)]
    fn finite(self) -> bool {
        self.is_finite()
    }
}

impl Target for bf16 {
    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        bf16::from_f32(value)
    }
    #[inline(always)]
    fn from_f64(value: f64) -> Self {
        crate::base::dtype::bf16_of_f64(value)
    }
    fn to_f64(self) -> f64 {
        self.into()
    }
    #[inline(always)]
    fn finite(self) -> bool {
        self.is_finite()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantised_blocks_expand_to_hand_computed_values() {
        // d = 0.5 (f16 0x3800), m = -1.25 (f16 0xbd00).
        let mut q8 = vec![0x00, 0x38];
        q8.extend((0..32).map(|i| (i * 8 - 128) as i8 as u8));
        let mut out = [0f32; 32];
        Stored::Q8_0.decode(&q8, &mut out);
        let expected: Vec<f32> = (0..32).map(|i| (i * 4 - 64) as f32).collect();
        assert_eq!(out.as_slice(), expected);

        let packed: Vec<u8> = (0..16).map(|j| j | ((15 - j) << 4)).collect();
        let q4_0: Vec<u8> = [vec![0x00, 0x38], packed.clone()].concat();
        Stored::Q4_0.decode(&q4_0, &mut out);
        assert_eq!((out[0], out[1], out[15], out[16], out[31]), (-4.0, -3.5, 3.5, 3.5, -4.0));

        let q4_1: Vec<u8> = [vec![0x00, 0x38, 0x00, 0xbd], packed].concat();
        Stored::Q4_1.decode(&q4_1, &mut out);
        assert_eq!((out[0], out[1], out[15], out[16], out[31]), (-1.25, -0.75, 6.25, 6.25, -1.25));
    }

    #[test]
    fn sixteen_bit_types_round_trip_every_finite_value() {
        for bits in 0..=u16::MAX {
            let mut out = [0f32];
            Stored::F16.decode(&bits.to_le_bytes(), &mut out);
            if out[0].is_finite() {
                assert_eq!(f16::from_f32(out[0]).to_bits(), bits);
            }
            Stored::Bf16.decode(&bits.to_le_bytes(), &mut out);
            if out[0].is_finite() {
                assert_eq!(bf16::from_f32(out[0]).to_bits(), bits);
                let mut same = [bf16::ZERO];
                Stored::Bf16.decode(&bits.to_le_bytes(), &mut same);
                assert_eq!(same[0].to_bits(), bits);
            }
        }
        let mut out = [0f32; 4];
        // 2^-24 is the smallest subnormal half, 65504 the largest; 0x3f81 = 1 + 2^-7 in bfloat16.
        Stored::F16.decode(&[0x01, 0x00, 0xff, 0x7b, 0x00, 0x3c, 0x00, 0xc2], &mut out);
        assert_eq!(out, [2f32.powi(-24), 65504.0, 1.0, -3.0]);
        Stored::Bf16.decode(&[0x81, 0x3f], &mut out[..1]);
        assert_eq!(out[0], 1.0 + 2f32.powi(-7));
    }

    #[test]
    fn sizes() {
        assert_eq!(Stored::Q4_1.bytes(64), Some(40));
        assert_eq!(Stored::Q4_1.bytes(65), None);
        assert_eq!(Stored::F64.bytes(usize::MAX), None);
    }
}
