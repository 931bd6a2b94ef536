//! A PTX file: its header, its variables, its entries.

mod body;
mod cursor;
mod lexer;
mod operand;
mod variable;

pub(in crate::sim) use cursor::Cursor;
pub(in crate::sim) use operand::{Operand, Register, Statement, Symbol};

use self::body::{Module, body};
use self::lexer::{Token, tokens};
use self::variable::declared;
use super::decode::Builder;
use super::fault::{Fault, Kind, Result};
use super::program::{Entry, Parameter, Variable};
use std::collections::HashMap;

/// What a file holds.
#[derive(Debug, Default)]
pub(super) struct Parsed {
    pub version: (u32, u32),
    pub target: String,
    pub variables: Vec<Variable>,
    pub entries: Vec<Entry>,
}

/// Reads a whole file.
pub(super) fn parse(file: &str, text: &str) -> Result<Parsed> {
    let tokens = tokens(file, text)?;
    let mut cursor = Cursor::new(file, &tokens);
    let mut parsed = Parsed::default();
    let mut module = Module::default();
    header(&mut cursor, &mut parsed)?;
    while !cursor.done() {
        item(&mut cursor, &mut parsed, &mut module)?;
    }
    for (variable, at, name, plus) in std::mem::take(&mut module.addresses) {
        match module.symbols.get(name) {
            Some(Symbol::Variable(index)) => parsed.variables[variable].addresses.push((at, *index, plus)),
            _ => {
                return Err(
                    cursor.fault(format!("`{name}`, whose address is an initial value, is no variable"))
                );
            }
        }
    }
    Ok(parsed)
}

fn header(cursor: &mut Cursor<'_>, parsed: &mut Parsed) -> Result<()> {
    if !cursor.takes_word(".version") {
        return Err(cursor.fault("a PTX file begins with `.version`"));
    }
    match cursor.next()? {
        Token::Double(bits) => {
            let tenths = (f64::from_bits(bits) * 10.0).round() as u32;
            parsed.version = (tenths / 10, tenths % 10);
        }
        _ => return Err(cursor.fault("`.version` needs a number such as 8.1")),
    }
    let line = cursor.line();
    if !cursor.takes_word(".target") {
        return Err(cursor.fault("expected `.target` after `.version`"));
    }
    parsed.target = cursor.word("a target")?.to_string();
    cursor.skip_line(line);
    if cursor.takes_word(".address_size") && cursor.integer("64")? != 64 {
        return Err(cursor.fault("only 64-bit addresses are known"));
    }
    Ok(())
}

/// One thing outside any entry.
fn item<'a>(cursor: &mut Cursor<'a>, parsed: &mut Parsed, module: &mut Module<'a>) -> Result<()> {
    let line = cursor.line();
    let mut external = false;
    loop {
        match cursor.word("a directive")? {
            ".extern" => external = true,
            ".visible" | ".weak" | ".internal" | ".common" => {}
            ".file" | ".loc" => {
                cursor.skip_line(line);
                return Ok(());
            }
            ".section" => {
                cursor.word("the name of a section")?;
                cursor.expect('{')?;
                return cursor.skip_braces();
            }
            ".entry" => return entry(cursor, parsed, module),
            ".func" => return function(cursor),
            ".global" | ".const" => return variable(cursor, parsed, module, external),
            ".shared" => return shared(cursor, module, external),
            word => return Err(cursor.fault(format!("`{word}` outside an entry is not known"))),
        }
    }
}

fn variable<'a>(
    cursor: &mut Cursor<'a>,
    parsed: &mut Parsed,
    module: &mut Module<'a>,
    external: bool,
) -> Result<()> {
    let found = declared(cursor)?;
    cursor.expect(';')?;
    if external || found.bytes == 0 {
        return Err(
            cursor.fault(format!("variable `{}` stands in another file; linking is not known", found.name))
        );
    }
    module.symbols.insert(found.name, Symbol::Variable(parsed.variables.len()));
    let index = parsed.variables.len();
    module.addresses.extend(found.addresses.into_iter().map(|(at, name, plus)| (index, at, name, plus)));
    parsed.variables.push(Variable {
        name: found.name.to_string(),
        bytes: found.bytes,
        initial: found.initial,
        addresses: Vec::new(),
    });
    Ok(())
}

fn shared<'a>(cursor: &mut Cursor<'a>, module: &mut Module<'a>, external: bool) -> Result<()> {
    let found = declared(cursor)?;
    cursor.expect(';')?;
    if external || found.bytes == 0 {
        module.symbols.insert(found.name, Symbol::DynamicShared);
    } else {
        module.shared.insert(found.name, (found.alignment, found.bytes));
    }
    Ok(())
}

/// A function is passed over: calls of it are instructions that the simulator does not know.
fn function(cursor: &mut Cursor<'_>) -> Result<()> {
    loop {
        match cursor.next()? {
            Token::Mark(';') => return Ok(()),
            Token::Mark('{') => return cursor.skip_braces(),
            _ => {}
        }
    }
}

fn triple(cursor: &mut Cursor<'_>) -> Result<[u32; 3]> {
    let mut sizes = [1; 3];
    for axis in 0..3 {
        let size = cursor.integer("a number of threads")?;
        sizes[axis] = u32::try_from(size).map_err(|_| cursor.fault("a number of threads beyond 32 bits"))?;
        if !cursor.takes(',') {
            break;
        }
    }
    Ok(sizes)
}

fn entry<'a>(cursor: &mut Cursor<'a>, parsed: &mut Parsed, module: &Module<'a>) -> Result<()> {
    let name = cursor.word("the name of an entry")?;
    let (mut parameters, mut symbols, mut bytes) = (Vec::new(), HashMap::new(), 0u64);
    if cursor.takes('(') {
        while !cursor.takes(')') {
            if !cursor.takes_word(".param") {
                return Err(cursor.fault("expected `.param`"));
            }
            let found = declared(cursor)?;
            let offset = bytes.next_multiple_of(found.alignment);
            bytes = offset + found.bytes;
            if bytes > 4096 {
                return Err(cursor.fault("more than 4096 bytes of parameters"));
            }
            symbols.insert(found.name, Symbol::Parameter(offset));
            parameters.push(Parameter {
                name: found.name.to_string(),
                ty: found.ty,
                bytes: found.bytes as u32,
                offset: offset as u32,
            });
            cursor.takes(',');
        }
    }
    let (mut maxntid, mut reqntid) = (None, None);
    loop {
        match cursor.next()? {
            Token::Word(".maxntid") => maxntid = Some(triple(cursor)?),
            Token::Word(".reqntid") => reqntid = Some(triple(cursor)?),
            Token::Word(".minnctapersm" | ".maxnreg" | ".maxnctapersm") => {
                cursor.integer("a number")?;
            }
            Token::Word(".pragma") => {
                while !cursor.takes(';') {
                    cursor.next()?;
                }
            }
            Token::Mark('{') => break,
            // A declaration without a body.
            Token::Mark(';') => return Ok(()),
            _ => return Err(cursor.fault(format!("a directive of entry `{name}` that is not known"))),
        }
    }
    if parsed.entries.iter().any(|entry| entry.name == name) {
        return Err(cursor.fault(format!("entry `{name}` stands there twice")));
    }
    let mut builder = Builder::default();
    builder.warpgroups = parsed.target == "sm_90a";
    body(cursor, module, symbols, &mut builder)?;
    let code = builder.code();
    if code.instructions.len() > u32::MAX as usize {
        return Err(Fault::new(Kind::Syntax, "too many instructions", "split the kernel"));
    }
    parsed.entries.push(Entry {
        name: name.to_string(),
        parameters,
        parameter_bytes: bytes as u32,
        maxntid,
        reqntid,
        static_shared: code.static_shared,
        code,
    });
    Ok(())
}
