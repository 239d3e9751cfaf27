//! Compiles the freestanding guest to one position-independent image.
//!
//! The guest runs in processes that have no libc, no heap and no relocations applied, at whatever
//! address is free, so it is linked as one read-execute segment without data.

use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=src");
    println!("cargo:rerun-if-changed=guest.ld");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default());
    let root = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let script = root.join("guest.ld");
    let status = Command::new(rustc)
        .args(["--edition", "2024", "--crate-type", "bin", "--crate-name", "mitosis_guest"])
        .args(["-C", "panic=abort", "-C", "opt-level=s", "-C", "codegen-units=1", "-C", "lto=fat"])
        .args(["-C", "relocation-model=pie", "-C", "overflow-checks=off", "-C", "strip=symbols"])
        .args(["-C", "force-unwind-tables=no", "-C", "target-cpu=x86-64"])
        .args([
            "-C",
            "link-arg=-nostdlib",
            "-C",
            "link-arg=-nostartfiles",
            "-C",
            "link-arg=-static",
        ])
        .args(["-C", "link-arg=-no-pie", "-C", "link-arg=-Wl,--build-id=none"])
        .arg("-C")
        .arg(format!("link-arg=-Wl,-T,{}", script.display()))
        .arg(root.join("src/guest/main.rs"))
        .arg("-o")
        .arg(out.join("guest.elf"))
        .status();
    match status {
        Ok(status) if status.success() => {}
        other => {
            eprintln!("compiling the guest failed: {other:?}");
            std::process::exit(1);
        }
    }
}
