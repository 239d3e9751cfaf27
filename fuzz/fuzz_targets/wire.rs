//! `cargo fuzz run wire fuzz/corpus/wire fuzz/seeds/wire --features libfuzzer`
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    mitosis_fuzz::wire(bytes);
});
