//! Functions of the program that a child calls before it goes on. All else is done by then: its
//! threads wait at the gate, its filters are in place, nothing of ours is open. What the functions do
//! is what the program could do itself.

use crate::abi::*;
use crate::sys::{self, syscall};

/// Makes all calls; does not return if one of them fails.
pub unsafe extern "C" fn run(gate: *mut Gate) {
    // SAFETY: the planner laid the gate and the calls into memory that stays mapped; only this
    // thread writes there now.
    let gate = unsafe { &mut *gate };
    let (calls, count) = gate.hooks;
    let mut slots = [0u64; CALL_SLOTS];
    slots[0] = gate.generation;
    let mut index = 0;
    while index < count {
        // SAFETY: index < count.
        let call = unsafe { &*(calls as *const Call).add(index as usize) };
        let result = make(call, &slots);
        if (call.save as usize) < CALL_SLOTS {
            slots[call.save as usize] = result;
        }
        let wrong = match call.want {
            WANT_EQUAL => result as u32 != call.expect as u32,
            WANT_POINTER => result == 0,
            WANT_TRUE => result as u8 == 0,
            _ => false,
        };
        if wrong {
            gate.failed = index as u32 + 1;
            give_up();
        }
        if call.want == WANT_OR_SKIP && result as u32 == 0 {
            index += call.expect;
        }
        index += 1;
    }
}

fn make(call: &Call, slots: &[u64; CALL_SLOTS]) -> u64 {
    let mut args = call.args;
    let mut at = 0;
    while at < args.len() {
        let slot = (call.slots >> (8 * at)) as u8 as usize;
        if slot != 0 && slot <= CALL_SLOTS {
            args[at] = slots[slot - 1];
        }
        at += 1;
    }
    if call.function == 0 {
        write_digits(args[0] as *mut u8, slots[0]);
        return 0;
    }
    // SAFETY: a function of the program, which takes at most five arguments, called where the
    // program itself could call it.
    unsafe {
        let function: extern "C" fn(u64, u64, u64, u64, u64) -> u64 =
            core::mem::transmute(call.function);
        function(args[0], args[1], args[2], args[3], args[4])
    }
}

fn write_digits(to: *mut u8, number: u64) {
    let mut at = 0;
    while at < GENERATION_DIGITS {
        let digit = (number >> (4 * (GENERATION_DIGITS - 1 - at))) as u8 & 15;
        let letter = if digit < 10 { b'0' + digit } else { b'a' + digit - 10 };
        // SAFETY: the planner left room for the digits there.
        unsafe { to.add(at).write_volatile(letter) };
        at += 1;
    }
}

/// The daemon sees the word and ends the child; if there is none any more, it ends by itself.
fn give_up() -> ! {
    let moment = [0u64, 1_000_000];
    let mut waited = 0;
    while waited < 5000 {
        syscall!(sys::NANOSLEEP, moment.as_ptr(), 0);
        waited += 1;
    }
    loop {
        syscall!(sys::EXIT_GROUP, 126);
        // SAFETY: ends the process, where a filter forbids the call.
        unsafe { core::arch::asm!("ud2") };
    }
}

/// CPython calls it on its main thread, between two instructions. A failure ends the child.
pub unsafe extern "C" fn pending(call: *const PendingCall) -> i32 {
    // SAFETY: the planner laid it into memory that stays mapped.
    unsafe {
        let call = &*call;
        (call.pending as *mut u32).write_volatile(0);
        let function: extern "C" fn(u64) -> i32 = core::mem::transmute(call.function);
        if function(call.text) != 0 {
            loop {
                syscall!(sys::EXIT_GROUP, 126);
                core::arch::asm!("ud2");
            }
        }
    }
    0
}
