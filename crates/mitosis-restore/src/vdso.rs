//! Where the parent's kernel has another vdso than this node's.
//!
//! A program keeps the addresses of the vdso's functions from its start, so something must stand
//! there. The vdso's code goes with the data of its own kernel and no other: this node's kernel maps
//! its own pair, wherever it likes. So the parent's image is kept as ordinary memory at its address,
//! for whoever reads it (unwinders, debuggers), and each function that it exports begins with a jump
//! to this node's function of the same name, or does the plain system call where this node's vdso
//! has none. This node's vdso stays where the restore set it aside.
//!
//! A child that is itself forked to a third kernel has one such image more, which jumps to the one
//! before.

use crate::NodeFacts;
use crate::RestoreError;
use mitosis_descriptor::{Backing, Descriptor};
use mitosis_state::{Detail, List, Program};
use mitosis_stub::abi::FD_PLAN;

const MMAP: u16 = 9;
const MPROTECT: u16 = 10;
const PREAD: u16 = 17;
/// PROT_READ | PROT_WRITE
const READ_WRITE: u64 = 3;
/// MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS
const FIXED_ANONYMOUS: u64 = 0x32;
/// Bytes of the largest image that is believed; kernels have two pages.
pub const VDSO_BYTES_MAX: usize = 64 << 10;
/// Functions that are believed to be in one; kernels have six or seven, by two names each.
const FUNCTIONS_MAX: usize = 256;

/// A function that a vdso exports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VdsoFunction {
    /// Its name, `__vdso_...`.
    pub name: String,
    /// Where it begins, from the start of the image.
    pub offset: u64,
    /// Bytes of it.
    pub size: u64,
}

/// The functions that a vdso exports, one for each place, by their names with a prefix.
///
/// # Errors
/// What is wrong with the image: it came from another node.
pub fn functions(image: &[u8]) -> Result<Vec<VdsoFunction>, &'static str> {
    const SHT_DYNSYM: u64 = 11;
    /// STT_FUNC
    const FUNC: u64 = 2;
    const SECTION: u64 = 64;
    const SYMBOL: u64 = 24;
    if image.len() > VDSO_BYTES_MAX || image.get(..5) != Some(b"\x7fELF\x02") {
        return Err("it is no 64-bit ELF image");
    }
    let cut = "its tables do not lie in it";
    let (table, entry, count) = (word(image, 0x28, 8), word(image, 0x3a, 2), word(image, 0x3c, 2));
    let (Some(table), Some(SECTION), Some(count)) = (table, entry, count) else {
        return Err("it has no table of sections");
    };
    let section =
        |index: u64| (index < count).then(|| table.checked_add(index * SECTION)).flatten();
    let field = |section: u64, at: u64, size| word(image, section.checked_add(at)?, size);
    let symbols = (0..count).filter_map(section).find(|s| field(*s, 4, 4) == Some(SHT_DYNSYM));
    let symbols = symbols.ok_or("it has no dynamic symbols")?;
    let strings = field(symbols, 0x28, 4).and_then(section).ok_or(cut)?;
    let strings = bytes(image, field(strings, 0x18, 8), field(strings, 0x20, 8)).ok_or(cut)?;
    let symbols = bytes(image, field(symbols, 0x18, 8), field(symbols, 0x20, 8)).ok_or(cut)?;
    let mut found = Vec::new();
    for symbol in symbols.chunks_exact(SYMBOL as usize).take(FUNCTIONS_MAX) {
        let get = |at, size| word(symbol, at, size).ok_or(cut);
        let (name, kind, section) = (get(0, 4)?, get(4, 1)? & 0xf, get(6, 2)?);
        let (offset, size) = (get(8, 8)?, get(16, 8)?);
        let name = strings.get(name as usize..).and_then(|rest| rest.split(|b| *b == 0).next());
        let name = String::from_utf8_lossy(name.ok_or(cut)?).into_owned();
        // Each has a second name without the prefix.
        if kind != FUNC || section == 0 || !name.starts_with("__vdso_") {
            continue;
        }
        if offset.checked_add(size).is_none_or(|end| end > image.len() as u64) {
            return Err("a function does not lie in it");
        }
        found.push(VdsoFunction { name, offset, size });
    }
    match found.is_empty() {
        true => Err("it exports no function"),
        false => Ok(found),
    }
}

/// A little-endian number of `size` bytes.
fn word(image: &[u8], at: u64, size: usize) -> Option<u64> {
    let at = usize::try_from(at).ok()?;
    let bytes = image.get(at..at.checked_add(size)?)?;
    Some(bytes.iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte)))
}

fn bytes(image: &[u8], at: Option<u64>, len: Option<u64>) -> Option<&[u8]> {
    let (at, len) = (usize::try_from(at?).ok()?, usize::try_from(len?).ok()?);
    image.get(at..at.checked_add(len)?)
}

/// The system call that a function of the vdso stands for.
fn call_of(name: &str) -> Option<u32> {
    Some(match name {
        "__vdso_gettimeofday" => 96,
        "__vdso_time" => 201,
        "__vdso_clock_gettime" => 228,
        "__vdso_clock_getres" => 229,
        "__vdso_getcpu" => 309,
        "__vdso_getrandom" => 318,
        _ => return None,
    })
}

/// `mov eax, value`
fn load(value: u32) -> Vec<u8> {
    [&[0xb8], value.to_le_bytes().as_slice()].concat()
}

/// `movabs rax, target; jmp rax`
fn jump(target: u64) -> Vec<u8> {
    [&[0x48, 0xb8], target.to_le_bytes().as_slice(), &[0xff, 0xe0]].concat()
}

/// What a function does instead: arguments are where the system call wants them, and a vdso's
/// function returns what the call does.
fn instead(name: &str, here: Option<u64>) -> Vec<u8> {
    const ENOSYS: u32 = -38i32 as u32;
    const RET: &[u8] = &[0xc3];
    const SYSCALL: &[u8] = &[0x0f, 0x05];
    if let Some(target) = here {
        return jump(target);
    }
    let Some(number) = call_of(name) else { return [&load(ENOSYS), RET].concat() };
    let call = [&load(number), SYSCALL, RET].concat();
    match name {
        // Asked with a length of -1 for what state it needs (`cmp r8, -1; jne`), it must not say
        // that it has told.
        "__vdso_getrandom" => {
            let none = [&load(ENOSYS), RET].concat();
            [&[0x49, 0x83, 0xf8, 0xff, 0x75, none.len() as u8], none.as_slice(), &call].concat()
        }
        _ => call,
    }
}

/// The parent's vdso as its child has it.
#[derive(Debug)]
pub(crate) struct Kept {
    start: u64,
    image: Vec<u8>,
    prot: u8,
}

impl Kept {
    /// Whether the parent's vdso must be kept, and as what. This node's own lies at `here`.
    ///
    /// # Errors
    /// [`RestoreError::Incompatible`]: the image is not known or none, or a thread is inside of it.
    pub(crate) fn of(
        descriptor: &Descriptor,
        node: &NodeFacts,
        image: Option<&[u8]>,
        here: u64,
    ) -> Result<Option<Kept>, RestoreError> {
        if !differs(descriptor, node) {
            return Ok(None);
        }
        let kernel = &descriptor.origin.kernel;
        let wrong = |why: &str| {
            let what = "the parent's kernel has another vdso than this node's";
            RestoreError::Incompatible(format!("{what} ({kernel}), and {why}"))
        };
        let Some(vma) = descriptor.vmas.iter().find(|vma| vma.backing == Backing::Vdso) else {
            return Ok(None);
        };
        let image = image.ok_or_else(|| wrong("its image is not known"))?;
        if !is_parents(descriptor, image) || image.len() as u64 != vma.end - vma.start {
            return Err(wrong("what its node gave is not the parent's"));
        }
        let inside = |rip: u64| (vma.start..vma.end).contains(&rip);
        if let Some(thread) = descriptor.threads.iter().find(|thread| inside(thread.regs.rip)) {
            let why = format!("thread {} is inside of it: prepare it again", thread.tid);
            return Err(wrong(&why));
        }
        let image = proxy(image, node, here).map_err(|why| wrong(&why))?;
        Ok(Some(Kept { start: vma.start, image, prot: vma.prot }))
    }

    /// Puts it in place, from the plan's own file.
    pub(crate) fn map(&self, program: &mut Program, fd_base: u32) {
        let len = self.image.len() as u64;
        let detail = || Detail::Range(self.start, self.start + len);
        let from = program.data(&self.image) - program.region.base;
        let args = [self.start, len, READ_WRITE, FIXED_ANONYMOUS, u64::MAX, 0];
        program.call(List::Build, MMAP, &args, "map-vmas: the parent's vdso", detail());
        let fd = u64::from(fd_base) + FD_PLAN as u64;
        let what = "map-vmas: read the parent's vdso";
        program.call_expect(List::Build, PREAD, &[fd, self.start, len, from], len, what, detail());
        let args = [self.start, len, u64::from(self.prot)];
        program.call(List::Build, MPROTECT, &args, "map-vmas: mprotect the vdso", detail());
    }
}

/// Whether a plan for this node needs the image of the parent's vdso.
pub fn differs(descriptor: &Descriptor, node: &NodeFacts) -> bool {
    descriptor.origin.vdso_crc != node.vdso_crc
}

/// Whether that is the image of the parent's vdso.
pub fn is_parents(descriptor: &Descriptor, image: &[u8]) -> bool {
    crc32fast::hash(image) == descriptor.origin.vdso_crc
}

/// The image with other beginnings of its functions.
fn proxy(image: &[u8], node: &NodeFacts, here: u64) -> Result<Vec<u8>, String> {
    let mut out = image.to_vec();
    let mut end_before = 0;
    let mut all = functions(image)?;
    all.sort_by_key(|function| function.offset);
    for VdsoFunction { name, offset, size } in all {
        let own = node.vdso_functions.iter().find(|own| own.name == name);
        let code = instead(&name, own.map(|own| here + own.offset));
        if offset < end_before || size < code.len() as u64 {
            return Err(format!("its {name} has no room for a jump"));
        }
        let at = offset as usize;
        out[at..at + code.len()].copy_from_slice(&code);
        end_before = offset + code.len() as u64;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own_image() -> Vec<u8> {
        mitosis_sys::procfs::vdso(std::process::id() as i32).expect("vdso")
    }

    #[test]
    fn this_machines_vdso_exports_its_functions() {
        let found = functions(&own_image()).expect("functions");
        for name in ["__vdso_clock_gettime", "__vdso_gettimeofday", "__vdso_time"] {
            assert!(found.iter().any(|function| function.name == name), "{name}: {found:?}");
        }
    }

    #[test]
    fn an_image_that_is_cut_or_garbled_is_an_error_and_never_a_panic() {
        let image = own_image();
        for len in (0..image.len()).step_by(7) {
            let _ = functions(&image[..len]);
        }
        for at in (0..image.len()).step_by(3) {
            let mut garbled = image.clone();
            garbled[at] ^= 0xff;
            let _ = functions(&garbled);
        }
        assert!(functions(&image[..64]).is_err());
        assert!(functions(b"not an image").is_err());
    }

    #[test]
    fn each_function_gets_a_jump_or_a_system_call() {
        let image = own_image();
        let mut node = crate::NodeFacts::read().expect("facts");
        node.vdso_functions.retain(|function| function.name != "__vdso_time");
        let out = proxy(&image, &node, 0x1000_0000).expect("proxy");
        for function in functions(&image).expect("functions") {
            let code = &out[function.offset as usize..];
            match function.name.as_str() {
                "__vdso_time" => assert_eq!(&code[..8], b"\xb8\xc9\0\0\0\x0f\x05\xc3"),
                _ => {
                    let target = u64::from_le_bytes(code[2..10].try_into().expect("word"));
                    assert_eq!(target, 0x1000_0000 + function.offset);
                }
            }
        }
    }
}
