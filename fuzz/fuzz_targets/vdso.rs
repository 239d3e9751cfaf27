//! `cargo fuzz run vdso fuzz/corpus/vdso fuzz/seeds/vdso --features libfuzzer`
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    mitosis_fuzz::vdso(bytes);
});
