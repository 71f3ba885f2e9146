//! A machine that reads pickles and runs nothing: it knows the opcodes that a saved state dict needs,
//! and of the names that a pickle may call, those of which tensors are made. What they would do, it
//! notes. All else is refused.

mod calls;
mod read;

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use super::opcodes;
use super::value::{Id, Storage, Value};
use crate::error::PickleFault;

/// The longest pickle that is read.
pub const MAX_PICKLE: u64 = 64 << 20;
/// The most values that a pickle may make, and the most that it may note for later.
const MAX_VALUES: usize = 2 << 20;
/// The most values that it may use, each as often as it does.
const MAX_USES: usize = 8 << 20;
/// The most values that it may be in the middle of.
const MAX_STACK: usize = 1 << 20;
/// The most dimensions that a tensor may have, as in torch.
const MAX_DIMENSIONS: usize = 64;

/// What a pickle holds.
pub struct Pickled<'p> {
    text: &'p [u8],
    values: Vec<Value>,
    root: Id,
    /// Where the next pickle starts.
    pub end: usize,
}

impl<'p> Pickled<'p> {
    pub fn root(&self) -> &Value {
        self.get(self.root)
    }

    pub fn get(&self, id: Id) -> &Value {
        &self.values[id as usize]
    }

    /// Every mention of a storage.
    pub fn storages(&self) -> impl Iterator<Item = &Storage> {
        self.values.iter().filter_map(|value| match value {
            Value::Storage(storage) => Some(&**storage),
            _ => None,
        })
    }

    pub fn text(&self, id: Id) -> Option<&'p str> {
        text(self.text, self.get(id))
    }
}

fn text<'p>(pickle: &'p [u8], value: &Value) -> Option<&'p str> {
    let Value::Text(range) = value else { return None };
    std::str::from_utf8(&pickle[range.start as usize..range.end as usize]).ok()
}

/// Why a pickle cannot be read.
pub enum Failure {
    /// It goes on behind what there is of it.
    Ends {
        at: usize,
    },
    Fault(Box<PickleFault>),
}

type Result<T> = std::result::Result<T, Failure>;

struct Machine<'p> {
    pickle: &'p [u8],
    /// What is read, for messages.
    place: &'p str,
    at: usize,
    /// Where the opcode is that is being carried out.
    opcode: usize,
    values: Vec<Value>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    uses: usize,
    /// The dicts that keep attributes.
    ordered: HashSet<Id>,
    is_legacy: bool,
}

/// Reads the pickle that starts at `start`. Its values are what they would be, but for what is inert.
pub fn read<'p>(
    pickle: &'p [u8],
    start: usize,
    place: &str,
    is_legacy: bool,
) -> Result<Pickled<'p>> {
    let mut machine = Machine {
        pickle,
        place,
        at: start,
        opcode: start,
        values: vec![Value::None, Value::Bool(false), Value::Bool(true), Value::Inert],
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        uses: 0,
        ordered: HashSet::new(),
        is_legacy,
    };
    if machine.byte()? != opcodes::PROTO {
        return machine.damaged("it does not start with its protocol");
    }
    let version = machine.byte()?;
    if !(2..=3).contains(&version) {
        let place = place.to_owned();
        return Err(fault(PickleFault::Protocol { version, place }));
    }
    while machine.step()? {}
    let root = machine.pop()?;
    if !machine.stack.is_empty() || !machine.marks.is_empty() {
        return machine.damaged("it ends with more than one value");
    }
    let Machine { at, values, .. } = machine;
    Ok(Pickled { text: pickle, values, root, end: at })
}

fn fault(fault: PickleFault) -> Failure {
    Failure::Fault(Box::new(fault))
}

/// The values that are always there.
const NONE: Id = 0;
const FALSE: Id = 1;
const TRUE: Id = 2;
const INERT: Id = 3;

impl<'p> Machine<'p> {
    /// Carries out the next opcode; whether there are more.
    fn step(&mut self) -> Result<bool> {
        self.opcode = self.at;
        match self.byte()? {
            opcodes::STOP => return Ok(false),
            opcodes::MARK => {
                if self.marks.len() >= MAX_STACK {
                    return self.too_much("marks at a time", MAX_STACK);
                }
                self.marks.push(self.stack.len());
            }
            opcodes::NONE => self.push(NONE)?,
            opcodes::NEWFALSE => self.push(FALSE)?,
            opcodes::NEWTRUE => self.push(TRUE)?,
            opcodes::BINFLOAT => {
                self.take(8)?;
                self.push(INERT)?;
            }
            opcodes::BININT => {
                let number = i32::from_le_bytes(self.array()?);
                self.make(Value::Int(number.into()))?;
            }
            opcodes::BININT1 => {
                let number = self.byte()?;
                self.make(Value::Int(number.into()))?;
            }
            opcodes::BININT2 => {
                let number = u16::from_le_bytes(self.array()?);
                self.make(Value::Int(number.into()))?;
            }
            opcodes::LONG1 => {
                let bytes = usize::from(self.byte()?);
                match long(self.take(bytes)?) {
                    Some(number) => self.make(Value::Int(number))?,
                    None => self.push(INERT)?,
                }
            }
            opcodes::BINUNICODE => {
                let bytes = u32::from_le_bytes(self.array()?) as usize;
                self.string(bytes)?;
            }
            opcodes::SHORT_BINSTRING => {
                let bytes = usize::from(self.byte()?);
                self.string(bytes)?;
            }
            opcodes::EMPTY_TUPLE => self.make(Value::Tuple(Vec::new()))?,
            opcodes::EMPTY_LIST => self.make(Value::List(Vec::new()))?,
            opcodes::EMPTY_DICT => self.make(Value::Dict(Vec::new()))?,
            opcodes::EMPTY_SET => self.push(INERT)?,
            opcodes::TUPLE => {
                let items = self.since_mark()?;
                self.make(Value::Tuple(items))?;
            }
            opcode @ opcodes::TUPLE1..=opcodes::TUPLE3 => {
                let items = self.last(usize::from(opcode - opcodes::TUPLE1) + 1)?;
                self.make(Value::Tuple(items))?;
            }
            opcodes::APPEND => {
                let items = self.last(1)?;
                self.append(items)?;
            }
            opcodes::APPENDS => {
                let items = self.since_mark()?;
                self.append(items)?;
            }
            opcodes::SETITEM => {
                let items = self.last(2)?;
                self.set(&items)?;
            }
            opcodes::SETITEMS => {
                let items = self.since_mark()?;
                self.set(&items)?;
            }
            opcodes::BINPUT => {
                let index = self.byte()?;
                self.note(index.into())?;
            }
            opcodes::LONG_BINPUT => {
                let index = u32::from_le_bytes(self.array()?);
                self.note(index)?;
            }
            opcodes::BINGET => {
                let index = self.byte()?;
                self.recall(index.into())?;
            }
            opcodes::LONG_BINGET => {
                let index = u32::from_le_bytes(self.array()?);
                self.recall(index)?;
            }
            opcodes::GLOBAL => self.global()?,
            opcodes::BINPERSID => self.persistent()?,
            opcodes::REDUCE => self.reduce()?,
            opcodes::NEWOBJ => self.new_object()?,
            opcodes::BUILD => self.build()?,
            other => {
                let (at, place) = (self.opcode, self.place.to_owned());
                return Err(fault(PickleFault::Opcode { name: opcodes::name(other), at, place }));
            }
        }
        Ok(true)
    }

    fn push(&mut self, id: Id) -> Result<()> {
        self.use_up(1)?;
        if self.stack.len() >= MAX_STACK {
            return self.too_much("values at a time", MAX_STACK);
        }
        self.stack.push(id);
        Ok(())
    }

    fn use_up(&mut self, values: usize) -> Result<()> {
        self.uses += values;
        match self.uses > MAX_USES {
            true => self.too_much("values to put together", MAX_USES),
            false => Ok(()),
        }
    }

    fn make(&mut self, value: Value) -> Result<()> {
        if self.values.len() >= MAX_VALUES {
            return self.too_much("values", MAX_VALUES);
        }
        if self.values.len() == self.values.capacity() {
            // Less than twice as many, because there may be two million.
            self.values.reserve_exact(1024 + self.values.len() / 4);
        }
        self.values.push(value);
        self.push((self.values.len() - 1) as Id)
    }

    fn string(&mut self, bytes: usize) -> Result<()> {
        let start = self.at as u32;
        let range: Range<u32> = start..start + self.take(bytes)?.len() as u32;
        self.make(Value::Text(range))
    }

    /// Values of the stack are used only down to the last mark.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self) -> Result<Id> {
        Ok(self.last(1)?[0])
    }

    fn last(&mut self, count: usize) -> Result<Vec<Id>> {
        match self.stack.len().checked_sub(count) {
            Some(start) if start >= self.floor() => Ok(self.stack.split_off(start)),
            _ => self.damaged("it takes a value that is not there"),
        }
    }

    fn since_mark(&mut self) -> Result<Vec<Id>> {
        match self.marks.pop() {
            Some(mark) => Ok(self.stack.split_off(mark)),
            None => self.damaged("it takes values since a mark that is not there"),
        }
    }

    /// The value on top of the stack, which stays there.
    fn top(&self) -> Result<Id> {
        match self.stack.last() {
            Some(id) if self.stack.len() > self.floor() => Ok(*id),
            _ => self.damaged("it takes a value that is not there"),
        }
    }

    fn note(&mut self, index: u32) -> Result<()> {
        let top = self.top()?;
        if self.memo.len() >= MAX_VALUES {
            return self.too_much("values noted for later", MAX_VALUES);
        }
        self.memo.insert(index, top);
        Ok(())
    }

    fn recall(&mut self, index: u32) -> Result<()> {
        match self.memo.get(&index) {
            Some(id) => self.push(*id),
            None => self.damaged(format!("it recalls value {index}, which it has not noted")),
        }
    }

    fn append(&mut self, items: Vec<Id>) -> Result<()> {
        let top = self.top()?;
        match &mut self.values[top as usize] {
            Value::List(list) => {
                list.extend(items);
                Ok(())
            }
            _ => self.call("it appends to what is no list"),
        }
    }

    fn set(&mut self, items: &[Id]) -> Result<()> {
        if !items.len().is_multiple_of(2) {
            return self.damaged("a key has no value");
        }
        let is_key = |id: Id| match &self.values[id as usize] {
            Value::List(_) | Value::Dict(_) => false,
            Value::Tuple(parts) => parts.len() < MAX_DIMENSIONS,
            _ => true,
        };
        if !items.iter().step_by(2).all(|key| is_key(*key)) {
            return self.call("it takes for a key what cannot be one");
        }
        let top = self.top()?;
        match &mut self.values[top as usize] {
            Value::Dict(members) => {
                members.extend(items.chunks_exact(2).map(|pair| (pair[0], pair[1])));
                Ok(())
            }
            _ => self.call("it sets a member of what is no dict"),
        }
    }

    fn tuple(&self, id: Id) -> Option<&[Id]> {
        match &self.values[id as usize] {
            Value::Tuple(items) => Some(items),
            _ => None,
        }
    }

    /// A number that is not negative.
    fn natural(&self, id: Id) -> Option<u64> {
        match self.values[id as usize] {
            Value::Int(number) => u64::try_from(number).ok(),
            _ => None,
        }
    }

    fn naturals(&self, id: Id) -> Option<Vec<u64>> {
        let items = self.tuple(id)?;
        let fits = items.len() <= MAX_DIMENSIONS;
        fits.then(|| items.iter().map(|item| self.natural(*item)).collect())?
    }
}

/// The number that these bytes are, the last one with the sign, where it has 64 bits.
fn long(bytes: &[u8]) -> Option<i64> {
    let sign = bytes.last().map_or(0, |last| if last & 0x80 == 0 { 0 } else { 0xff });
    let (low, high) = bytes.split_at(bytes.len().min(8));
    let mut number = [sign; 8];
    number[..low.len()].copy_from_slice(low);
    let number = i64::from_le_bytes(number);
    let fits = high.iter().all(|byte| *byte == sign) && (number < 0) == (sign != 0);
    fits.then_some(number)
}
