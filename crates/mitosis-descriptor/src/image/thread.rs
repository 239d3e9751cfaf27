//! What each thread has: registers, signals, the way it is scheduled.

use super::SigInfo;
use serde::{Deserialize, Serialize};

/// One thread.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Thread {
    /// Thread id in its own pid namespace.
    pub tid: i32,
    /// General registers, rewound so that an interrupted system call starts again.
    pub regs: Registers,
    /// XSAVE image in the layout of a signal frame, cut to the size user space may see.
    pub xstate: Vec<u8>,
    /// Blocked signals.
    pub sigmask: u64,
    /// Alternate signal stack: address, flags, size.
    pub altstack: (u64, u32, u64),
    /// Head and length of the robust futex list.
    pub robust_list: (u64, u64),
    /// `clear_child_tid`.
    pub clear_tid: u64,
    /// Registered rseq area: address, length, signature. Zero length when there is none.
    pub rseq: (u64, u32, u32),
    /// Name (`comm`).
    pub name: Vec<u8>,
    /// Signals that wait for this thread alone.
    pub pending: Vec<SigInfo>,
    /// How it is scheduled.
    pub sched: Sched,
}

/// How a thread is scheduled (sched(7), ioprio_get(2)).
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Sched {
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*`, of which only `RESET_ON_FORK`, `RECLAIM` and `DL_OVERRUN`.
    pub flags: u64,
    /// Nice value, -20 to 19.
    pub nice: i32,
    /// Real-time priority, 1 to 99, or 0.
    pub priority: u32,
    /// Class and level; 0 for what follows from the nice value.
    pub ioprio: u32,
    /// CPUs it may run on, one bit each; empty for all of its machine.
    pub cpus: Vec<u64>,
    /// Of `SCHED_DEADLINE`: runtime, deadline and period in nanoseconds.
    pub reservation: [u64; 3],
}

/// `struct user_regs_struct` of x86-64 (sys/user.h), in a neutral order.
#[allow(missing_docs)] // each field is the register of that name
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Registers {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rip: u64,
    pub cs: u64,
    pub eflags: u64,
    pub rsp: u64,
    pub ss: u64,
    pub fs_base: u64,
    pub gs_base: u64,
}
