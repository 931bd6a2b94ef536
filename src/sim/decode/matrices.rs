//! `ldmatrix`, `mma` and `wgmma`.

use super::Decoder;
use crate::sim::counters::Class;
use crate::sim::fault::{Fault, Kind, Result};
use crate::sim::instruction::{Meeting, Op, Warpgroup};
use crate::sim::matrix::{Factor, Multiply};
use crate::sim::program::Type;
use crate::sim::warpgroup::Product;

impl Decoder<'_, '_> {
    /// Decodes the statement if it is of this kind.
    pub(super) fn matrices(&mut self) -> Result<bool> {
        match self.head {
            "ldmatrix" => self.load_matrix()?,
            "mma" => self.multiply()?,
            "wgmma" => self.warpgroup()?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn load_matrix(&mut self) -> Result<()> {
        self.class(Class::Shared);
        let ty = self.takes_type()?;
        let count = match self.takes_one(&["x1", "x2", "x4"]) {
            Some(which) => 1 << which,
            None => return Err(self.unknown("the number of matrices")),
        };
        let transposed = self.takes("trans");
        if ty != Type::B16 || !self.takes("sync") || !self.takes("aligned") || !self.takes("m8n8") {
            return Err(self.unknown("the form"));
        }
        let space = self.space();
        self.expect_operands(2)?;
        let address = self.address(1, space)?;
        let parts = self.elements(0)?;
        if parts.len() != count {
            return Err(self.unknown("the vector"));
        }
        let mut d = Vec::new();
        for part in &parts {
            d.push(self.target_of(part, Type::B32)?);
        }
        self.builder.emit(Op::Meet(Box::new(Meeting::LoadMatrix { address, d, transposed }), None));
        Ok(())
    }

    /// `mma.sync.aligned.SHAPE.row.col.D.A.B.C`.
    fn multiply(&mut self) -> Result<()> {
        self.class(Class::Matrix);
        let known = [
            ("m16n8k16", "bf16", Factor::Bf16, 16, 4, 2),
            ("m16n8k8", "bf16", Factor::Bf16, 8, 2, 1),
            ("m16n8k16", "f16", Factor::F16, 16, 4, 2),
            ("m16n8k8", "f16", Factor::F16, 8, 2, 1),
            ("m16n8k8", "tf32", Factor::Tf32, 8, 4, 2),
            ("m16n8k4", "tf32", Factor::Tf32, 4, 2, 1),
        ];
        let ["sync", "aligned", shape, "row", "col", d_type, a_type, b_type, c_type] = self.modifiers[..]
        else {
            return Err(self.unknown("the form"));
        };
        let found = known.iter().find(|k| k.0 == shape && k.1 == a_type && k.1 == b_type);
        let half_result = d_type == "f16" && c_type == "f16" && a_type == "f16";
        let single_result = d_type == "f32" && c_type == "f32";
        let Some(&(_, _, factor, depth, a_count, b_count)) = found else {
            return Err(self.unknown("the shape"));
        };
        if !half_result && !single_result {
            return Err(self.unknown("the types"));
        }
        self.modifiers.clear();
        self.expect_operands(4)?;
        let (ty, count) = if half_result { (Type::B32, 2) } else { (Type::F32, 4) };
        let d = self.fragment(0, ty, count, true)?;
        let a = self.fragment(1, Type::B32, a_count, false)?;
        let b = self.fragment(2, Type::B32, b_count, false)?;
        let c = self.fragment(3, ty, count, false)?;
        let multiply = Multiply { factor, depth, half_result, a, b, c, d };
        self.builder.emit(Op::Meet(Box::new(Meeting::Multiply(Box::new(multiply))), None));
        Ok(())
    }

    /// `wgmma`: products of bf16 matrices that both lie in shared memory, with f32 sums.
    fn warpgroup(&mut self) -> Result<()> {
        if !self.builder.warpgroups {
            return Err(Fault::new(
                Kind::UnknownInstruction,
                format!(
                    "`{}` in a file whose target is not sm_90a, which alone has it",
                    self.statement.opcode
                ),
                "compile the file for compute_90a: its name ends in _sm90a, and tools/ptx.py does the rest",
            ));
        }
        self.class(Class::Barrier);
        let what = self.takes_one(&["fence", "commit_group", "wait_group", "mma_async"]);
        if !self.takes("sync") || !self.takes("aligned") {
            return Err(self.unknown("the form"));
        }
        let work = match what {
            Some(0) => Warpgroup::Fence,
            Some(1) => Warpgroup::Commit,
            Some(2) => {
                let pending = u32::try_from(self.immediate(0)?);
                Warpgroup::Wait(pending.map_err(|_| self.unknown("the number of groups"))?)
            }
            Some(3) => Warpgroup::Multiply(self.warpgroup_product()?),
            _ => return Err(self.unknown("the form")),
        };
        match &work {
            Warpgroup::Fence | Warpgroup::Commit => self.expect_operands(0)?,
            Warpgroup::Wait(_) => self.expect_operands(1)?,
            Warpgroup::Multiply(_) => self.expect_operands(8)?,
        }
        self.builder.emit(Op::Meet(Box::new(Meeting::Warpgroup(Box::new(work))), None));
        Ok(())
    }

    /// `m64nNk16.f32.bf16.bf16 d, a-descriptor, b-descriptor, scale-d, scale-a, scale-b, transposed-a, transposed-b`.
    fn warpgroup_product(&mut self) -> Result<Product> {
        self.class(Class::Matrix);
        let [shape, "f32", "bf16", "bf16"] = self.modifiers[..] else {
            return Err(self.unknown("the types"));
        };
        let columns = shape.strip_prefix("m64n").and_then(|rest| rest.strip_suffix("k16"));
        let columns = columns.and_then(|n| n.parse::<usize>().ok());
        let Some(columns) = columns.filter(|n| n.is_multiple_of(8) && (8..=256).contains(n)) else {
            return Err(self.unknown("the shape"));
        };
        self.modifiers.clear();
        let d = self.fragment(0, Type::F32, columns / 2, true)?;
        let descriptors = [self.source(1, Type::B64)?, self.source(2, Type::B64)?];
        let accumulates = self.predicate(3)?;
        let sign = |index| match self.immediate(index)? {
            1 => Ok(false),
            -1 => Ok(true),
            _ => Err(self.unknown("the scale")),
        };
        let negated = sign(4)? != sign(5)?;
        let flag = |index| match self.immediate(index)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(self.unknown("the layout")),
        };
        let transposed = [flag(6)?, flag(7)?];
        Ok(Product { columns, d, descriptors, accumulates, negated, transposed })
    }

    fn fragment(&mut self, index: usize, ty: Type, count: usize, result: bool) -> Result<Vec<u32>> {
        let parts = self.elements(index)?;
        if parts.len() != count {
            return Err(self.unknown("the vector"));
        }
        let mut registers = Vec::new();
        for part in &parts {
            registers.push(if result { self.target_of(part, ty)? } else { self.source_of(part, ty)? });
        }
        Ok(registers)
    }
}
