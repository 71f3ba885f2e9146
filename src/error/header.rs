use super::causes::{Reason, causes};
use crate::shown::counted;

causes! {
    /// Which rule of the safetensors format a file breaks.
    HeaderFault
    "HeaderError" {
        TooShort { bytes: u64 = 2_u64 }
            "it has {}, fewer than the 8 of the header length", counted(*bytes, "byte");
        TooLong { length: u64 = 2_u64, limit: u64 = 1_u64 }
            "the header says it is {length} bytes long, over the format's limit of {limit}";
        PastEnd { length: u64 = 2_u64, rest: u64 = 2_u64 }
            "the header says it is {} long, but the file ends {} after it starts",
            counted(*length, "byte"), counted(*rest, "byte");
        Utf8 { source: Reason = "REASON" }
            "the header is not UTF-8: {source}";
        Syntax { source: Reason = "REASON" }
            "the header is not the expected JSON: {source}";
        Entry { tensor: String = "NAME", reason: String = "REASON" }
            "the header is not the expected JSON: tensor '{tensor}': {reason}";
        DuplicateTensor { tensor: String = "NAME" }
            "the header is not the expected JSON: duplicate tensor '{tensor}'";
        Metadata { reason: String = "REASON" }
            "the header is not the expected JSON: __metadata__: {reason}";
        DuplicateMetadata { key: String = "KEY" }
            "the header is not the expected JSON: duplicate metadata key '{key}'";
        CutShort { bytes: u64 = 1_u64, expected: u64 = 2_u64 }
            "the file is cut short: {bytes} bytes instead of {expected}";
        TrailingBytes { bytes: u64 = 2_u64, expected: u64 = 1_u64 }
            "the file has bytes after the last tensor: {bytes} bytes instead of {expected}";
        Overlap { tensor: String = "NAME", start: u64 = 1_u64, expected: u64 = 2_u64 }
            "tensor '{tensor}' starts at {start} instead of {expected}: it overlaps the one before";
        Hole { tensor: String = "NAME", start: u64 = 2_u64, expected: u64 = 1_u64 }
            "tensor '{tensor}' starts at {start} instead of {expected}: it leaves a hole before it";
        Backwards { tensor: String = "NAME", start: u64 = 2_u64, end: u64 = 1_u64 }
            "tensor '{tensor}' ends (at {end}) before it starts (at {start})";
        WrongSize { tensor: String = "NAME", dtype: String = "DTYPE", shape: Vec<u64> = [2],
                    needed: u64 = 2_u64, bytes: u64 = 1_u64 }
            "tensor '{tensor}' ({dtype} {shape:?}) needs {}, but its offsets span {bytes}",
            counted(*needed, "byte");
        PartOfAByte { tensor: String = "NAME", dtype: String = "DTYPE", shape: Vec<u64> = [1] }
            "tensor '{tensor}' ({dtype} {shape:?}) does not end on a whole byte";
        TooManyElements { tensor: String = "NAME", dtype: String = "DTYPE", shape: Vec<u64> = [20],
                          bytes: u64 = 2_u64 }
            "tensor '{tensor}' ({dtype} {shape:?}) has more elements than bits: its offsets span {}",
            counted(*bytes, "byte");
        ElementsOverflow { tensor: String = "NAME", shape: Vec<u64> = [1] }
            "tensor '{tensor}' has a shape whose product overflows: {shape:?}";
        SizeOverflow { tensor: String = "NAME", shape: Vec<u64> = [1] }
            "tensor '{tensor}' has a shape whose size overflows: {shape:?}";
        ResultTooLong { length: u64 = 2_u64, limit: u64 = 1_u64 }
            "the header of its result would be {length} bytes long, over the format's limit of \
             {limit}";
    }
}
