//! Where the kinds of open file put what a child does to have its files again, and how it comes to have
//! each under the numbers that it had.

use crate::kinds::generic::NamedGroup;
use crate::kinds::gift;
use crate::options::{self, SocketOption};
use crate::program::{Detail, List, Program, op};
use crate::{Numbers, Provided, StateError};
use mitosis_descriptor::{Clocks, OpenFile, Place};
use std::collections::{BTreeMap, BTreeSet, HashMap};

const WRITE: u16 = 1;
const OPENAT: u16 = 257;
const AT_FDCWD: u64 = -100i64 as u64;
const O_WRONLY: u64 = 1;
const DUP3: u16 = 292;
const CLOSE: u16 = 3;
const FCNTL: u16 = 72;
const SETSOCKOPT: u16 = 54;
const F_SETFD: u64 = 2;
pub(crate) const F_DUPFD_CLOEXEC: u64 = 1030;
const O_CLOEXEC: u64 = 0o2_000_000;
/// For a result that the next operations use.
pub(crate) const SLOT: u8 = mitosis_stub::abi::SLOTS as u8 - 1;

/// Where kinds put their operations.
///
/// Descriptor numbers are predicted: at the start the child has none below `base`, and the kernel
/// always gives the lowest free number. Each new description is first moved out of the way, above
/// [`Files::high`], and then to every number it had in the parent.
pub struct Files<'a> {
    /// The program under construction.
    pub program: &'a mut Program,
    /// What the node supplies.
    pub provided: &'a mut Vec<Provided>,
    /// Number of the first provided descriptor.
    pub provided_base: u32,
    /// First of the numbers used to park new descriptions.
    pub high: u32,
    /// Whether the child has a network namespace of its own.
    pub own_net: bool,
    /// What the parent's clocks showed, where the child's continue them.
    pub clocks: Option<Clocks>,
    /// Descriptors in use below the provided ones.
    pub used: Numbers,
    /// All files of the descriptor.
    pub all: Vec<OpenFile>,
    /// Places in it of those that are made together, by kind and inode: of thousands of pipes each is
    /// looked for once.
    pub objects_of: HashMap<(u16, u64), Vec<usize>>,
    /// Shared memory that is mapped already and open as well: device and inode that it had on the
    /// parent's node, and the number at which it is open here for now.
    pub objects: BTreeMap<(u64, u64), u32>,
    /// Groups of generic netlink that this node has.
    pub generic: &'a [NamedGroup],
    /// What it has in common with other members of its tree.
    pub place: Option<&'a Place>,
    /// A pid that none of the child's threads has.
    pub spare_pid: i32,
    /// The child's pid and thread ids are others than its parent's.
    pub new_pid: bool,
    /// It enters a user namespace when all else but its threads is made: files that tell of that one are
    /// opened after it, by what they are then.
    pub own_users: bool,
    /// Descriptors of what is there only when the threads are: until then something else is.
    pub late: BTreeSet<u32>,
    /// Kinds that come in pairs note here what has been done.
    pub done: BTreeSet<u64>,
}

impl Files<'_> {
    /// The `n` lowest free numbers.
    pub fn lowest(&self, n: usize) -> Vec<u32> {
        self.used.lowest(n)
    }

    /// Those that have a kind and an inode.
    pub(crate) fn of_object(&self, kind: u16, inode: u64) -> Vec<OpenFile> {
        let places = self.objects_of.get(&(kind, inode)).into_iter().flatten();
        places.filter_map(|at| self.all.get(*at).cloned()).collect()
    }

    /// A system call that makes one descriptor, which then goes to the numbers of `file`.
    pub fn make(&mut self, file: &OpenFile, nr: u16, args: &[u64], what: &'static str, d: Detail) {
        let at = self.lowest(1)[0];
        self.program.call_expect(List::Build, nr, args, u64::from(at), what, d);
        self.park(&[at]);
        self.spread(file, 0);
    }

    /// A system call that makes one descriptor in place of what is at the numbers of `file`, when the
    /// threads are there.
    pub fn make_late(&mut self, file: &OpenFile, nr: u16, args: &[u64], what: &'static str) {
        let list = List::Finish;
        let mut make = op(nr, 0, args);
        make.save = SLOT;
        self.program.push(list, make, what, Detail::Fd(file.fds[0].0));
        for &(fd, cloexec) in &file.fds {
            let flags = if cloexec { O_CLOEXEC } else { 0 };
            let mut dup = op(DUP3, 1, &[0, u64::from(fd), flags]);
            dup.slot = SLOT;
            self.program.push(list, dup, "files: dup3 to", Detail::Fd(fd));
            self.late.insert(fd);
        }
        let mut close = op(CLOSE, 1, &[0]);
        close.slot = SLOT;
        self.program.push(list, close, "files: close", Detail::None);
    }

    /// What is about a thread has no other id to name it by.
    pub(crate) fn same_ids(&self, file: &OpenFile, what: &str) -> Result<(), StateError> {
        if !self.new_pid {
            return Ok(());
        }
        let what = format!("{what} of one of the parent's threads, whose id --new-pid changes");
        Err(StateError::Refused { fd: file.fds[0].0, what, hint: "" })
    }

    /// Moves fresh descriptors to `high`, `high + 1`, ...
    pub fn park(&mut self, fresh: &[u32]) {
        for &fd in fresh {
            let args = [u64::from(fd), F_DUPFD_CLOEXEC, u64::from(self.high)];
            self.program.call(List::Build, FCNTL, &args, "files: park", Detail::Fd(fd));
            self.close(fd);
        }
    }

    /// Gives the parked description `index` the numbers of `file`, and closes the parked one.
    pub fn spread(&mut self, file: &OpenFile, index: u32) {
        let parked = self.high + index;
        for &(fd, cloexec) in &file.fds {
            self.dup(parked, fd, cloexec);
        }
        self.close(parked);
    }

    /// Gives the description at the lowest free number `at` the numbers of `file`.
    pub fn settle(&mut self, file: &OpenFile, at: u32) {
        for &(fd, cloexec) in file.fds.iter().filter(|(fd, _)| *fd != at) {
            self.dup(at, fd, cloexec);
        }
        match file.fds.iter().find(|(fd, _)| *fd == at) {
            Some(&(fd, cloexec)) => {
                self.used.insert(fd);
                let args = [u64::from(fd), F_SETFD, u64::from(cloexec)];
                self.call(FCNTL, &args, "files: F_SETFD", fd);
            }
            None => self.close(at),
        }
    }

    /// dup3(2) to a number of the parent's.
    pub fn dup(&mut self, from: u32, fd: u32, cloexec: bool) {
        let flags = if cloexec { O_CLOEXEC } else { 0 };
        let args = [u64::from(from), u64::from(fd), flags];
        self.program.call(List::Build, DUP3, &args, "files: dup3 to", Detail::Fd(fd));
        self.used.insert(fd);
    }

    /// A system call of the plan's main list about descriptor `fd`.
    pub fn call(&mut self, nr: u16, args: &[u64], what: &'static str, fd: u32) {
        self.program.call(List::Build, nr, args, what, Detail::Fd(fd));
    }

    /// Sets the options of the socket of `file`, which is at its numbers already.
    pub fn set_options(&mut self, file: &OpenFile, options: &[SocketOption]) {
        self.set_options_at(file.fds[0].0, options);
    }

    /// Sets the options of the socket at `fd`.
    pub fn set_options_at(&mut self, fd: u32, options: &[SocketOption]) {
        for option in options {
            self.set_option(fd, option);
        }
    }

    /// Turns a switch among the options on or off.
    pub fn set_switch(&mut self, file: &OpenFile, (level, name): (u32, u32), on: bool) {
        let value = u32::from(on).to_le_bytes().to_vec();
        self.set_option(file.fds[0].0, &SocketOption { level, name, value });
    }

    fn set_option(&mut self, fd: u32, option: &SocketOption) {
        let value = self.program.data(&option.value);
        let (level, name) = (u64::from(option.level), u64::from(option.name));
        let (value, len) = match (option.level, option.name) {
            // `struct sock_fprog` has the count and the address of the instructions.
            options::FILTER => (self.program.words(&[option.value.len() as u64 / 8, value]), 16),
            _ => (value, option.value.len() as u64),
        };
        let args = [u64::from(fd), level, name, value, len];
        let detail = Detail::Text(format!("{level}/{name} of fd {fd}"));
        self.program.call(List::Build, SETSOCKOPT, &args, "files: setsockopt", detail);
    }

    /// Writes a text to a file of the child's node, such as a bound of a namespace of its own.
    pub fn write_to(&mut self, path: &str, text: &str) {
        let at = self.lowest(1)[0];
        let name = self.program.string(path);
        let detail = || Detail::Text(path.to_owned());
        let (args, list) = ([AT_FDCWD, name, O_WRONLY, 0], List::Build);
        self.program.call_expect(list, OPENAT, &args, u64::from(at), "files: open", detail());
        let data = self.program.data(text.as_bytes());
        let args = [u64::from(at), data, text.len() as u64];
        self.program.call(list, WRITE, &args, "files: write", detail());
        self.close(at);
    }

    /// close(2).
    pub fn close(&mut self, fd: u32) {
        self.program.call(List::Build, CLOSE, &[u64::from(fd)], "files: close", Detail::Fd(fd));
    }

    /// Asks the node for a descriptor and returns its number in the child.
    pub fn provide(&mut self, wanted: Provided) -> u32 {
        self.provided.push(wanted);
        self.provided_base + self.provided.len() as u32 - 1
    }

    /// Number of the socket to another member of the tree.
    pub(crate) fn member(&mut self, number: u32) -> u32 {
        gift::socket(self.provided, self.provided_base, number)
    }
}
