//! `cargo fuzz run descriptor fuzz/corpus/descriptor crates/mitosis-descriptor/tests/golden --features libfuzzer`
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    mitosis_fuzz::descriptor(bytes);
});
