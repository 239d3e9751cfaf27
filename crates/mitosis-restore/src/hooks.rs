//! What a child calls before it goes on, so that it draws other random numbers than its siblings.
//!
//! The functions are the program's own, found by name when it was captured. The recipes for CPython
//! and V8 are for a process in which each thread waits, and so holds no lock of theirs. In a busy one
//! V8 is left alone. CPython's main thread runs its recipe there when others run again, if it waits, and as
//! soon as it can, if not.

mod python;

use crate::plan::Request;
use mitosis_descriptor::{Descriptor, Hooks};
use mitosis_stub::abi::{
    CALL_SAVE_NONE, Call, ENTRY_RANDOM, ENTRY_READY, WANT_ANY, WANT_EQUAL, WANT_OR_SKIP,
    WANT_POINTER, WANT_TRUE,
};

const V8: &str = include_str!("hooks/v8.js");
/// Where a text is to have the generation number.
const DIGITS: &[u8] = b"0000000000000000";
/// Slot of the generation number.
const GENERATION: u64 = 0;
/// Since OpenSSL 0.9.5; deprecated in 3.0, for it is not what a new program should use.
const SET_METHOD: &str = "RAND_set_rand_method";
/// Since OpenSSL 1.1.0.
const INIT: &str = "OPENSSL_init_crypto";
/// Nothing but what each call of OpenSSL does (its include/internal/cryptlib.h).
const INIT_BASE_ONLY: u64 = 0x0004_0000;

/// The calls of one child, as they lie in its memory.
#[derive(Debug, Default)]
pub(crate) struct Laid {
    /// Data and calls, for the address they were laid for.
    pub bytes: Vec<u8>,
    /// Address of the calls, and their names in order.
    pub calls: u64,
    /// What each call is, for errors.
    pub names: Vec<String>,
    /// Address and count of what is called when the gate is open.
    pub late: (u64, u64),
    /// Their names.
    pub late_names: Vec<String>,
}

impl Laid {
    /// Whether anything is called.
    pub fn any(&self) -> bool {
        !self.names.is_empty() || !self.late_names.is_empty()
    }
}

/// Bytes that the calls take.
pub(crate) fn len(descriptor: &Descriptor, request: &Request) -> u64 {
    // The length does not depend on the place.
    lay(descriptor, request, 0, 0, 0).bytes.len() as u64
}

/// Lays all calls out at `base`, which is aligned to 16 bytes. `code` is where the resident code is,
/// `gate` where the gate.
pub(crate) fn lay(
    descriptor: &Descriptor,
    request: &Request,
    base: u64,
    code: u64,
    gate: u64,
) -> Laid {
    let hooks = &descriptor.hooks;
    if request.no_hooks || hooks.functions.is_empty() {
        return Laid::default();
    }
    let mut layout = Layout { base, ..Layout::default() };
    // First: V8 and Python draw from it.
    layout.openssl(hooks, code);
    layout.python(hooks, code, gate);
    if hooks.idle {
        layout.v8(hooks);
    }
    layout.all(hooks, "mitosis_after_fork", &[Arg::Slot(GENERATION)], 0);
    layout.finish()
}

#[derive(Clone, Copy)]
enum Arg {
    Value(u64),
    Slot(u64),
}

#[derive(Default)]
struct Layout {
    base: u64,
    bytes: Vec<u8>,
    calls: Vec<Call>,
    names: Vec<String>,
    /// What a pending call of CPython may have to do once more.
    again: Option<python::Again>,
    late: (u64, u64),
    late_names: Vec<String>,
}

impl Layout {
    fn data(&mut self, bytes: &[u8]) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(16), 0);
        let at = self.base + self.bytes.len() as u64;
        self.bytes.extend_from_slice(bytes);
        at
    }

    /// Overwrites words of data that were laid before.
    fn put(&mut self, at: u64, words: [u64; 3]) {
        let from = (at - self.base) as usize;
        for (to, word) in self.bytes[from..].chunks_exact_mut(8).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
    }

    fn call(&mut self, name: &str, function: u64, given: &[Arg], want: (u32, u64), save: u32) {
        let (want, expect) = want;
        let mut call = Call { function, args: [0; 5], slots: 0, save, want, expect, explain: 0 };
        for (n, arg) in given.iter().enumerate() {
            match arg {
                Arg::Value(value) => call.args[n] = *value,
                Arg::Slot(slot) => call.slots |= (slot + 1) << (8 * n),
            }
        }
        self.calls.push(call);
        self.names.push(name.to_owned());
    }

    fn string(&mut self, text: &str) -> u64 {
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(0);
        self.data(&bytes)
    }

    /// A text, ended by NUL, in which the child writes its generation number.
    fn text(&mut self, text: &str) -> u64 {
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(0);
        let digits = bytes.windows(DIGITS.len()).position(|part| part == DIGITS);
        let at = self.data(&bytes);
        if let Some(digits) = digits {
            let to = [Arg::Value(at + digits as u64)];
            self.call("generation number", 0, &to, (WANT_ANY, 0), CALL_SAVE_NONE);
        }
        at
    }

    /// Each function of that name: libraries that are linked statically are there several times.
    fn all(&mut self, hooks: &Hooks, name: &str, args: &[Arg], expect: u64) {
        for function in hooks.functions.iter().filter(|function| function.name == name) {
            self.call(name, function.address, args, (WANT_EQUAL, expect), CALL_SAVE_NONE);
        }
    }

    /// OpenSSL takes the kernel's random bytes from then on: its own generators are of the parent. That
    /// needs none of its locks for longer than an instant, costs nothing where it draws nothing, and
    /// is not forgotten by any thread. A process that is ending may have taken the library down already
    /// (`OPENSSL_cleanup`): its locks are gone then, but the one call that says so can still be made.
    fn openssl(&mut self, hooks: &Hooks, code: u64) {
        // struct rand_meth_st of openssl/rand.h: seed, bytes, cleanup, add, pseudorand, status.
        let (random, ready) = (code + ENTRY_RANDOM, code + ENTRY_READY);
        let words = [ready, random, 0, ready, random, ready];
        let method: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        if address(hooks, SET_METHOD).is_some() {
            let method = Arg::Value(self.data(&method));
            // A library's functions stand side by side.
            for (n, set) in hooks.functions.iter().enumerate().filter(|(_, f)| f.name == SET_METHOD)
            {
                if let Some(init) = hooks.functions.get(n + 1).filter(|f| f.name == INIT) {
                    let args = [Arg::Value(INIT_BASE_ONLY), Arg::Value(0)];
                    self.call(INIT, init.address, &args, (WANT_OR_SKIP, 1), CALL_SAVE_NONE);
                }
                let want = (WANT_EQUAL, 1);
                self.call(SET_METHOD, set.address, &[method], want, CALL_SAVE_NONE);
            }
        }
    }

    /// `Script::Compile(context, String::NewFromUtf8(isolate, text))->Run(context)`, as an embedder
    /// does it; handles are pointers in registers.
    fn v8(&mut self, hooks: &Hooks) {
        let find = |name: &str| address(hooks, name);
        let (Some(current), Some(open), Some(close), Some(context), Some(string)) = (
            find("_ZN2v87Isolate10GetCurrentEv"),
            find("_ZN2v811HandleScopeC1EPNS_7IsolateE"),
            find("_ZN2v811HandleScopeD1Ev"),
            find("_ZN2v87Isolate17GetCurrentContextEv"),
            find("_ZN2v86String11NewFromUtf8EPNS_7IsolateEPKcNS_13NewStringTypeEi"),
        ) else {
            return;
        };
        let (Some(compile), Some(run), Some(truth)) = (
            find(
                "_ZN2v86Script7CompileENS_5LocalINS_7ContextEEENS1_INS_6StringEEE\
                 PNS_12ScriptOriginE",
            ),
            find("_ZN2v86Script3RunENS_5LocalINS_7ContextEEE"),
            find("_ZNK2v85Value12BooleanValueEPNS_7IsolateE"),
        ) else {
            return;
        };
        let scope = Arg::Value(self.data(&[0; 64]));
        let text = Arg::Value(self.text(V8));
        let len = Arg::Value(V8.len() as u64);
        let (isolate, at, source, script, value) = (1, 2, 3, 4, 5);
        let [i, c, s, r, v] =
            [isolate, at, source, script, value].map(|slot| Arg::Slot(slot.into()));
        let pointer = (WANT_POINTER, 0);
        self.call("v8::Isolate::GetCurrent", current, &[], pointer, isolate);
        self.call("v8::HandleScope", open, &[scope, i], (WANT_ANY, 0), CALL_SAVE_NONE);
        self.call("v8::Isolate::GetCurrentContext", context, &[i], pointer, at);
        let args = [i, text, Arg::Value(0), len];
        self.call("v8::String::NewFromUtf8", string, &args, pointer, source);
        self.call("v8::Script::Compile", compile, &[c, s, Arg::Value(0)], pointer, script);
        self.call("v8::Script::Run", run, &[r, c], pointer, value);
        self.call("v8::Script::Run", truth, &[v, i], (WANT_TRUE, 0), CALL_SAVE_NONE);
        self.call("v8::~HandleScope", close, &[scope], (WANT_ANY, 0), CALL_SAVE_NONE);
    }

    /// Lays the calls out; gives their address and count.
    fn table(&mut self) -> (u64, u64) {
        let calls = std::mem::take(&mut self.calls);
        let words = calls.iter().flat_map(|call| {
            let Call { function, args: [a, b, c, d, e], slots, save, want, expect, explain } =
                *call;
            let how = u64::from(save) | u64::from(want) << 32;
            [function, a, b, c, d, e, slots, how, expect, explain]
        });
        let table: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        debug_assert_eq!(table.len(), calls.len() * size_of::<Call>());
        (self.data(&table), calls.len() as u64)
    }

    fn finish(mut self) -> Laid {
        if self.calls.is_empty() && self.late_names.is_empty() {
            return Laid::default();
        }
        let (calls, _) = self.table();
        if let Some(again) = self.again.take() {
            self.put(again.at, again.pending(calls));
        }
        let Layout { bytes, names, late, late_names, .. } = self;
        Laid { bytes, calls, names, late, late_names }
    }
}

fn address(hooks: &Hooks, name: &str) -> Option<u64> {
    hooks.functions.iter().find(|function| function.name == name).map(|found| found.address)
}
