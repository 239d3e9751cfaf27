//! `cargo fuzz run pager fuzz/corpus/pager fuzz/seeds/pager --features libfuzzer`
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    mitosis_fuzz::pager(bytes);
});
