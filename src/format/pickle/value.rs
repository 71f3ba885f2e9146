//! What a pickle may hold, and the names that it may use. A value is its number in one list, so that
//! what is met twice is there once, and nothing has to be copied, compared or dropped in depth.

use std::ops::Range;

use crate::dtype::Dtype;

pub type Id = u32;

#[derive(Clone, Debug)]
pub enum Value {
    None,
    Bool(bool),
    Int(i64),
    /// A text: where it lies in the pickle.
    Text(Range<u32>),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    /// A dict, in the order of insertion; of two equal keys, the later one counts.
    Dict(Vec<(Id, Id)>),
    Global(Global),
    Storage(Box<Storage>),
    Tensor(Box<Tensor>),
    /// Something that no tensor is made of: it may be stored, and is never looked into.
    Inert,
}

/// A name that a pickle may use. There are no others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Global {
    OrderedDict,
    /// The class of a storage, and the dtype of its elements: bytes where there is none.
    Storage(Option<Element>),
    Dtype(Element),
    Rebuild(Rebuild),
    /// `torch.Tensor` or `torch.nn.Parameter`, as what `_rebuild_from_type_v2` makes.
    TensorClass,
    Size,
    /// What makes something inert.
    Inert,
}

/// The dtype of an element: what torch calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Element(pub &'static str);

impl Element {
    /// Bytes of one in memory.
    pub fn bytes(self) -> u64 {
        match self.0 {
            "complex128" => 16,
            "complex32" => 4,
            name => Dtype::of_torch(name)
                .and_then(|dtype| dtype.bits())
                .map_or(1, |bits| bits.div_ceil(8)),
        }
    }

    /// The same as a dtype of safetensors, where that has it.
    pub fn dtype(self) -> Option<Dtype> {
        Dtype::of_torch(self.0).filter(|dtype| dtype.bits().is_some_and(|bits| bits >= 8))
    }
}

/// A function of torch that makes a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rebuild {
    /// Of a storage, an offset, sizes and strides; with flags from the second version on, and with a
    /// dtype in the third.
    Tensor,
    V2,
    V3,
    /// Of a tensor, and flags.
    Parameter,
    ParameterWithState,
    /// Of one of these functions, a class, and the function's arguments.
    FromType,
}

#[derive(Clone, Debug)]
pub struct Storage {
    pub element: Option<Element>,
    pub key: Id,
    /// Its elements; bytes where it has no dtype.
    pub elements: u64,
    /// The part that is meant; only in legacy files.
    pub part: Option<Part>,
}

/// A part of a storage, which has a key of its own.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    pub key: Id,
    /// In elements.
    pub start: u64,
    pub elements: u64,
}

#[derive(Clone, Debug)]
pub struct Tensor {
    pub storage: Storage,
    pub element: Element,
    /// In elements, like the strides.
    pub offset: u64,
    pub sizes: Vec<u64>,
    pub strides: Vec<u64>,
}

impl Global {
    /// What a name means, by its module and its name there; nothing where it is not on the list.
    pub fn find(module: &str, name: &str) -> Option<Global> {
        // Python 2 called it so.
        let module = if module == "__builtin__" { "builtins" } else { module };
        Some(match (module, name) {
            ("collections", "OrderedDict") => Global::OrderedDict,
            ("torch._utils", "_rebuild_tensor") => Global::Rebuild(Rebuild::Tensor),
            ("torch._utils", "_rebuild_tensor_v2") => Global::Rebuild(Rebuild::V2),
            ("torch._utils", "_rebuild_tensor_v3") => Global::Rebuild(Rebuild::V3),
            ("torch._utils", "_rebuild_parameter") => Global::Rebuild(Rebuild::Parameter),
            ("torch._utils", "_rebuild_parameter_with_state") => {
                Global::Rebuild(Rebuild::ParameterWithState)
            }
            ("torch._tensor", "_rebuild_from_type_v2") => Global::Rebuild(Rebuild::FromType),
            ("torch", "Tensor") | ("torch.nn.parameter", "Parameter") => Global::TensorClass,
            ("torch", "Size") => Global::Size,
            ("torch.storage", "UntypedStorage") => Global::Storage(None),
            ("torch" | "torch.cuda", name) if name.ends_with("Storage") => {
                Global::Storage(Some(element_of(name)?))
            }
            ("torch", "device")
            | ("collections", "Counter")
            | ("builtins", "set" | "bytearray" | "complex")
            | ("_codecs", "encode")
            | ("torch.serialization", "_get_layout") => Global::Inert,
            ("torch", name) => Global::Dtype(element(name)?),
            _ => return None,
        })
    }
}

/// The elements of a class of storages of torch.
fn element_of(class: &str) -> Option<Element> {
    let name = match class.strip_suffix("Storage")? {
        "Double" => "float64",
        "Float" => "float32",
        "Half" => "float16",
        "BFloat16" => "bfloat16",
        "Long" => "int64",
        "Int" => "int32",
        "Short" => "int16",
        "Char" => "int8",
        "Byte" => "uint8",
        "Bool" => "bool",
        "ComplexDouble" => "complex128",
        "ComplexFloat" => "complex64",
        _ => return None,
    };
    Some(Element(name))
}

/// A dtype of torch.
fn element(name: &str) -> Option<Element> {
    // What torch has and safetensors has not, or has as half of an element; everything else is in
    // the one table of dtypes.
    const OTHERS: [&str; 3] = ["complex128", "complex32", "float4_e2m1fn_x2"];
    let other = OTHERS.into_iter().find(|other| *other == name);
    Some(Element(other.or_else(|| Dtype::of_torch(name)?.torch_name())?))
}
