use super::causes::causes;

causes! {
    /// Why a pickle is refused.
    PickleFault
    "PickleError" {
        NotOne
            "it is neither a zip archive nor a pickle of torch.save"
            => "download it again, or load it with its framework and save it as safetensors";
        Archive { problem: String = "PROBLEM" }
            "the zip archive {problem}, which torch.save does not write"
            => DAMAGED;
        TorchScript
            "it is a TorchScript archive, which holds code"
            => "load it with torch.jit.load() and save its state_dict() with torch.save()";
        Protocol { version: u8 = 2_u8, place: String = "PLACE" }
            "{place} is written in pickle protocol {version}"
            => "load it where it comes from and save it with torch.save(), which writes protocol 2";
        Opcode { name: String = "NAME", at: usize = 2_usize, place: String = "PLACE" }
            "opcode {name} at byte {at} of {place} is not one that tensors need"
            => UNTRUSTED;
        Global { name: String = "NAME", at: usize = 2_usize, place: String = "PLACE" }
            "it names '{name}' at byte {at} of {place}, which tensors do not need and recast never \
             imports"
            => UNTRUSTED;
        Call { problem: String = "PROBLEM", at: usize = 2_usize, place: String = "PLACE" }
            "{problem} at byte {at} of {place}"
            => UNTRUSTED;
        Damaged { problem: String = "PROBLEM", at: usize = 2_usize, place: String = "PLACE" }
            "{place} is damaged: {problem} at byte {at}"
            => DAMAGED;
        TooMuch { what: String = "WHAT", limit: u64 = 1_u64, place: String = "PLACE" }
            "{place} has more than {limit} {what}, the most that recast reads"
            => "load it with torch and save only its state_dict()";
        Byteorder { order: String = "ORDER" }
            "its byte order is '{order}'; recast reads little-endian pickles"
            => "load it with torch and save it again with torch.save()";
        Storage { key: String = "KEY", problem: String = "PROBLEM" }
            "storage '{key}' {problem}"
            => DAMAGED;
        Tensor { tensor: String = "NAME", problem: String = "PROBLEM" }
            "tensor '{tensor}' {problem}"
            => "load the file with torch, change or remove the tensor, and save it again";
        Expanded { bytes: u64 = 2_u64, limit: u64 = 1_u64 }
            "its tensors repeat few values: they would take {bytes} bytes, and recast writes at most \
             {limit} for a file of this size"
            => "load the file with torch, remove what is expanded, and save it again";
        Part
            "it is one of several parts that cut tensors by rows or columns"
            => "join them with the script of the model's authors";
        SameResult { other: String = "FILE", result: String = "FILE" }
            "it and '{other}' would both become '{result}'"
            => "convert them one by one";
        NoStateDict { found: String = "FOUND" }
            "no state dict was found: it holds {found}"
            => "give the key of the state dict with --key NAME, or save the model's state_dict() alone";
        NoDict { found: String = "FOUND" }
            "it holds {found}, not a state dict"
            => "save the model's state_dict() with torch.save()";
        StateDicts { keys: String = "KEYS" }
            "it holds several state dicts: {keys}"
            => "choose one with --key NAME";
        Nested { keys: String = "KEYS" }
            "its state dict also holds tensors within {keys}"
            => "a state dict has tensors and nothing around them: choose one with --key NAME, or load \
                the file with torch and save it flat";
        Beside { keys: String = "KEYS", chosen: String = "KEY" }
            "it holds tensors both under '{chosen}' and beside it: {keys}"
            => format!("give --key '{chosen}' to leave the others out");
        NoSuchKey { key: String = "KEY", keys: String = "KEYS" }
            "it has no '{key}' that holds tensors"
            => format!("its keys are: {keys}");
    }
}

const DAMAGED: &str = "download it again, or load it with torch and save it again";
const UNTRUSTED: &str = "recast reads only state dicts of tensors and runs nothing; if you trust the \
                         file, load it with torch and save its state_dict() alone";
