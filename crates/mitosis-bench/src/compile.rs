//! Programs in C that run beside the product, compiled in the node that needs them.

use crate::error::BenchError;
use mitosis_lab::Node;
use std::process::Command;

/// One program or library.
pub struct Program {
    /// Where it lies on each node.
    pub path: &'static str,
    /// Names and texts of its sources.
    pub sources: &'static [(&'static str, &'static str)],
    /// What the compiler is told besides.
    pub flags: &'static [&'static str],
}

const FLOOR: (&str, &str) = ("floor.c", include_str!("c/floor.c"));
const FLOOR_GUARD: (&str, &str) = ("floor_guard.c", include_str!("c/floor_guard.c"));
const SYNTHETIC: (&str, &str) = ("synthetic.c", include_str!("c/synthetic.c"));

/// The synthetic parent.
pub const PARENT: Program =
    Program { path: "/run/lab/synthetic", sources: &[SYNTHETIC, FLOOR], flags: &["-static"] };

/// What a parent loads that measures the kernel's part of children with guards, and the guards.
pub const FLOORS: [Program; 2] = [
    Program { path: "/run/lab/floor.so", sources: &[FLOOR], flags: &["-shared", "-fPIC"] },
    Program {
        path: "/run/lab/floor_guard",
        sources: &[FLOOR_GUARD],
        flags: &["-static", "-nostdlib", "-fno-stack-protector"],
    },
];

/// Compiles it into `node`, unless it is there.
pub fn compile(node: &Node, program: &Program) -> Result<(), BenchError> {
    if node.host_path(program.path).exists() {
        return Ok(());
    }
    let mut gcc = Command::new("gcc");
    gcc.arg("-O2").args(program.flags).args(["-o", program.path]);
    for (name, text) in program.sources {
        let source = format!("/run/lab/{name}");
        let path = node.host_path(&source);
        std::fs::write(&path, text).map_err(BenchError::io("compile", path.display()))?;
        gcc.arg(source);
    }
    node.run(gcc)?.success()?;
    Ok(())
}
