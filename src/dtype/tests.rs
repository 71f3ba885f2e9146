use super::*;

#[test]
fn the_table_is_in_the_official_writers_order() {
    use safetensors::Dtype as Official;
    let official = [
        Official::BOOL,
        Official::F4,
        Official::F6_E2M3,
        Official::F6_E3M2,
        Official::U8,
        Official::I8,
        Official::F8_E5M2,
        Official::F8_E4M3,
        Official::F8_E8M0,
        Official::F8_E4M3FNUZ,
        Official::F8_E5M2FNUZ,
        Official::I16,
        Official::U16,
        Official::F16,
        Official::BF16,
        Official::I32,
        Official::U32,
        Official::F32,
        Official::C64,
        Official::F64,
        Official::I64,
        Official::U64,
    ];
    assert!(official.is_sorted());
    for (row, official) in DTYPES.iter().zip(official) {
        assert_eq!(row.name, official.to_string());
        assert_eq!(row.bits, official.bitsize() as u64);
    }
}

#[test]
fn every_alias_of_the_command_line_is_understood() {
    for (float, names) in [
        (Float::F32, ["fp32", "float32", "f32"].as_slice()),
        (Float::F16, &["fp16", "float16", "half", "f16", "torch.float16"]),
        (Float::Bf16, &["bf16", "bfloat16", "BF16", "torch.bfloat16"]),
    ] {
        for name in names {
            assert_eq!(Float::parse(name), Some(float), "{name}");
        }
    }
    assert_eq!(Float::parse("fp64"), None);
}
