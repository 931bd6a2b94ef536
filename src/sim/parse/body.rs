//! The body of an entry: registers and variables in nested scopes, labels, statements.

use super::cursor::Cursor;
use super::lexer::Token;
use super::operand::{Operand, Register, Statement, Symbol};
use super::variable::declared;
use crate::sim::access::LANES;
use crate::sim::decode::{Builder, decode};
use crate::sim::fault::{Kind, Result};
use crate::sim::instruction::Bank;
use crate::sim::program::Type;
use std::collections::HashMap;

/// What a scope declares.
#[derive(Default)]
struct Scope<'a> {
    registers: HashMap<&'a str, Register>,
    /// Names with a count, `%r<8>`: type and count by the part before the number.
    numbered: HashMap<&'a str, (Type, u64)>,
    symbols: HashMap<&'a str, Symbol>,
}

/// Variables of the module that an entry may name.
#[derive(Default)]
pub(in crate::sim) struct Module<'a> {
    pub symbols: HashMap<&'a str, Symbol>,
    /// `.shared` variables outside any entry: alignment and bytes; they take room where an entry names them.
    pub shared: HashMap<&'a str, (u64, u64)>,
    /// Addresses in initial values: variable, place, whose address, what is added.
    pub addresses: Vec<(usize, usize, &'a str, u64)>,
}

/// Reads the body of an entry, its opening brace already taken.
pub(in crate::sim) fn body<'a>(
    cursor: &mut Cursor<'a>,
    module: &Module<'a>,
    parameters: HashMap<&'a str, Symbol>,
    builder: &mut Builder<'a>,
) -> Result<()> {
    let outermost = Scope { symbols: parameters, ..Scope::default() };
    let mut body = Body { cursor, module, builder, scopes: vec![outermost, Scope::default()] };
    body.builder.enter_scope();
    while body.scopes.len() > 1 {
        body.step()?;
    }
    body.builder.finish(body.cursor)
}

struct Body<'a, 'p> {
    cursor: &'p mut Cursor<'a>,
    module: &'p Module<'a>,
    builder: &'p mut Builder<'a>,
    scopes: Vec<Scope<'a>>,
}

impl<'a> Body<'a, '_> {
    fn step(&mut self) -> Result<()> {
        let line = self.cursor.line();
        match self.cursor.peek() {
            Some(Token::Mark('}')) => {
                self.cursor.next()?;
                self.scopes.pop();
                self.builder.leave_scope();
            }
            Some(Token::Mark('{')) => {
                self.cursor.next()?;
                self.scopes.push(Scope::default());
                self.builder.enter_scope();
            }
            Some(Token::Mark(';')) => {
                self.cursor.next()?;
            }
            Some(Token::Mark('@')) => self.statement(line)?,
            Some(Token::Word(word)) if self.cursor.look(1) == Some(Token::Mark(':')) => {
                self.cursor.next()?;
                self.cursor.next()?;
                if self.cursor.takes_word(".branchtargets") {
                    self.branch_targets(word)?;
                } else {
                    self.builder.label(self.cursor, word)?;
                }
            }
            Some(Token::Word(word)) if word.starts_with('.') => self.directive(word, line)?,
            Some(Token::Word(_)) => self.statement(line)?,
            _ => {
                let problem = "expected a statement";
                self.cursor.next()?;
                return Err(self.cursor.fault(problem));
            }
        }
        Ok(())
    }

    fn branch_targets(&mut self, table: &'a str) -> Result<()> {
        let mut targets = Vec::new();
        loop {
            targets.push(self.cursor.word("a label")?);
            if !self.cursor.takes(',') {
                break;
            }
        }
        self.cursor.expect(';')?;
        self.builder.table(table, targets);
        Ok(())
    }

    fn directive(&mut self, word: &'a str, line: u32) -> Result<()> {
        self.cursor.next()?;
        match word {
            ".reg" => self.registers(),
            ".shared" => {
                let variable = declared(self.cursor)?;
                let at = self.builder.place_shared(self.cursor, variable.alignment, variable.bytes)?;
                self.cursor.expect(';')?;
                self.declare(variable.name, Symbol::Shared(at))
            }
            ".local" => {
                let variable = declared(self.cursor)?;
                let at = self.builder.place_local(self.cursor, variable.alignment, variable.bytes)?;
                self.cursor.expect(';')?;
                self.declare(variable.name, Symbol::Local(at))
            }
            ".loc" | ".file" => {
                self.cursor.skip_line(line);
                Ok(())
            }
            ".pragma" => {
                while !self.cursor.takes(';') {
                    self.cursor.next()?;
                }
                Ok(())
            }
            _ => Err(self.cursor.fault(format!("directive `{word}` in the body of an entry is not known"))),
        }
    }

    fn declare(&mut self, name: &'a str, symbol: Symbol) -> Result<()> {
        if let Some(scope) = self.scopes.last_mut() {
            scope.symbols.insert(name, symbol);
        }
        Ok(())
    }

    fn registers(&mut self) -> Result<()> {
        let word = self.cursor.word("a type")?;
        let ty = word.strip_prefix('.').and_then(Type::named);
        let Some(ty) = ty else {
            return Err(self.cursor.fault(format!("registers of type `{word}` are not known")));
        };
        loop {
            let name = self.cursor.word("the name of a register")?;
            if self.cursor.takes('<') {
                let count = self.cursor.integer("a number of registers")?;
                self.cursor.expect('>')?;
                if let Some(scope) = self.scopes.last_mut() {
                    scope.numbered.insert(name, (ty, count));
                }
            } else {
                let register = self.builder.register(ty);
                if let Some(scope) = self.scopes.last_mut() {
                    scope.registers.insert(name, register);
                }
            }
            if !self.cursor.takes(',') {
                break;
            }
        }
        self.cursor.expect(';')
    }

    /// The register of that name; the first use of a numbered one makes it.
    fn find_register(&mut self, name: &'a str) -> Option<Register> {
        let prefix = name.trim_end_matches(|c: char| c.is_ascii_digit());
        let number = name[prefix.len()..].parse::<u64>().ok();
        for scope in self.scopes.iter_mut().rev() {
            if let Some(&register) = scope.registers.get(name) {
                return Some(register);
            }
            if let (Some(number), Some(&(ty, count))) = (number, scope.numbered.get(prefix))
                && number < count
            {
                let register = self.builder.register(ty);
                scope.registers.insert(name, register);
                return Some(register);
            }
        }
        None
    }

    fn find_symbol(&mut self, name: &'a str) -> Result<Option<Symbol>> {
        if let Some(&symbol) = self.scopes.iter().rev().find_map(|scope| scope.symbols.get(name)) {
            return Ok(Some(symbol));
        }
        if let Some(&(alignment, bytes)) = self.module.shared.get(name) {
            let at = self.builder.place_shared(self.cursor, alignment, bytes)?;
            self.scopes[0].symbols.insert(name, Symbol::Shared(at));
            return Ok(Some(Symbol::Shared(at)));
        }
        Ok(self.module.symbols.get(name).copied())
    }

    fn statement(&mut self, line: u32) -> Result<()> {
        let mut guard = None;
        if self.cursor.takes('@') {
            let negated = self.cursor.takes('!');
            let name = self.cursor.word("a predicate")?;
            match self.find_register(name).filter(|register| register.bank == Bank::Predicates) {
                Some(register) => guard = Some((register, negated)),
                None => return Err(self.cursor.fault(format!("`{name}` is no predicate"))),
            }
        }
        let opcode = self.cursor.word("an opcode")?;
        let mut operands = Vec::new();
        if !self.cursor.takes(';') {
            loop {
                let operand = self.operand()?;
                operands.push(if self.cursor.takes('|') {
                    Operand::Pair(Box::new(operand), Box::new(self.operand()?))
                } else {
                    operand
                });
                if self.cursor.takes(';') {
                    break;
                }
                self.cursor.expect(',')?;
            }
        }
        let statement = Statement { line, guard, opcode, operands };
        decode(self.builder, &statement).map_err(|mut fault| {
            if fault.kind != Kind::Syntax {
                fault.site.file = self.cursor.file.to_string();
                fault.site.line = line;
            }
            fault
        })
    }

    fn operand(&mut self) -> Result<Operand<'a>> {
        if self.cursor.takes('{') {
            let mut elements = Vec::new();
            while !self.cursor.takes('}') {
                elements.push(self.operand()?);
                self.cursor.takes(',');
            }
            return Ok(Operand::Vector(elements));
        }
        if self.cursor.takes('(') {
            let mut elements = Vec::new();
            while !self.cursor.takes(')') {
                elements.push(self.operand()?);
                self.cursor.takes(',');
            }
            return Ok(Operand::List(elements));
        }
        if self.cursor.takes('[') {
            let base = self.operand()?;
            let mut offset = 0i64;
            while !self.cursor.takes(']') {
                let plus = self.cursor.takes('+');
                let minus = self.cursor.takes('-');
                if !plus && !minus {
                    return Err(self.cursor.fault("expected `+`, `-` or `]` in an address"));
                }
                let value = self.cursor.integer("an offset")? as i64;
                offset = offset.wrapping_add(if minus { value.wrapping_neg() } else { value });
            }
            return Ok(Operand::Address(Box::new(base), offset));
        }
        if self.cursor.takes('!') {
            let name = self.cursor.word("a predicate")?;
            return match self.find_register(name) {
                Some(register) => Ok(Operand::Not(register)),
                None => Err(self.cursor.fault(format!("nothing declares register `{name}`"))),
            };
        }
        let negative = self.cursor.takes('-');
        match self.cursor.next()? {
            Token::Integer(value) => {
                Ok(Operand::Integer(if negative { -i128::from(value) } else { value.into() }))
            }
            Token::Single(bits) => Ok(Operand::Single(bits ^ u32::from(negative) << 31)),
            Token::Double(bits) => Ok(Operand::Double(bits ^ u64::from(negative) << 63)),
            Token::Word("_") if !negative => Ok(Operand::Sink),
            Token::Word("WARP_SZ") if !negative => Ok(Operand::Integer(LANES as i128)),
            Token::Word(name) if !negative => self.named(name),
            _ => Err(self.cursor.fault("expected an operand")),
        }
    }

    fn named(&mut self, name: &'a str) -> Result<Operand<'a>> {
        if let Some(register) = self.find_register(name) {
            return Ok(Operand::Register(register));
        }
        if let Some(symbol) = self.find_symbol(name)? {
            let mut offset = 0;
            // `name+4` outside brackets; inside them the caller reads the offset.
            if let (Some(Token::Mark('+')), Some(Token::Integer(value))) =
                (self.cursor.peek(), self.cursor.look(1))
            {
                self.cursor.next()?;
                self.cursor.next()?;
                offset = value as i64;
            }
            return Ok(Operand::Symbol(symbol, offset));
        }
        if name.starts_with('%') {
            return Ok(Operand::Special(name));
        }
        Ok(Operand::Name(name))
    }
}
