//! Filters are evaluated as the kernel does: `seccomp.c` asks it.

use super::*;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

/// A system call that no kernel has.
const NOBODYS: u32 = 1000;
const LD_ABS: u16 = 0x20;
const RET_A: u16 = 0x16;
const JEQ: u16 = 0x15;

fn instruction(code: u16, jump_true: u8, jump_false: u8, k: u32) -> u64 {
    u64::from(code) | u64::from(jump_true) << 16 | u64::from(jump_false) << 24 | u64::from(k) << 32
}

fn plain(code: u16, k: u32) -> u64 {
    instruction(code, 0, 0, k)
}

/// Numbers that follow from the first one (xorshift).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// Any calculation of instructions that a filter may have, whose result, folded to 12 bits, is the error of
/// the call.
fn calculation(numbers: &mut Numbers) -> Vec<u64> {
    let mut code = vec![plain(LD_ABS, 0), instruction(JEQ, 1, 0, NOBODYS), plain(0x06, RET_ALLOW)];
    // The kernel takes no filter that reads a cell which it has not written.
    for cell in 0..4 {
        code.extend([plain(LD_ABS, 16 + 4 * cell), plain(0x07, 0), plain(0x02, cell)]);
    }
    let count = 4 + numbers.below(40);
    for n in 0..count {
        let left = count - n - 1;
        let k = if numbers.below(2) == 0 { numbers.next() as u32 } else { numbers.below(8) as u32 };
        let source = 8 * numbers.below(2) as u16;
        code.push(match numbers.below(12) {
            0 => plain(LD_ABS, [0, 4, 16, 20, 24, 32, 44, 60][numbers.below(8) as usize]),
            1 => plain([0x00, 0x01][numbers.below(2) as usize], k),
            2 => plain([0x60, 0x61, 0x02, 0x03][numbers.below(4) as usize], k % 4),
            3 => plain([0x07, 0x87, 0x80, 0x81, 0x84][numbers.below(5) as usize], 0),
            4..8 => {
                let operation =
                    [0x00, 0x10, 0x20, 0x40, 0x50, 0x60, 0x70, 0xa0][numbers.below(8) as usize];
                let shifts = matches!(operation, 0x60 | 0x70);
                plain(4 | source | operation, if shifts { k % 32 } else { k })
            }
            8 => plain(0x34 | source, k.max(1)),
            9 => plain(0x05, numbers.below(left + 1) as u32),
            _ => {
                let operation = [0x10, 0x20, 0x30, 0x40][numbers.below(4) as usize];
                let mut way = || numbers.below(left.min(255) + 1) as u8;
                instruction(5 | source | operation, way(), way(), k)
            }
        });
    }
    // A ^= A >> 16 and the like, then SECCOMP_RET_ERRNO with what is left.
    for bits in [16, 8] {
        code.extend([plain(0x07, 0), plain(0x74, bits), plain(0xac, 0)]);
    }
    code.extend([plain(0x54, 0xfff), plain(0x44, 0x0005_0000), plain(RET_A, 0)]);
    code
}

#[test]
fn the_kernel_says_the_same_of_any_calculation() {
    let program = std::env::temp_dir().join(format!("mitosis-seccomp-{}", std::process::id()));
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/seccomp.c");
    let built = Command::new("gcc").arg("-O1").arg("-o").arg(&program).arg(source).status();
    assert!(built.expect("gcc").success());
    let mut asked = Command::new(&program)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("seccomp");
    std::fs::remove_file(&program).expect("its file");
    let mut to = asked.stdin.take().expect("stdin");
    let mut from = BufReader::new(asked.stdout.take().expect("stdout")).lines();
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    for n in 0..400 {
        let filter = calculation(&mut numbers);
        let args = [(); 6].map(|()| if numbers.below(3) == 0 { 0 } else { numbers.next() });
        let words = [filter.len() as u64].into_iter().chain(filter.iter().copied()).chain(args);
        let bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        to.write_all(&bytes).expect("it reads");
        let said = from.next().expect("it answers").expect("text");
        let own = evaluate(&filter, &Call { nr: NOBODYS, args });
        // A division by zero ends the filter with 0, which is to kill the thread.
        let own = match own {
            Some(0) => "killed".to_owned(),
            Some(result) if result & RET_ACTION_FULL == 0x0005_0000 => {
                format!("{}", result & 0xfff)
            }
            other => format!("{other:x?}"),
        };
        assert_eq!(own, said, "filter {n}: {filter:x?} of {args:x?}");
    }
    drop(to);
    assert!(asked.wait().expect("wait").success());
}

fn refuses(nr: u32) -> Vec<u64> {
    vec![
        plain(LD_ABS, 0),
        instruction(JEQ, 0, 1, nr),
        plain(0x06, 0x0005_0001),
        plain(0x06, RET_ALLOW),
    ]
}

#[test]
fn a_call_passes_if_all_filters_let_it() {
    let filters = [refuses(CAPSET), vec![plain(0x06, RET_LOG)], refuses(FUTEX)];
    assert!(pass(&filters, &call(RT_SIGRETURN, &[])));
    assert!(!pass(&filters, &call(CAPSET, &[])) && !pass(&filters, &call(FUTEX, &[])));
    for other in [0u32, 0x8000_0000, 0x7ff0_0000, 0x7fc0_0000, 0x0003_0000, 0x0005_0000] {
        assert!(!pass(&[vec![plain(0x06, other)]], &call(CAPSET, &[])), "{other:#x}");
    }
}

#[test]
fn what_is_no_filter_or_asks_for_the_address_lets_nothing_through() {
    let asks = vec![plain(LD_ABS, 8), plain(0x06, RET_ALLOW)];
    let no_end = vec![plain(0x05, 5)];
    let no_cell = vec![plain(0x60, 16), plain(0x06, RET_ALLOW)];
    let unknown = vec![plain(0xffff, 0), plain(0x06, RET_ALLOW)];
    for filter in [asks, no_end, no_cell, unknown, Vec::new()] {
        assert_eq!(evaluate(&filter, &call(CAPSET, &[])), None, "{filter:x?}");
    }
}

#[test]
fn each_thread_installs_what_only_it_has() {
    let filters = [refuses(1), refuses(2)];
    let own = |filters, strict| Confinement { filters, strict, no_new_privs: true };
    let of = |own, programs: &[u64], n| last_calls(own, programs, (n, 1), 0).expect("let through");
    let calls = |own, programs: &[u64], n| {
        let list = of(own, programs, n).into_iter();
        list.map(|Call { nr, args }| (nr, [args[0], args[1], args[2]])).collect::<Vec<_>>()
    };
    let (all, one) = ((SECCOMP, [1, 1, 0x10]), (SECCOMP, [1, 0, 0x20]));
    assert_eq!(calls(own(&filters, false), &[0x10, 0x20], 0), [all, one]);
    assert_eq!(calls(own(&filters, false), &[0x10, 0x20], 1), [one]);
    assert_eq!(calls(own(&filters[..1], false), &[0x10], 1), []);
    assert_eq!(calls(own(&[], true), &[], 1), [(SECCOMP, [0, 0, 0])]);

    let filters = [refuses(FUTEX), refuses(RT_SIGRETURN)];
    let refused = last_calls(own(&filters, false), &[0x10, 0x20], (1, 1), 0);
    assert!(refused.expect_err("no way out").to_string().contains("rt_sigreturn"));
}
