use super::causes::{Reason, causes};

causes! {
    /// What is wrong with a config or an index.
    JsonFault
    "InputError" {
        Utf8 { source: Reason = "REASON" }
            "not UTF-8: {source}";
        Syntax { source: Reason = "REASON" }
            "not valid JSON: {source}";
        TooLarge { bytes: u64 = 2_u64, limit: u64 = 1_u64 }
            "it has {bytes} bytes, and recast reads at most {limit} of such a file";
        TooDeep { levels: usize = 2_usize, limit: usize = 1_usize }
            "it is nested {levels} levels deep, and recast reads at most {limit}";
        NotAnObject
            "the index is not an object";
        NoWeightMap
            "the index has no object 'weight_map'";
        DuplicateKey { key: String = "KEY" }
            "duplicate key '{key}'";
        DuplicateTensor { tensor: String = "NAME" }
            "duplicate tensor '{tensor}'";
        NotAName { tensor: String = "NAME" }
            "tensor '{tensor}' is not mapped to a file name";
    }
}
