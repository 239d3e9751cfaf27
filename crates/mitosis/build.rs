//! What prints backtraces comes out of the C compiler's archive: a `libgcc_s.so` would be one more library
//! to load whenever a command is run, which is to be done in a millisecond.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-link-lib=static:-bundle=gcc_eh");
}
