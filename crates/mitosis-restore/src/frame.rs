//! Signal frames: every thread leaves the restore code through rt_sigreturn(2), which sets all
//! registers at once (arch/x86/kernel/signal_64.c, struct rt_sigframe).

use mitosis_descriptor::Thread;
use mitosis_state::Program;

/// Bytes before the first frame: the gate and padding.
const GATE_BYTES: u64 = 128;
const _: () = assert!(size_of::<mitosis_stub::abi::Gate>() <= GATE_BYTES as usize);
/// pretcode, ucontext (304), siginfo (128).
const FRAME_BYTES: u64 = 8 + 304 + 128;
const FP_XSTATE_MAGIC1: u32 = 0x4650_5853;
const FP_XSTATE_MAGIC2: u32 = 0x4650_5845;
/// UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS
const UC_FLAGS: u64 = 7;

fn one_len(thread: &Thread) -> u64 {
    FRAME_BYTES.next_multiple_of(64) + (thread.xstate.len() as u64 + 4).next_multiple_of(64)
}

/// Where the frames end, which begin with the gate at `at`.
pub(crate) fn frames_end(at: u64, threads: &[Thread]) -> u64 {
    at + GATE_BYTES + threads.iter().map(one_len).sum::<u64>()
}

/// Writes every thread's frame and declares the thread.
/// `features` of the parent's register state are known here.
pub(crate) fn write_frames(
    program: &mut Program,
    threads: &[Thread],
    last: &[(u64, i32)],
    ended_leader: Option<u8>,
    features: u64,
    new_pid: bool,
) {
    let mut at = program.region.frames() + GATE_BYTES;
    let mut ends = ended_leader.map_or(0, |code| u64::from(code) + 1);
    for (thread, (calls, flags)) in threads.iter().zip(last) {
        let xstate_at = at + FRAME_BYTES.next_multiple_of(64);
        program.write_frame(at, &frame(thread, *calls, ends, xstate_at));
        program.write_frame(xstate_at, &xstate(thread, features));
        program.thread(if new_pid { 0 } else { thread.tid }, at, *flags);
        at += one_len(thread);
        ends = 0;
    }
}

/// In the place of `pretcode`, which nobody reads, is what the thread calls last; in that of `uc_link`, nor
/// that, the code plus one with which the main thread ends then.
fn frame(thread: &Thread, last_calls: u64, ends: u64, xstate_at: u64) -> Vec<u8> {
    let r = &thread.regs;
    let mut words = vec![last_calls, UC_FLAGS, ends];
    let (stack, flags, size) = thread.altstack;
    words.extend([stack, u64::from(flags), size]);
    words.extend([r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15]);
    words.extend([r.rdi, r.rsi, r.rbp, r.rbx, r.rdx, r.rax, r.rcx, r.rsp, r.rip, r.eflags]);
    // cs, gs, fs, ss: sixteen bits each.
    words.push((r.cs & 0xffff) | (r.ss & 0xffff) << 48);
    words.extend([0, 0, 0, 0]); // err, trapno, oldmask, cr2
    words.push(if thread.xstate.is_empty() { 0 } else { xstate_at });
    words.extend([0; 8]);
    words.push(thread.sigmask);
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

/// The XSAVE image with the software bytes a signal frame carries (struct _fpx_sw_bytes).
fn xstate(thread: &Thread, known: u64) -> Vec<u8> {
    let mut image = thread.xstate.clone();
    if image.len() < 576 {
        return image;
    }
    let size = image.len() as u32;
    let mut features = [0u8; 8];
    features.copy_from_slice(&image[512..520]);
    let mut software = Vec::with_capacity(48);
    software.extend(FP_XSTATE_MAGIC1.to_le_bytes());
    software.extend((size + 4).to_le_bytes());
    // All components of the image: those absent from XSTATE_BV return to their initial state, and so
    // do those that only this machine has.
    software.extend((mitosis_sys::cpu::frame_features() & known).to_le_bytes());
    software.extend(size.to_le_bytes());
    software.resize(48, 0);
    image[464..512].copy_from_slice(&software);
    image.extend(FP_XSTATE_MAGIC2.to_le_bytes());
    image
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_has_the_kernels_layout() {
        let regs = mitosis_descriptor::Registers {
            rip: 0x1122_3344,
            cs: 0x33,
            ss: 0x2b,
            ..Default::default()
        };
        let thread = Thread {
            tid: 1,
            regs,
            xstate: vec![0; 832],
            sigmask: 0xdead,
            altstack: (0, 2, 0),
            robust_list: (0, 0),
            clear_tid: 0,
            rseq: (0, 0, 0),
            name: Vec::new(),
            pending: Vec::new(),
            sched: Default::default(),
        };
        let frame = frame(&thread, 0x6000, 0, 0x5000);
        let word = |at: usize| u64::from_le_bytes(frame[at..at + 8].try_into().expect("word"));
        assert_eq!(word(0), 0x6000);
        // pretcode 8, ucontext: sigcontext at 40, its rip is word 16, fpstate word 23.
        assert_eq!(word(8 + 40 + 16 * 8), 0x1122_3344);
        assert_eq!(word(8 + 40 + 18 * 8), 0x33 | 0x2b << 48);
        assert_eq!(word(8 + 40 + 23 * 8), 0x5000);
        assert_eq!(word(8 + 40 + 256), 0xdead);
    }
}
