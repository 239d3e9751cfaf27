//! `cargo fuzz run control fuzz/corpus/control fuzz/seeds/control --features libfuzzer`
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    mitosis_fuzz::control(bytes);
});
