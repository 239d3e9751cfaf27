//! Where a guard lives: everything that it keeps is near its text, so that one page table of each level
//! does. There are as many guards as children, and exec puts stack and vdso far away from the program:
//! that costs three page tables more, and two pages of a stack of which little is used. The nursery moves
//! before it makes any, which then find themselves there.

use crate::abi::GUARD_NAME;
use crate::guard::exit;
use crate::sys::{self, syscall};
use core::mem::MaybeUninit;

/// Where the text is (guest.ld).
const TEXT: u64 = 0x1_0000_0000;
/// Above the text, in the same two megabytes: what one page table of the last level covers.
const STACK: u64 = 0x1_0010_0000;
const STACK_BYTES: u64 = 8192;
const VDSO: u64 = 0x1_0018_0000;
/// More than exec maps for a stack.
const OLD_STACK_BYTES: u64 = 256 << 10;
/// A whole /proc/self/maps of this program.
const MAPS_BYTES: usize = 2048;
/// Exit status of a guard that could move one part of its vdso but not another.
const TORN: u64 = 6;
/// Of one that could be looked into.
const OPEN: u64 = 7;
const FIXED_NOREPLACE_ANON_PRIVATE: u64 = 0x100000 | 0x20 | 2;
const READ_WRITE: u64 = 3;
const PAGE: u64 = 4096;

/// `struct prctl_mm_map` (linux/prctl.h).
#[repr(C)]
struct Map {
    code: [u64; 2],
    data: [u64; 2],
    brk: [u64; 2],
    stack: u64,
    arguments: [u64; 2],
    environment: [u64; 2],
    auxiliary: u64,
    auxiliary_size: u32,
    exe: i32,
}

/// Prepares the move: gives the new top of the stack, and where the vdso is now. `None`: it cannot be,
/// and nothing has changed that matters.
pub fn prepare(vdso: u64) -> Option<(u64, u64)> {
    let at = syscall!(sys::MMAP, STACK, STACK_BYTES, READ_WRITE, FIXED_NOREPLACE_ANON_PRIVATE,
        -1i64, 0);
    if at as u64 != STACK {
        return None;
    }
    let name = STACK + STACK_BYTES - 16;
    let mut index = 0;
    while index < GUARD_NAME.len() {
        // SAFETY: the mapping just made; the name has 14 bytes.
        unsafe { ((name + index as u64) as *mut u8).write_volatile(GUARD_NAME[index]) };
        index += 1;
    }
    // What ps(1) shows: no environment, and the name.
    let end = name + GUARD_NAME.len() as u64;
    let brk = syscall!(sys::BRK, 0) as u64;
    let map = Map {
        code: [TEXT, STACK], data: [TEXT, TEXT], brk: [brk; 2], stack: name, arguments: [name, end],
        environment: [end; 2], auxiliary: 0, auxiliary_size: 0, exe: -1,
    };
    const PR_SET_MM: u64 = 35;
    const MAP: u64 = 14;
    if syscall!(sys::PRCTL, PR_SET_MM, MAP, &raw const map, size_of::<Map>(), 0) < 0 {
        return None;
    }
    Some((name, move_vdso(vdso)?))
}

/// What shares its user namespace may have all capabilities there, but must not get at what a guard has,
/// which is the node's user id and descriptors: nobody may trace a process that is not dumpable, nor open its
/// memory, files or root, without that capability in the namespace in which it was executed (ptrace(2)).
pub fn close_to_inspection() {
    const PR_SET_DUMPABLE: u64 = 4;
    if syscall!(sys::PRCTL, PR_SET_DUMPABLE, 0, 0, 0, 0) < 0 {
        exit(OPEN);
    }
}

/// Ends the old stack, which ended with the file name that exec puts there.
pub fn leave(file_name: u64) {
    let end = (file_name + PAGE) & !(PAGE - 1);
    syscall!(sys::MUNMAP, end - OLD_STACK_BYTES, OLD_STACK_BYTES);
}

/// Moves all parts of the vdso, as they lie to each other.
fn move_vdso(vdso: u64) -> Option<u64> {
    let mut text = MaybeUninit::<[u8; MAPS_BYTES]>::uninit();
    let len = read_maps(text.as_mut_ptr() as u64)?;
    // SAFETY: that many bytes have been read.
    let text = unsafe { core::slice::from_raw_parts(text.as_ptr().cast::<u8>(), len) };
    let (mut at, mut lowest) = (0, 0);
    while at < len {
        let start = hexadecimal(text, &mut at);
        at += 1;
        let end = hexadecimal(text, &mut at);
        let mut part = false;
        while at < len && text[at] != b'\n' {
            // [vvar], [vvar_vclock], [vdso]; not [vsyscall], which is the kernel's.
            let next = if at + 2 < len { text[at + 2] } else { 0 };
            part |= text[at] == b'[' && text[at + 1] == b'v' && (next == b'v' || next == b'd');
            at += 1;
        }
        at += 1;
        if !part {
            continue;
        }
        let first = lowest == 0;
        lowest = if first { start } else { lowest };
        const MAYMOVE_FIXED: u64 = 3;
        let (len, to) = (end - start, VDSO + (start - lowest));
        if syscall!(sys::MREMAP, start, len, len, MAYMOVE_FIXED, to) < 0 {
            if first {
                return None;
            }
            exit(TORN);
        }
    }
    if lowest == 0 || vdso < lowest { Some(vdso) } else { Some(vdso - lowest + VDSO) }
}

fn read_maps(to: u64) -> Option<usize> {
    const AT_FDCWD: i64 = -100;
    let path = *b"/proc/self/maps\0";
    let fd = syscall!(sys::OPENAT, AT_FDCWD, path.as_ptr(), 0o2_000_000, 0);
    let mut len = 0;
    loop {
        let n = syscall!(sys::READ, fd, to + len as u64, MAPS_BYTES - len);
        if n <= 0 {
            syscall!(sys::CLOSE, fd);
            return if n == 0 && len > 0 { Some(len) } else { None };
        }
        len += n as usize;
    }
}

/// The number at `at`, which is behind it afterwards.
fn hexadecimal(text: &[u8], at: &mut usize) -> u64 {
    let mut value = 0;
    while *at < text.len() {
        let digit = match text[*at] {
            digit @ b'0'..=b'9' => digit - b'0',
            digit @ b'a'..=b'f' => digit - b'a' + 10,
            _ => break,
        };
        value = value << 4 | u64::from(digit);
        *at += 1;
    }
    value
}
