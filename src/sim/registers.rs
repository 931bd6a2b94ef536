//! The registers of a warp: 32 lanes of each, side by side, so that loops over lanes become vector instructions.
//!
//! Three banks: words (types of up to 32 bits; shorter values are zero-extended), double words, and predicates (one
//! bit a lane). Immediates, addresses of variables and special registers stand in registers too, filled before the
//! warp starts, so that every operand is an index.

use super::access::LANES;
use super::instruction::Bank;

/// All registers of a warp.
#[derive(Clone, Debug, Default)]
pub(super) struct Registers {
    pub words: Vec<[u32; LANES]>,
    pub doubles: Vec<[u64; LANES]>,
    pub predicates: Vec<u32>,
}

/// Operands of an instruction that works lane by lane: indices of registers, in the banks its types name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Operands {
    pub d: u32,
    pub a: u32,
    pub b: u32,
    pub c: u32,
    pub e: u32,
    /// Rounding and other modifiers, for instructions that read them as they run.
    pub mode: u32,
}

/// An instruction that works lane by lane: what it does, given registers, operands and active lanes, and the banks
/// of its result and its sources.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    pub call: fn(&mut Registers, &Operands, u32),
    pub banks: &'static Signature,
}

/// Banks of a result and of one to four sources.
#[derive(Debug)]
pub(super) struct Signature {
    pub result: Bank,
    pub sources: &'static [Bank],
}

/// A value that a lane of a register can hold.
pub(super) trait Lane: Copy {
    const BANK: Bank;
    type Row<'a>: Copy;
    type Out: Copy;
    fn row(registers: &Registers, index: u32) -> Self::Row<'_>;
    fn at(row: &Self::Row<'_>, lane: usize) -> Self;
    fn out() -> Self::Out;
    fn set(out: &mut Self::Out, lane: usize, value: Self);
    fn put(registers: &mut Registers, index: u32, out: &Self::Out, active: u32);
}

macro_rules! lane {
    ($bank:ident $name:ident: $word:ty, $($type:ty: |$from:ident| $get:expr, |$to:ident| $put:expr;)*) => {$(
        impl Lane for $type {
            const BANK: Bank = Bank::$name;
            type Row<'a> = &'a [$word; LANES];
            type Out = [$word; LANES];
            #[inline(always)]
            fn row(registers: &Registers, index: u32) -> Self::Row<'_> {
                &registers.$bank[index as usize]
            }
            #[inline(always)]
            fn at(row: &Self::Row<'_>, lane: usize) -> Self {
                let $from = row[lane];
                $get
            }
            #[inline(always)]
            fn out() -> Self::Out {
                [0; LANES]
            }
            #[inline(always)]
            fn set(out: &mut Self::Out, lane: usize, value: Self) {
                let $to = value;
                out[lane] = $put;
            }
            #[inline(always)]
            fn put(registers: &mut Registers, index: u32, out: &Self::Out, active: u32) {
                let row = &mut registers.$bank[index as usize];
                if active == u32::MAX {
                    *row = *out;
                } else {
                    for lane in 0..LANES {
                        row[lane] = if active & 1 << lane != 0 { out[lane] } else { row[lane] };
                    }
                }
            }
        }
    )*};
}

lane! { words Words: u32,
    u32: |x| x, |x| x;
    i32: |x| x as i32, |x| x as u32;
    f32: |x| f32::from_bits(x), |x| x.to_bits();
    u16: |x| x as u16, |x| u32::from(x);
    i16: |x| x as i16, |x| u32::from(x as u16);
    u8: |x| x as u8, |x| u32::from(x);
    i8: |x| x as i8, |x| x as i32 as u32;
}
lane! { doubles Doubles: u64,
    u64: |x| x, |x| x;
    i64: |x| x as i64, |x| x as u64;
    f64: |x| f64::from_bits(x), |x| x.to_bits();
}

impl Lane for bool {
    const BANK: Bank = Bank::Predicates;
    type Row<'a> = u32;
    type Out = u32;
    #[inline(always)]
    fn row(registers: &Registers, index: u32) -> u32 {
        registers.predicates[index as usize]
    }
    #[inline(always)]
    fn at(row: &u32, lane: usize) -> bool {
        row & 1 << lane != 0
    }
    #[inline(always)]
    fn out() -> u32 {
        0
    }
    #[inline(always)]
    fn set(out: &mut u32, lane: usize, value: bool) {
        *out |= u32::from(value) << lane;
    }
    #[inline(always)]
    fn put(registers: &mut Registers, index: u32, out: &u32, active: u32) {
        let row = &mut registers.predicates[index as usize];
        *row = *row & !active | out & active;
    }
}

impl Registers {
    /// d = f(a) in every active lane.
    #[inline(always)]
    pub fn unary<A: Lane, R: Lane>(&mut self, o: &Operands, active: u32, f: impl Fn(A) -> R) {
        let a = A::row(self, o.a);
        let mut out = R::out();
        for lane in 0..LANES {
            R::set(&mut out, lane, f(A::at(&a, lane)));
        }
        R::put(self, o.d, &out, active);
    }

    /// d = f(a, b) in every active lane.
    #[inline(always)]
    pub fn binary<A: Lane, B: Lane, R: Lane>(&mut self, o: &Operands, active: u32, f: impl Fn(A, B) -> R) {
        let (a, b) = (A::row(self, o.a), B::row(self, o.b));
        let mut out = R::out();
        for lane in 0..LANES {
            R::set(&mut out, lane, f(A::at(&a, lane), B::at(&b, lane)));
        }
        R::put(self, o.d, &out, active);
    }

    /// d = f(a, b, c) in every active lane.
    #[inline(always)]
    pub fn ternary<A: Lane, B: Lane, C: Lane, R: Lane>(
        &mut self,
        o: &Operands,
        active: u32,
        f: impl Fn(A, B, C) -> R,
    ) {
        let (a, b, c) = (A::row(self, o.a), B::row(self, o.b), C::row(self, o.c));
        let mut out = R::out();
        for lane in 0..LANES {
            R::set(&mut out, lane, f(A::at(&a, lane), B::at(&b, lane), C::at(&c, lane)));
        }
        R::put(self, o.d, &out, active);
    }
}

impl Registers {
    /// d = f(a, b, c, e) in every active lane.
    #[inline(always)]
    pub fn quaternary<A: Lane, B: Lane, C: Lane, E: Lane, R: Lane>(
        &mut self,
        o: &Operands,
        active: u32,
        f: impl Fn(A, B, C, E) -> R,
    ) {
        let (a, b, c, e) = (A::row(self, o.a), B::row(self, o.b), C::row(self, o.c), E::row(self, o.e));
        let mut out = R::out();
        for lane in 0..LANES {
            let value = f(A::at(&a, lane), B::at(&b, lane), C::at(&c, lane), E::at(&e, lane));
            R::set(&mut out, lane, value);
        }
        R::put(self, o.d, &out, active);
    }
}

/// Defines instructions that work lane by lane: a name, one to four typed operands, the type of the result, and
/// what one lane computes. `[mode]` gives the body the operands' modifiers.
macro_rules! lanes {
    ($($(#[$doc:meta])* $name:ident $([$mode:ident])? ($($arg:ident: $type:ty),+) -> $result:ty { $($body:tt)* })*) => {$(
        $(#[$doc])*
        #[allow(non_upper_case_globals)]
        pub(in crate::sim) const $name: $crate::sim::registers::Run = $crate::sim::registers::Run {
            call: {
                fn call(registers: &mut $crate::sim::registers::Registers,
                        operands: &$crate::sim::registers::Operands, active: u32) {
                    $(let $mode = operands.mode;)?
                    lanes!(@call registers, operands, active, $result, ($($arg: $type),+), { $($body)* })
                }
                call
            },
            banks: &$crate::sim::registers::Signature {
                result: <$result as $crate::sim::registers::Lane>::BANK,
                sources: &[$(<$type as $crate::sim::registers::Lane>::BANK),+],
            },
        };
    )*};
    (@call $r:ident, $o:ident, $m:ident, $result:ty, ($a:ident: $A:ty), $body:block) => {
        $r.unary($o, $m, #[inline(always)] |$a: $A| -> $result { $body })
    };
    (@call $r:ident, $o:ident, $m:ident, $result:ty, ($a:ident: $A:ty, $b:ident: $B:ty), $body:block) => {
        $r.binary($o, $m, #[inline(always)] |$a: $A, $b: $B| -> $result { $body })
    };
    (@call $r:ident, $o:ident, $m:ident, $result:ty, ($a:ident: $A:ty, $b:ident: $B:ty, $c:ident: $C:ty), $body:block) => {
        $r.ternary($o, $m, #[inline(always)] |$a: $A, $b: $B, $c: $C| -> $result { $body })
    };
    (@call $r:ident, $o:ident, $m:ident, $result:ty, ($a:ident: $A:ty, $b:ident: $B:ty, $c:ident: $C:ty, $e:ident: $E:ty), $body:block) => {
        $r.quaternary($o, $m, #[inline(always)] |$a: $A, $b: $B, $c: $C, $e: $E| -> $result { $body })
    };
}
pub(in crate::sim) use lanes;
