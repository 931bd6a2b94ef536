//! Declarations of variables: space, alignment, type, name, sizes, initial value.

use super::cursor::Cursor;
use super::lexer::Token;
use crate::sim::fault::Result;
use crate::sim::program::Type;

/// A declared variable or parameter.
#[derive(Debug)]
pub(in crate::sim) struct Declared<'a> {
    pub name: &'a str,
    pub ty: Type,
    pub alignment: u64,
    /// Bytes; 0 for an array without a size.
    pub bytes: u64,
    /// The initial value, shorter than `bytes` where the rest is zero.
    pub initial: Vec<u8>,
    /// Addresses of other variables in the initial value: where, whose, and what is added.
    pub addresses: Vec<(usize, &'a str, u64)>,
}

/// Reads what follows `.global`, `.shared`, `.param`, ... up to the name, its sizes and its value.
/// The closing mark is left to the caller.
pub(in crate::sim) fn declared<'a>(cursor: &mut Cursor<'a>) -> Result<Declared<'a>> {
    let (mut alignment, mut lanes, mut ty) = (0, 1, None);
    while let Some(Token::Word(word)) = cursor.peek() {
        let Some(directive) = word.strip_prefix('.') else { break };
        cursor.next()?;
        match directive {
            "align" => alignment = cursor.integer("an alignment")?,
            "v2" => lanes = 2,
            "v4" => lanes = 4,
            // The kind of address that a parameter holds: `.ptr .global .align 16`.
            "ptr" | "global" | "const" | "shared" | "local" => {}
            // A compiler's promise that a symbol is used or managed; nothing to do here.
            "attribute" => {
                cursor.expect('(')?;
                while !cursor.takes(')') {
                    cursor.next()?;
                }
            }
            _ => match Type::named(directive) {
                Some(named) => ty = Some(named),
                None => return Err(cursor.fault(format!("`{word}` in a declaration is not known"))),
            },
        }
    }
    let Some(ty) = ty else { return Err(cursor.fault("a declaration without a type")) };
    let element = u64::from(ty.bytes()) * lanes;
    if alignment == 0 {
        alignment = element;
    }
    if !alignment.is_power_of_two() {
        return Err(cursor.fault(format!("an alignment of {alignment}, which is no power of two")));
    }
    let name = cursor.word("a name")?;
    let (mut count, mut sized) = (1u64, true);
    while cursor.takes('[') {
        if cursor.takes(']') {
            sized = false;
            continue;
        }
        let size = cursor.integer("the size of an array")?;
        cursor.expect(']')?;
        count = count
            .checked_mul(size)
            .filter(|&n| n < 1 << 40)
            .ok_or_else(|| cursor.fault("an array too large"))?;
    }
    let (mut initial, mut addresses) = (Vec::new(), Vec::new());
    if cursor.takes('=') {
        values(cursor, ty, &mut initial, &mut addresses)?;
        if !sized {
            (count, sized) = (initial.len() as u64 / element.max(1), true);
        }
    }
    let bytes = if sized { count.saturating_mul(element) } else { 0 };
    if initial.len() as u64 > bytes {
        return Err(cursor.fault(format!("an initial value of {} bytes for {bytes} bytes", initial.len())));
    }
    Ok(Declared { name, ty, alignment, bytes, initial, addresses })
}

/// A value, or a list in braces of values.
fn values<'a>(
    cursor: &mut Cursor<'a>,
    ty: Type,
    out: &mut Vec<u8>,
    addresses: &mut Vec<(usize, &'a str, u64)>,
) -> Result<()> {
    let mut depth = 0u32;
    loop {
        if cursor.takes('{') {
            depth += 1;
            continue;
        }
        let negative = cursor.takes('-');
        let bits = match (cursor.next()?, ty) {
            (Token::Integer(value), Type::F32) => u64::from((value as f32).to_bits()),
            (Token::Integer(value), Type::F64) => (value as f64).to_bits(),
            (Token::Integer(value), _) => value,
            (Token::Single(bits), Type::F64) => f64::from(f32::from_bits(bits)).to_bits(),
            (Token::Single(bits), _) => u64::from(bits),
            (Token::Double(bits), Type::F32) => u64::from((f64::from_bits(bits) as f32).to_bits()),
            (Token::Double(bits), _) => bits,
            (Token::Mark('}'), _) if depth > 0 && !negative => {
                depth -= 1;
                if depth == 0 {
                    return Ok(());
                }
                cursor.takes(',');
                continue;
            }
            // The address of a variable, `x + 4` or `generic(x)`; device addresses are generic ones.
            (Token::Word(word), _) if ty.bytes() == 8 && !negative => {
                let generic = word == "generic" && cursor.takes('(');
                let name = if generic { cursor.word("the name of a variable")? } else { word };
                if generic {
                    cursor.expect(')')?;
                }
                let plus = if cursor.takes('+') { cursor.integer("an offset")? } else { 0 };
                addresses.push((out.len(), name, plus));
                0
            }
            _ => {
                return Err(
                    cursor.fault("an initial value that is neither a number nor the name of a variable")
                );
            }
        };
        let bits = match (negative, ty) {
            (false, _) => bits,
            (true, Type::F32) => bits ^ 1 << 31,
            (true, Type::F64) => bits ^ 1 << 63,
            (true, _) => bits.wrapping_neg(),
        };
        out.extend_from_slice(&bits.to_le_bytes()[..ty.bytes() as usize]);
        if depth == 0 {
            return Ok(());
        }
        while depth > 0 && cursor.takes('}') {
            depth -= 1;
        }
        if depth == 0 {
            return Ok(());
        }
        cursor.takes(',');
    }
}
