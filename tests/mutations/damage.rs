//! Seeded damage to valid files.

use std::collections::HashMap;

use safetensors::serialize;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;

/// Steele, Lea and Flood's SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }
}

/// What a JSON text is spliced with: what its own tokens may be confused with.
const TOKENS: [&str; 46] = [
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\"",
    "null",
    "true",
    "0",
    "1",
    "4",
    "8",
    "-1",
    "-0",
    "1.0",
    "1e2",
    "1e999",
    "007",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "4611686018427387904",
    "\"F32\"",
    "\"BF16\"",
    "\"F4\"",
    "\"F99\"",
    "\"f32\"",
    "{\"F32\":null}",
    "\"dtype\"",
    "\"shape\"",
    "\"data_offsets\"",
    "\"__metadata__\"",
    "\"a\"",
    "\"\\u0061\"",
    "\"\\ud800\"",
    "\"\\x\"",
    "[0,0]",
    "[0,4]",
    "[4,8]",
    "[]",
    "\"\":{},",
    "\"z\":[1e999],",
    "\"weight_map\"",
    "\"metadata\"",
    "\"../x\"",
];

/// Members that a header may well have, and that only its other members make wrong.
const MEMBERS: [&str; 12] = [
    r#""z":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"#,
    r#""z":{"dtype":"F4","shape":[3],"data_offsets":[0,1]},"#,
    r#""z":{"dtype":"F99","shape":[9],"data_offsets":[0,1]},"#,
    r#""z":{"dtype":"F99","shape":[8],"data_offsets":[0,1]},"#,
    r#""a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"#,
    r#""b":{"dtype":"F99","shape":[2,0],"data_offsets":[0,0]},"#,
    r#""z":{"dtype":{"F32":null},"shape":[0],"data_offsets":[0,0]},"#,
    r#""z":{"dtype":"F4","shape":[0],"data_offsets":[0,0],"x":1e999},"#,
    r#""z":{"dtype":"F4","shape":[4611686018427387904,0],"data_offsets":[0,0],"x":{"x":[]}},"#,
    r#""z":{"dtype":"F64","shape":[0,4611686018427387904,9],"data_offsets":[0,0]},"#,
    r#""__metadata__":{"k":"v","k":"w"},"#,
    r#""__metadata__":{},"#,
];

/// Where a text's tokens start and end: a rough cut, good enough to replace some.
fn tokens(text: &[u8]) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < text.len() {
        let class = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-+\\".contains(&byte);
        let end = match text[at] {
            b'"' => text[at + 1..].iter().position(|&byte| byte == b'"').map_or(1, |n| n + 2),
            byte if class(byte) => text[at..].iter().take_while(|&&byte| class(byte)).count(),
            _ => 1,
        };
        found.push((at, at + end));
        at += end;
    }
    found
}

/// Damages a JSON text in one place.
pub fn mutate_text(text: &mut Vec<u8>, random: &mut Random) {
    if text.is_empty() {
        return;
    }
    let at = random.below(text.len());
    match random.below(9) {
        0 => text[at] ^= 1 << random.below(8),
        1 => text.insert(at, *random.pick(b"{}[]\",:0123456789 \\\0\x7f\xff\xc3eE.-")),
        2 => drop(text.remove(at)),
        3 => text.truncate(at),
        4 => {
            // A part again, somewhere: keys that stand twice, nesting that does not close.
            let end = at + random.below((text.len() - at).min(80));
            let (part, to) = (text[at..end].to_vec(), random.below(text.len()));
            text.splice(to..to, part);
        }
        kind => {
            let tokens = tokens(text);
            let &(start, end) = random.pick(&tokens);
            let token = if kind < 7 {
                random.pick(&TOKENS).as_bytes().to_vec()
            } else {
                let &(start, end) = random.pick(&tokens);
                text[start..end].to_vec()
            };
            let end = if random.below(4) == 0 { start } else { end };
            text.splice(start..end, token);
        }
    }
}

/// Makes one of the numbers a little larger or smaller.
fn change_number(text: &mut Vec<u8>, random: &mut Random) {
    let tokens = tokens(text).into_iter().filter_map(|(start, end)| {
        Some((start, end, std::str::from_utf8(&text[start..end]).ok()?.parse::<u32>().ok()?))
    });
    let numbers: Vec<_> = tokens.collect();
    if !numbers.is_empty() {
        let &(start, end, number) = random.pick(&numbers);
        let changed = i64::from(number) + *random.pick(&[-8, -4, -2, -1, 1, 2, 4, 8]);
        text.splice(start..end, changed.to_string().bytes());
    }
}

/// The largest number a header says where data ends.
fn last_end(header: &[u8]) -> Option<usize> {
    let header: Value = serde_json::from_slice(header).ok()?;
    let ends = header.as_object()?.values().filter_map(|entry| {
        let offsets = entry.get("data_offsets").or_else(|| entry.get(2))?;
        usize::try_from(offsets.get(1)?.as_u64()?).ok()
    });
    ends.max()
}

/// Damages a safetensors file in one to three places.
pub fn mutate_file(file: &[u8], random: &mut Random) -> Vec<u8> {
    let header_end = 8 + u64::from_le_bytes(file[..8].try_into().expect("8 bytes")) as usize;
    let (mut length, mut header) = (None, file[8..header_end].to_vec());
    let mut data = file[header_end..].to_vec();
    for _ in 0..=random.below(3) {
        match random.below(30) {
            0 => length = Some(random.next() >> random.below(64)),
            1 => {
                length =
                    Some((header.len() as u64).wrapping_add(random.next() % 17).wrapping_sub(8))
            }
            2 => length = Some(*random.pick(&[0, 1, 1 << 63, u64::MAX, u64::MAX - 7, 100_000_001])),
            3 => data.truncate(random.below(data.len())),
            4 => data.extend(vec![0; 1 + random.below(9)]),
            5..9 => {
                let first = header.iter().position(|&byte| byte == b'{').map_or(0, |at| at + 1);
                header.splice(first..first, random.pick(&MEMBERS).bytes());
            }
            9..14 => change_number(&mut header, random),
            _ => mutate_text(&mut header, random),
        }
    }
    // Half of the time there are as many bytes as the header asks for: what is wrong then is the
    // header alone.
    if let Some(end) = last_end(&header).filter(|&end| end < 1000 && random.below(2) == 0) {
        data.resize(end, 0);
    }
    // Mostly the length is made right again, so that the damage is looked at and not just seen.
    let old = (header_end - 8) as u64;
    let right = if random.below(8) == 0 { old } else { header.len() as u64 };
    let mut out = length.unwrap_or(right).to_le_bytes().to_vec();
    out.extend(header);
    out.extend(data);
    if random.below(50) == 0 {
        out.truncate(random.below(out.len() + 1));
    }
    out
}

/// Valid files of many kinds.
pub fn files() -> Vec<Vec<u8>> {
    let zeros = [0; 64];
    let view = |dtype, shape: &[usize], bytes| {
        TensorView::new(dtype, shape.to_vec(), &zeros[..bytes]).expect("valid")
    };
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let by_library = [
        serialize([("a", view(Dtype::F32, &[2, 2], 16))], Some(metadata)),
        serialize([("a", view(Dtype::BF16, &[4], 8)), ("b", view(Dtype::F16, &[], 2))], None),
        serialize([("e", view(Dtype::F32, &[0, 7], 0)), ("f", view(Dtype::F4, &[4], 2))], None),
        serialize((0..4).map(|n| (format!("layer.{n}"), view(Dtype::I64, &[1], 8))), None),
        serialize::<String, TensorView<'_>, _>([], None),
    ];
    let by_hand: [(&str, usize); 5] = [
        (" { \"a\" : { \"shape\":[2 ],\"dtype\":\"\\u00468_E4M3\" , \"data_offsets\":[0,2]} } ", 2),
        (r#"{"n":{"dtype":"F99","shape":[3],"data_offsets":[0,4]}}"#, 4),
        (
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":[{"y":1}]},"__metadata__":null}"#,
            4,
        ),
        (r#"{"a":["F32",[1],[4,8]],"é\n":["U8",[4],[0,4]]}"#, 8),
        (
            r#"{"__metadata__":{"b":"2","a":"1"},"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#,
            4,
        ),
    ];
    let mut files: Vec<Vec<u8>> = by_library.into_iter().map(|file| file.expect("valid")).collect();
    files.extend(by_hand.iter().map(|(header, data)| join(header.as_bytes(), &zeros[..*data])));
    files
}

pub fn join(header: &[u8], data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header, data].concat()
}
