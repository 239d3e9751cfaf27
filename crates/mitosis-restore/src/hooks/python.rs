//! What an interpreter of CPython is to forget in a child, with its lock held: taken, where nobody has
//! it, or by the main thread itself that makes a pending call.
//!
//! A pending call comes between any two instructions, also in the midst of a function of numpy that
//! holds the lock of numpy's generator and calls Python: seeding it then would wait for ever. So what
//! may need that lock is a part of its own, which is put off for as long as somebody holds the lock.

use super::{Arg, GENERATION, Layout, address};
use mitosis_descriptor::Hooks;
use mitosis_stub::abi::{
    CALL_SAVE_NONE, Call, ENTRY_PENDING, Gate, PendingCalls, WANT_ANY, WANT_EQUAL, WANT_OR_SKIP,
    WANT_POINTER, WANT_ZERO_SKIP,
};

/// Slots of what is found on the way; that of [`GENERATION`] is none of them.
const STATE: u32 = 1;
const DICT: u32 = 2;
const MODULE: u32 = 3;
const FOUND: u32 = 4;
const INNER: u32 = 5;
const CLASS: u32 = 6;

/// Addresses of what the recipe calls.
struct Python {
    later: u64,
    modules: u64,
    item: u64,
    call: u64,
    has: u64,
    get: u64,
    set: u64,
    truth: u64,
    explain: u64,
}

impl Python {
    fn find(hooks: &Hooks) -> Option<Python> {
        let find = |name: &str| address(hooks, name);
        Some(Python {
            later: find("Py_AddPendingCall")?,
            modules: find("PyImport_GetModuleDict")?,
            item: find("PyDict_GetItemString")?,
            call: find("PyObject_CallMethod")?,
            has: find("PyObject_HasAttrString")?,
            get: find("PyObject_GetAttrString")?,
            set: find("PyObject_SetAttrString")?,
            truth: find("PyObject_IsTrue")?,
            explain: find("PyErr_Print")?,
        })
    }
}

/// The part of the calls that may be put off, and the words that a pending call of it takes.
#[derive(Clone, Copy)]
pub(super) struct Again {
    /// Where the words are: see [`PendingCalls`].
    pub at: u64,
    from: u64,
    count: u64,
    generation: u64,
}

impl Again {
    /// The words, once it is known where the table of all calls lies.
    pub fn pending(&self, table: u64) -> [u64; 3] {
        pending(table + self.from * size_of::<Call>() as u64, self.count, self.generation)
    }
}

/// A [`PendingCalls`] in words.
fn pending(calls: u64, count: u64, generation: u64) -> [u64; 3] {
    const { assert!(size_of::<PendingCalls>() == 3 * 8) };
    [calls, count, generation]
}

fn slot(number: u32) -> Arg {
    Arg::Slot(number.into())
}

impl Layout {
    /// The interpreter's recipe. `code` is where the resident code is, `gate` where the gate.
    pub(super) fn python(&mut self, hooks: &Hooks, code: u64, gate: u64) {
        let find = |name: &str| address(hooks, name);
        let (Some(python), Some(ensure), Some(release), Some(ready)) = (
            Python::find(hooks),
            find("PyGILState_Ensure"),
            find("PyGILState_Release"),
            find("Py_IsInitialized"),
        ) else {
            return;
        };
        let generation = gate + core::mem::offset_of!(Gate, generation) as u64;
        let at_once = |layout: &mut Layout| {
            let from = layout.calls.len();
            layout.call("Py_IsInitialized", ready, &[], (WANT_OR_SKIP, 0), CALL_SAVE_NONE);
            layout.call("PyGILState_Ensure", ensure, &[], (WANT_ANY, 0), STATE);
            // What the parent was still to do, its own recipe perhaps: now, and not between two
            // instructions of this one, where it would wait for a lock that this one holds.
            if let Some(pending) = find("Py_MakePendingCalls") {
                layout.call("Py_MakePendingCalls", pending, &[], (WANT_ANY, 0), CALL_SAVE_NONE);
            }
            layout.forget(&python);
            let again = layout.reseed_or_put_off(&python, code, generation);
            let (what, state) = ("PyGILState_Release", [slot(STATE)]);
            layout.call(what, release, &state, (WANT_ANY, 0), CALL_SAVE_NONE);
            layout.calls[from].expect = (layout.calls.len() - from - 1) as u64;
            again
        };
        if hooks.idle {
            self.again = Some(at_once(self));
            return;
        }
        let mut inner =
            Layout { base: self.base, bytes: std::mem::take(&mut self.bytes), ..Layout::default() };
        if hooks.main_waits {
            // Perhaps for ever: a pending call might never be made. It has let go of the interpreter's
            // lock, which another thread has, that waits at the gate.
            let again = at_once(&mut inner);
            let (table, count) = inner.table();
            inner.put(again.at, again.pending(table));
            (self.bytes, self.late, self.late_names) = (inner.bytes, (table, count), inner.names);
            return;
        }
        inner.forget(&python);
        let first = inner.calls.len() as u64;
        let again = inner.reseed_or_put_off(&python, code, generation);
        let (table, _) = inner.table();
        inner.put(again.at, again.pending(table));
        self.bytes = inner.bytes;
        let at = self.words(pending(table, first, generation));
        self.call("Py_IsInitialized", ready, &[], (WANT_OR_SKIP, 2), CALL_SAVE_NONE);
        // In this order.
        self.later(&python, code, at, (WANT_EQUAL, 0));
        self.later(&python, code, again.at, (WANT_EQUAL, 0));
    }

    fn words(&mut self, words: [u64; 3]) -> u64 {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.data(&bytes)
    }

    /// Asks for a pending call of what the words at `at` say.
    fn later(&mut self, python: &Python, code: u64, at: u64, want: (u32, u64)) {
        let args = [Arg::Value(code + ENTRY_PENDING), Arg::Value(at)];
        self.call("Py_AddPendingCall", python.later, &args, want, CALL_SAVE_NONE);
    }

    /// What `random._inst`, `tempfile` and `uuid` would be told after an `os.fork()`. Only of modules
    /// that are there.
    fn forget(&mut self, python: &Python) {
        let Python { modules, item, call, get, set, explain, .. } = *python;
        let from = self.calls.len();
        let [d, m, n, i, c] = [DICT, MODULE, FOUND, INNER, CLASS].map(slot);
        let (none, inst, class) = (FOUND, INNER, CLASS);
        let pointer = (WANT_POINTER, 0);
        let [random, tempfile, uuid] =
            ["random", "tempfile", "uuid"].map(|name| Arg::Value(self.string(name)));
        let [seed, sequence, node] =
            ["seed", "_name_sequence", "_node"].map(|s| Arg::Value(self.string(s)));
        self.call("sys.modules", modules, &[], pointer, DICT);
        let [instance, of, base, object, gauss] =
            ["_inst", "__class__", "__base__", "O", "gauss_next"]
                .map(|s| Arg::Value(self.string(s)));
        // tempfile cannot be without random; uuid draws from it.
        self.call("random", item, &[d, random], (WANT_OR_SKIP, 9), MODULE);
        // What `random.seed()` comes to, but for its bytecode: that writes to a hundred kilobytes of
        // reference counts, which each child would then have for itself.
        self.call("random._inst", get, &[m, instance], pointer, inst);
        self.call("random._inst", get, &[i, of], pointer, class);
        self.call("random._inst", get, &[c, base], pointer, class);
        self.call("random.seed()", call, &[c, seed, object, i], pointer, none);
        let args = [i, gauss, n];
        self.call("random._inst", set, &args, (WANT_EQUAL, 0), CALL_SAVE_NONE);
        self.call("tempfile", item, &[d, tempfile], (WANT_OR_SKIP, 1), MODULE);
        let args = [m, sequence, n];
        self.call("tempfile._name_sequence", set, &args, (WANT_EQUAL, 0), CALL_SAVE_NONE);
        self.call("uuid", item, &[d, uuid], (WANT_OR_SKIP, 1), MODULE);
        self.call("uuid._node", set, &[m, node, n], (WANT_EQUAL, 0), CALL_SAVE_NONE);
        self.explain(from, explain);
    }

    /// What nobody tells numpy, and what the program has registered, which may draw from it; or, while
    /// somebody holds the lock of numpy's generator, a pending call of the same.
    ///
    /// If another thread holds it, that would let go in time. But the main thread, which makes pending
    /// calls, may be the one: it holds the lock in `seed()` and in `shuffle()` of what is no array
    /// while these call Python. When it is free, only another thread can take it first.
    fn reseed_or_put_off(&mut self, python: &Python, code: u64, generation: u64) -> Again {
        let Python { modules, item, call, has, get, truth, explain, .. } = *python;
        let at = self.words([0; 3]);
        let from = self.calls.len();
        let [d, m, l] = [DICT, MODULE, FOUND].map(slot);
        let pointer = (WANT_POINTER, 0);
        let [numpy, ours] =
            ["numpy.random", "mitosis_fork"].map(|name| Arg::Value(self.string(name)));
        let [mtrand, rand, generator, lock, locked] =
            ["mtrand", "_rand", "_bit_generator", "lock", "locked"]
                .map(|name| Arg::Value(self.string(name)));
        let [seed, run, format] = ["seed", "run", "K"].map(|s| Arg::Value(self.string(s)));
        self.call("sys.modules", modules, &[], pointer, DICT);
        let no_numpy = self.skip("numpy.random", item, &[d, numpy], MODULE);
        self.call("numpy.random.mtrand", get, &[m, mtrand], pointer, FOUND);
        self.call("numpy.random.mtrand._rand", get, &[l, rand], pointer, FOUND);
        // Before numpy 1.17 there is none.
        let older = self.skip("numpy's generator", has, &[l, generator], CALL_SAVE_NONE);
        self.call("numpy's generator", get, &[l, generator], pointer, FOUND);
        self.call("numpy's lock", get, &[l, lock], pointer, FOUND);
        // A lock that its holder can take again does not say, and need not.
        let other = self.skip("numpy's lock", has, &[l, locked], CALL_SAVE_NONE);
        self.call("numpy's lock", call, &[l, locked, Arg::Value(0)], pointer, FOUND);
        let free = self.skip("numpy's lock", truth, &[l], CALL_SAVE_NONE);
        let put_off = self.calls.len();
        self.later(python, code, at, (WANT_ZERO_SKIP, 0));
        for skip in [older, other, free] {
            self.ends_here(skip);
        }
        let args = [m, seed, Arg::Value(0)];
        self.call("numpy.random.seed()", call, &args, pointer, CALL_SAVE_NONE);
        self.ends_here(no_numpy);
        let no_ours = self.skip("mitosis_fork", item, &[d, ours], MODULE);
        let args = [m, run, format, slot(GENERATION as u32)];
        self.call("mitosis_fork.run()", call, &args, pointer, CALL_SAVE_NONE);
        self.ends_here(no_ours);
        self.ends_here(put_off);
        self.explain(from, explain);
        Again { at, from: from as u64, count: (self.calls.len() - from) as u64, generation }
    }

    /// A call after whose 0 others are left out, up to [`Layout::ends_here`].
    fn skip(&mut self, name: &str, function: u64, args: &[Arg], save: u32) -> usize {
        self.call(name, function, args, (WANT_OR_SKIP, 0), save);
        self.calls.len() - 1
    }

    fn ends_here(&mut self, skip: usize) {
        self.calls[skip].expect = (self.calls.len() - skip - 1) as u64;
    }

    fn explain(&mut self, from: usize, explain: u64) {
        for call in &mut self.calls[from..] {
            call.explain = explain;
        }
    }
}
