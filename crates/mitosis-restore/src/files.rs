//! Open files, and the end of all descriptors of ours.

use crate::plan::{Part, Request, Time, provided_base};
use crate::{NodeFacts, RestoreError, shared, user};
use mitosis_descriptor::{DeletedDirectory, Descriptor};
use mitosis_state::kinds::{self, Files};
use mitosis_state::{Detail, List, Numbers, Program, Provided, deleted};
use std::collections::{BTreeSet, HashMap};

const CHDIR: u16 = 80;
const FCHDIR: u16 = 81;
const CHROOT: u16 = 161;
const UMASK: u16 = 95;
const MPROTECT: u16 = 10;
const CLOSE_RANGE: u16 = 436;
/// Attached descriptors end below this distance from the base; so does what is kept, if it is no more
/// than usual.
const PARK_DISTANCE: u32 = 300;
/// What is attached to a template's child besides what its open files ask for.
const ATTACHED: u32 = 16;

/// First number for what is on its way to its own: as near as it can be, for the table of a template's
/// child stays as large as the highest number makes it.
fn parking(descriptor: &Descriptor, fd_base: u32, part: Part) -> u32 {
    let near = part == Part::Rest && descriptor.rare.open_objects.is_empty();
    let files = descriptor.open_files.len() as u32;
    let distance = if near { files + ATTACHED } else { PARK_DISTANCE };
    fd_base + distance.min(PARK_DISTANCE).max(if near { 0 } else { shared::kept_end(descriptor) })
}

pub(crate) fn plan(
    descriptor: &Descriptor,
    program: &mut Program,
    provided: &mut Vec<Provided>,
    fd_base: u32,
    (node, request): (&NodeFacts, &Request),
) -> Result<(), RestoreError> {
    let process = &descriptor.process;
    if process.cwd_deleted.is_none() {
        let cwd = program.string(&process.cwd);
        let detail = Detail::Text(process.cwd.clone());
        program.call(List::Build, CHDIR, &[cwd], "files: chdir", detail);
    }
    program.call(List::Build, UMASK, &[u64::from(process.umask)], "files: umask", Detail::None);
    let mut files = Files {
        program,
        provided,
        provided_base: provided_base(fd_base),
        high: parking(descriptor, fd_base, request.part),
        own_net: request.own_net,
        clocks: (request.time != Time::Foreign).then_some(descriptor.clocks),
        used: Numbers::default(),
        all: Vec::new(),
        objects_of: HashMap::new(),
        place: request.tree.map(|_| &descriptor.rare.tree.place),
        objects: shared::open_objects(descriptor, fd_base),
        generic: &node.generic_groups,
        spare_pid: spare_pid(descriptor, request),
        new_pid: request.new_pid,
        own_users: user::is_below(descriptor),
        late: BTreeSet::new(),
        done: BTreeSet::new(),
    };
    kinds::plan(&descriptor.open_files, &mut files)?;
    if let Some(directory) = &process.cwd_deleted {
        enter_deleted(directory, descriptor, &mut files);
    }
    Ok(())
}

/// Goes to a current directory to which no path leads: one that is open, or one of its own.
fn enter_deleted(directory: &DeletedDirectory, descriptor: &Descriptor, files: &mut Files<'_>) {
    let open = kinds::memfd::number_of(directory, &descriptor.open_files);
    let own = files.lowest(3);
    if open.is_none() {
        deleted::make(files.program, [own[0], own[1], own[2]], directory);
    }
    let at = u64::from(open.unwrap_or(own[2]));
    let detail = Detail::Text(format!("{}, a deleted directory", directory.name));
    files.program.call(List::Build, FCHDIR, &[at], "files: fchdir", detail);
    if open.is_none() {
        files.close(own[2]);
    }
}

/// A pid that no thread of the child has, whatever ids they get.
pub(crate) fn spare_pid(descriptor: &Descriptor, request: &Request) -> i32 {
    if let Some(spare) = request.tree {
        return spare;
    }
    let taken = |pid| descriptor.threads.iter().any(|thread| thread.tid == pid);
    // The kernel refuses what is none, as it would a pid that is taken.
    mitosis_descriptor::spare_pids(taken).next().unwrap_or(-1)
}

/// When everything has been opened: paths are those of the node, and `/proc` may be outside.
pub(crate) fn change_root(descriptor: &Descriptor, program: &mut Program) {
    let path = &descriptor.process.root;
    if path != "/" {
        let root = program.string(path);
        let detail = Detail::Text(path.clone());
        program.call(List::Build, CHROOT, &[root], "files: chroot", detail);
    }
}

/// The last operations: nothing of ours stays open, and what stays mapped is not both writable
/// and executable.
pub(crate) fn finish(program: &mut Program, fd_base: u32) {
    let region = program.region;
    let args = [u64::from(fd_base), u64::from(u32::MAX), 0];
    program.call(List::Finish, CLOSE_RANGE, &args, "finish: close_range", Detail::None);
    let args = [region.base, region.code_len, 5];
    program.call(List::Finish, MPROTECT, &args, "finish: mprotect code", Detail::None);
    let args = [region.frames(), region.frames_len, 3];
    program.call(List::Finish, MPROTECT, &args, "finish: mprotect frames", Detail::None);
}
