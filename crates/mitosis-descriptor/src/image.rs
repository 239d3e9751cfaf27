//! The process image: everything but the pages, and which machine it was taken on.

mod files;
mod memory;
mod process;
mod rare;
mod thread;

pub use files::*;
pub use memory::*;
pub use process::*;
pub use rare::*;
pub use thread::*;

use crate::{PageIndex, Secret, SeedId};
use serde::{Deserialize, Serialize};

/// Everything but the pages.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Descriptor {
    /// Where and when it was taken, and what the machine looked like.
    pub origin: Origin,
    /// Process-wide state.
    pub process: Process,
    /// Threads; the first is the thread-group leader. Never empty.
    pub threads: Vec<Thread>,
    /// Files that VMAs map.
    pub files: Vec<MappedFile>,
    /// Sorted by address, not overlapping.
    pub vmas: Vec<Vma>,
    /// Who owns pages; entry 0 is the seed this descriptor belongs to.
    pub owners: Vec<Owner>,
    /// Pages that hold data, by owner. A page of an anonymous VMA in no run is zero; a page of a
    /// private file VMA in no run is the file's.
    pub pages: PageIndex,
    /// Memory that VMAs map shared and no file holds.
    pub shared: Vec<SharedObject>,
    /// Open file descriptions and the descriptors that name them.
    pub open_files: Vec<OpenFile>,
    /// What its clocks showed.
    pub clocks: Clocks,
    /// What can be called in a child before it goes on.
    pub hooks: Hooks,
    /// What few processes have.
    pub rare: Rare,
}

/// Functions of the program that a child may have to call before it goes on, so that it does not
/// draw the same random numbers as its siblings.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Hooks {
    /// Each thread was waiting in a system call: none was in the middle of anything.
    pub idle: bool,
    /// The main thread was.
    pub main_waits: bool,
    /// Those that were found, by the names under which programs export them.
    pub functions: Vec<Function>,
}

/// A function that the program or one of its libraries exports.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Function {
    /// The symbol.
    pub name: String,
    /// Its address in the process.
    pub address: u64,
}

/// The clocks that count from the start of a machine, as the process saw them when it stood still,
/// in nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Clocks {
    /// `CLOCK_MONOTONIC`.
    pub monotonic: i64,
    /// `CLOCK_BOOTTIME`.
    pub boottime: i64,
    /// By how much its `CLOCK_MONOTONIC` was ahead of that of its node.
    pub monotonic_shift: i64,
    /// By how much its `CLOCK_BOOTTIME` was ahead of that of its node.
    pub boottime_shift: i64,
}

/// The machine and moment of the capture.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Origin {
    /// Name of the node.
    pub node: String,
    /// Wall clock at capture, in milliseconds since 1970.
    pub taken_unix_ms: u64,
    /// CRC-32 of the vdso image: equal images have equal layouts.
    pub vdso_crc: u32,
    /// XSAVE features (XCR0) enabled on the machine.
    pub xcr0: u64,
    /// Where its CPU has the state of those, but for the first two and AMX, in an XSAVE image.
    pub xsave: Vec<XsaveArea>,
    /// Registers of CPUID that name instructions.
    pub cpuid: Vec<u32>,
    /// Kernel release, for people.
    pub kernel: String,
}

/// Where a component of register state lies in an XSAVE image of standard format.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct XsaveArea {
    /// Its bit in XCR0.
    pub bit: u8,
    /// First byte.
    pub offset: u32,
    /// Bytes.
    pub bytes: u32,
}

/// An owner of pages: a seed on some node, with the capability to read it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Owner {
    /// `HOST:PORT` of the node that serves the pages.
    pub address: String,
    /// The seed there.
    pub seed: SeedId,
    /// The capability.
    pub secret: Secret,
}
