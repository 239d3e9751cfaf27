//! Freestanding: no libc, no heap, no statics, no relocations.
#![no_std]
#![no_main]

#[path = "../abi/mod.rs"]
#[allow(dead_code)]
mod abi;
mod calls;
mod capture;
mod guard;
mod hook;
mod nursery;
mod restore;
mod rooms;
mod settle;
mod sys;
mod template;
mod tree;

use core::arch::global_asm;

// The entries, 16 bytes apart (abi::ENTRY_*). Each gives its function a stack if it needs one.
global_asm!(
    ".section .text.entry,\"ax\",@progbits",
    ".globl guest_entry",
    "guest_entry:",
    ".byte 0xe9",
    ".long {guard} - . - 4",
    ".balign 16",
    ".byte 0xe9",
    ".long {restore} - . - 4",
    ".balign 16",
    ".byte 0xe9",
    ".long {capture} - . - 4",
    ".balign 16",
    ".byte 0xe9",
    ".long {capture_thread} - . - 4",
    ".balign 16",
    ".byte 0xe9",
    ".long {capture_timers} - . - 4",
    ".balign 16",
    ".byte 0xe9",
    ".long {pending} - . - 4",
    ".balign 16",
    ".byte 0xe9",
    ".long {random} - . - 4",
    ".balign 16",
    ".byte 0xe9",
    ".long {ready} - . - 4",
    ".balign 16",
    ".byte 0xe9",
    ".long {template} - . - 4",
    ".balign 16",
    ".byte 0xe9",
    ".long {calls} - . - 4",
    ".balign 16",
    ".byte 0xe9",
    ".long {serve} - . - 4",
    ".balign 16",
    guard = sym guard::entry,
    restore = sym restore::entry,
    capture = sym capture::entry,
    capture_thread = sym capture::entry_thread,
    capture_timers = sym capture::entry_timers,
    pending = sym hook::pending,
    random = sym hook::random,
    ready = sym hook::ready,
    template = sym template::entry,
    calls = sym calls::entry,
    serve = sym template::entry_serve,
);

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {
        sys::syscall!(sys::EXIT_GROUP, 125);
    }
}

/// The compiler emits calls to these.
///
/// # Safety
/// As memcpy(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memcpy(dst: *mut u8, src: *const u8, len: usize) -> *mut u8 {
    // SAFETY: the caller promises both ranges.
    unsafe {
        core::arch::asm!("rep movsb", inout("rcx") len => _, inout("rdi") dst => _,
                         inout("rsi") src => _, options(nostack, preserves_flags));
    }
    dst
}

/// # Safety
/// As memset(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memset(dst: *mut u8, byte: i32, len: usize) -> *mut u8 {
    // SAFETY: the caller promises the range.
    unsafe {
        core::arch::asm!("rep stosb", inout("rcx") len => _, inout("rdi") dst => _,
                         in("al") byte as u8, options(nostack, preserves_flags));
    }
    dst
}
