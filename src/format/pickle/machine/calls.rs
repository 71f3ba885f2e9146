//! What a pickle would import, load and call: what comes of it is noted, and nothing is done.

use super::{INERT, MAX_USES, Machine, NONE, Result, fault, text};
use crate::error::PickleFault;
use crate::format::pickle::value::{Global, Id, Part, Rebuild, Storage, Tensor, Value};
use crate::shown::Shown;

impl Machine<'_> {
    pub(super) fn global(&mut self) -> Result<()> {
        let (module, name) = (self.line()?, self.line()?);
        match Global::find(module, name) {
            Some(global) => self.make(Value::Global(global)),
            None => {
                let name = format!("{}.{}", module.shown(), name.shown());
                let (at, place) = (self.opcode, self.place.to_owned());
                Err(fault(PickleFault::Global { name, at, place }))
            }
        }
    }

    /// A storage is named by a tuple: `storage`, its class, its key, its device, its length, and, in
    /// legacy files, which part of it is meant.
    pub(super) fn persistent(&mut self) -> Result<()> {
        let id = self.pop()?;
        let storage = self.storage(id);
        match storage {
            Some(storage) => self.make(Value::Storage(Box::new(storage))),
            None => self.call("it refers to something that is no storage"),
        }
    }

    fn storage(&self, id: Id) -> Option<Storage> {
        let items = self.tuple(id)?;
        let (&[kind, class, key, _device, elements], more) = items.split_first_chunk::<5>()?;
        let Value::Global(Global::Storage(element)) = self.values[class as usize] else {
            return None;
        };
        let part = match (more, self.is_legacy) {
            ([], false) => None,
            ([part], true) if *part == NONE => None,
            ([part], true) => {
                let &[key, start, length] = self.tuple(*part)? else { return None };
                text(self.pickle, &self.values[key as usize])?;
                let (start, elements) = (self.natural(start)?, self.natural(length)?);
                Some(Part { key, start, elements })
            }
            _ => return None,
        };
        let is_storage = text(self.pickle, &self.values[kind as usize]) == Some("storage");
        text(self.pickle, &self.values[key as usize])?;
        let elements = self.natural(elements)?;
        is_storage.then_some(Storage { element, key, elements, part })
    }

    /// A call of the second last value with the last: what comes of it is noted, not done.
    pub(super) fn reduce(&mut self) -> Result<()> {
        let pair = self.last(2)?;
        let (function, arguments) = (pair[0], pair[1]);
        let Value::Global(function) = self.values[function as usize] else {
            return self.call("it calls what is no function");
        };
        let Some(arguments) = self.tuple(arguments) else {
            return self.call("it calls a function with what are no arguments");
        };
        match function {
            Global::OrderedDict => match self.pairs(arguments) {
                Some(members) => self.make_ordered(members),
                None => self.call("it makes a dict of what are no pairs"),
            },
            Global::Rebuild(function) => match self.rebuilt(function, arguments, 0) {
                Ok(tensor) => {
                    // It takes as much memory as several values.
                    self.use_up(16 + 4 * tensor.sizes.len())?;
                    self.make(Value::Tensor(Box::new(tensor)))
                }
                Err(problem) => self.call(format!("it makes a tensor {problem}")),
            },
            Global::Size => match arguments[..] {
                [sizes] if self.tuple(sizes).is_some() => self.push(sizes),
                _ => self.call("it makes a size of what are no numbers"),
            },
            Global::Inert => self.push(INERT),
            Global::Storage(_) | Global::Dtype(_) | Global::TensorClass => {
                self.call("it calls what it may only name")
            }
        }
    }

    pub(super) fn new_object(&mut self) -> Result<()> {
        let pair = self.last(2)?;
        let is_bare = self.tuple(pair[1]).is_some_and(<[Id]>::is_empty);
        match self.values[pair[0] as usize] {
            Value::Global(Global::OrderedDict) if is_bare => self.make_ordered(Vec::new()),
            Value::Global(Global::Inert) if is_bare => self.push(INERT),
            _ => self.call("it makes an object of a class that tensors do not need"),
        }
    }

    fn make_ordered(&mut self, members: Vec<(Id, Id)>) -> Result<()> {
        self.use_up(members.len())?;
        self.ordered.insert(self.values.len() as Id);
        self.make(Value::Dict(members))
    }

    /// The members of a dict that is made of a list of pairs, or of nothing.
    fn pairs(&self, arguments: &[Id]) -> Option<Vec<(Id, Id)>> {
        let [list] = arguments else { return arguments.is_empty().then(Vec::new) };
        let (Value::List(items) | Value::Tuple(items)) = &self.values[*list as usize] else {
            return None;
        };
        let pair = |item: &Id| match &self.values[*item as usize] {
            Value::List(pair) | Value::Tuple(pair) if pair.len() == 2 => Some((pair[0], pair[1])),
            _ => None,
        };
        // What would be too much is not put together first.
        let fits = self.uses + items.len() <= MAX_USES;
        if fits { items.iter().map(pair).collect() } else { None }
    }

    /// The state of an object: attributes of an ordered dict, which are not members of it.
    pub(super) fn build(&mut self) -> Result<()> {
        let state = self.pop()?;
        let (top, state) = (self.top()?, &self.values[state as usize]);
        match state {
            Value::Dict(_) if self.ordered.contains(&top) => Ok(()),
            _ => self.call("it sets the state of what needs none"),
        }
    }

    /// Whether attributes of a tensor are only kept beside it: a dict of them, or two, as of a class
    /// with slots. What a tensor is made of can be set like an attribute, too.
    fn is_plain_state(&self, state: Option<&Value>) -> bool {
        /// What can be set of a tensor in torch 2.15.
        const SET: [&str; 11] = [
            "data",
            "real",
            "imag",
            "grad",
            "_grad",
            "_grad_fn",
            "grad_dtype",
            "names",
            "requires_grad",
            "volatile",
            "_backward_hooks",
        ];
        let is_plain = |key: Id| {
            let name = text(self.pickle, &self.values[key as usize]);
            name.is_some_and(|name| !SET.contains(&name) && !name.starts_with("__"))
        };
        match state {
            None | Some(Value::None) => true,
            Some(Value::Dict(members)) => members.iter().all(|(key, _)| is_plain(*key)),
            Some(Value::Tuple(parts)) if parts.len() == 2 => {
                parts.iter().all(|part| match &self.values[*part as usize] {
                    Value::None => true,
                    Value::Dict(members) => members.iter().all(|(key, _)| is_plain(*key)),
                    _ => false,
                })
            }
            _ => false,
        }
    }

    /// The tensor that a function makes of these arguments, or what is wrong with them.
    fn rebuilt(
        &self,
        function: Rebuild,
        arguments: &[Id],
        depth: usize,
    ) -> std::result::Result<Tensor, &'static str> {
        const WRONG: &str = "of the wrong arguments";
        const STATE: &str = "whose attributes would change it";
        let value = |at: usize| arguments.get(at).map(|id| &self.values[*id as usize]);
        let count = arguments.len();
        match function {
            Rebuild::Parameter | Rebuild::ParameterWithState => {
                let expected = if function == Rebuild::Parameter { 3 } else { 4 };
                match value(0) {
                    Some(Value::Tensor(_)) if !self.is_plain_state(value(3)) => Err(STATE),
                    Some(Value::Tensor(tensor)) if count == expected => Ok(*tensor.clone()),
                    _ => Err(WRONG),
                }
            }
            Rebuild::FromType => match (value(0), value(1), arguments.get(2)) {
                (
                    Some(Value::Global(Global::Rebuild(function))),
                    Some(Value::Global(Global::TensorClass)),
                    Some(inner),
                ) if count == 4 && depth == 0 => {
                    if !self.is_plain_state(value(3)) {
                        return Err(STATE);
                    }
                    self.rebuilt(*function, self.tuple(*inner).ok_or(WRONG)?, 1)
                }
                _ => Err("of a class that recast does not know"),
            },
            Rebuild::Tensor | Rebuild::V2 | Rebuild::V3 => {
                let (dtype, last) = match function {
                    Rebuild::Tensor => (None, 4),
                    Rebuild::V2 => (None, 6),
                    _ => (Some(6), 7),
                };
                if count < last || count > last + usize::from(function != Rebuild::Tensor) {
                    return Err(WRONG);
                }
                let is_plain = match value(last) {
                    None | Some(Value::None) => true,
                    Some(Value::Dict(members)) => members.is_empty(),
                    Some(_) => false,
                };
                if !is_plain {
                    return Err("that is conjugated or negated when it is read");
                }
                let Some(Value::Storage(storage)) = value(0) else { return Err(WRONG) };
                let element = match dtype.and_then(value) {
                    None => storage.element,
                    Some(Value::Global(Global::Dtype(element))) => Some(*element),
                    Some(_) => return Err(WRONG),
                };
                let numbers = |at: usize| self.naturals(arguments[at]);
                let offset = self.natural(arguments[1]).ok_or("at a negative offset")?;
                let sizes = numbers(2).ok_or("of sizes that are none")?;
                let strides = numbers(3).ok_or("of strides that are none")?;
                if sizes.len() != strides.len() {
                    return Err("with other strides than sizes");
                }
                let element = element.ok_or("of bytes without a dtype")?;
                Ok(Tensor { storage: (**storage).clone(), element, offset, sizes, strides })
            }
        }
    }
}
