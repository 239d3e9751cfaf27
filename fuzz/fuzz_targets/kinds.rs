//! `cargo fuzz run kinds fuzz/corpus/kinds fuzz/seeds/kinds --features libfuzzer`
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    mitosis_fuzz::kinds(bytes);
});
