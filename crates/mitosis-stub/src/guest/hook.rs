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
    // SAFETY: as above.
    let failed = unsafe { make_all(gate.hooks, gate.generation) };
    if failed != 0 {
        gate.failed = failed;
        give_up();
    }
}

/// The same of those that are made when the gate is open: nobody waits for them any more.
pub unsafe extern "C" fn run_late(gate: *const Gate) {
    // SAFETY: as above. The program's other threads have no business there.
    let gate = unsafe { &*gate };
    // SAFETY: as above.
    if unsafe { make_all(gate.late, gate.generation) } != 0 {
        end();
    }
}

/// Gives the number of the call that failed, plus one, or 0.
unsafe fn make_all((calls, count): (u64, u64), generation: u64) -> u32 {
    let mut slots = [0u64; CALL_SLOTS];
    slots[0] = generation;
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
            WANT_ZERO_SKIP => result as u32 != 0,
            _ => false,
        };
        if wrong {
            if call.explain != 0 {
                // SAFETY: a function of the program without arguments.
                unsafe { core::mem::transmute::<u64, extern "C" fn()>(call.explain)() };
            }
            return index as u32 + 1;
        }
        if call.want == WANT_ZERO_SKIP || call.want == WANT_OR_SKIP && result == 0 {
            index += call.expect;
        }
        index += 1;
    }
    0
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
    end()
}

fn end() -> ! {
    loop {
        syscall!(sys::EXIT_GROUP, 126);
        // SAFETY: ends the process, where a filter forbids the call.
        unsafe { core::arch::asm!("ud2") };
    }
}

/// CPython calls it on its main thread, between two instructions. A failure ends the child.
pub unsafe extern "C" fn pending(calls: *const PendingCalls) -> i32 {
    // SAFETY: the planner laid it into memory that stays mapped, and the generation number too.
    let failed = unsafe {
        let calls = &*calls;
        make_all(calls.calls, *(calls.generation as *const u64))
    };
    if failed != 0 {
        end();
    }
    0
}

/// `int bytes(unsigned char *buf, int num)` of a `RAND_METHOD` (openssl/rand.h): 1, or 0 if the kernel
/// gives none.
pub unsafe extern "C" fn random(to: *mut u8, count: i32) -> i32 {
    let mut done = 0i64;
    while done < i64::from(count) {
        let got = syscall!(sys::GETRANDOM, to as i64 + done, i64::from(count) - done, 0);
        const EINTR: i64 = -4;
        if got < 0 && got != EINTR {
            return 0;
        }
        if got > 0 {
            done += got;
        }
    }
    1
}

/// `seed`, `add`, `status` of one.
pub unsafe extern "C" fn ready() -> i32 {
    1
}
