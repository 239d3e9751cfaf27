//! One guard.

use crate::nursery::{pair, receive};
use crate::{Group, Groups, Number, Nursery, SandboxError, numbers};
use mitosis_stub::abi::{GUARD_NO_GENERATION, GUARD_NO_PROC, guard_message};
use mitosis_sys::SysError;
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::process::PidfdFlags;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Namespaces a guard gets besides pid, mount, UTS and IPC.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Network {
    /// The node's own network namespace.
    Node,
    /// A new one.
    Own,
}

/// A user namespace of a guard's own, below the node's, to which all its other namespaces belong: the lines of
/// its maps (user_namespaces(7)).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Users {
    /// User ids.
    pub uids: String,
    /// Group ids.
    pub gids: String,
    /// Whether setgroups(2) may be called in it.
    pub setgroups: bool,
}

/// The guest program in a sealed memfd, from which nurseries and templates are executed.
#[derive(Debug)]
pub struct GuardImage(OwnedFd);

impl GuardImage {
    /// Writes the program to a memfd.
    ///
    /// # Errors
    /// memfd_create(2), write(2).
    pub fn new() -> Result<GuardImage, SandboxError> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let fd = rustix::fs::memfd_create("mitosis-guard", flags)
            .map_err(|e| SysError::io("memfd_create", "guard", e))?;
        let mut file = File::from(fd);
        file.write_all(mitosis_stub::ELF).map_err(|e| SysError::io("write", "guard image", e))?;
        let fd = OwnedFd::from(file);
        let seals = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&fd, seals)
            .map_err(|e| SysError::io("F_ADD_SEALS", "guard image", e))?;
        Ok(GuardImage(fd))
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A guard that has no child yet, or the handle to one that has.
#[derive(Debug)]
pub struct Guard {
    /// Its pid, as the node sees it.
    pub pid: i32,
    /// Readable when it has ended, and with it everything in its namespace.
    pub pidfd: OwnedFd,
    /// Its control socket (SOCK_SEQPACKET; messages are `mitosis_stub::abi::GuardMessage`).
    pub control: OwnedFd,
    /// Whether it has a network namespace of its own.
    pub network: Network,
    /// The generation number of its child: random, never zero.
    pub generation: u64,
    /// The file that says so, if it is the node's.
    pub number: Option<Number>,
    /// Its control group, and its child's.
    pub group: Option<Group>,
}

impl Guard {
    /// Has a guard made and waits (bounded) until it is ready.
    ///
    /// # Errors
    /// [`SandboxError`]; nothing is left behind.
    pub fn start(
        nursery: &mut Nursery,
        network: Network,
        users: Option<&Users>,
        groups: Option<&Groups>,
    ) -> Result<Guard, SandboxError> {
        let (control, theirs) = pair("guard")?;
        let generation = generation()?;
        let text = generation_text(generation);
        let put = nursery.numbers.as_ref().map(|numbers| numbers.put(&text)).transpose()?;
        let (number, mut mount) = put.unzip();
        let whole = users.is_some() && mount.is_none();
        if whole {
            mount = Some(numbers::whole(&text)?);
        }
        let attached: Vec<_> = std::iter::once(&theirs).chain(&mount).map(AsFd::as_fd).collect();
        let own = [network == Network::Own, users.is_some(), whole];
        nursery.order(&attached, generation, own)?;
        // The guard's end is the guard's alone.
        drop((theirs, mount));
        // First: when the guard is ready, its pid has been told.
        let ready = await_ready(&control);
        let pid = nursery.pid()?;
        // Ours to reap, so the number is still its own.
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())
            .map_err(|e| SysError::io("pidfd_open", "guard", e))?;
        let pid = pid.as_raw_nonzero().get();
        let mut guard = Guard { pid, pidfd, control, network, generation, number, group: None };
        match ready.and_then(|()| guard.name(users)).and_then(|()| guard.enter(groups)) {
            Ok(()) => Ok(guard),
            Err(e) => Err(guard.end().map_or(e, |why| SandboxError::NotReady(why.into()))),
        }
    }

    /// Gives ids to its user namespace.
    fn name(&self, users: Option<&Users>) -> Result<(), SandboxError> {
        let Some(Users { uids, gids, setgroups }) = users else { return Ok(()) };
        Ok(mitosis_sys::userns::set_maps(self.pid, uids, gids, *setgroups)?)
    }

    /// Before it has a child, which is born where it is then.
    fn enter(&mut self, groups: Option<&Groups>) -> Result<(), SandboxError> {
        let Some(groups) = groups else { return Ok(()) };
        let group = self.group.insert(groups.make(&generation_text(self.generation))?);
        group.enter(self.pid)
    }

    /// Path of its network namespace, when it has one of its own.
    pub fn netns_path(&self) -> Option<String> {
        (self.network == Network::Own).then(|| format!("/proc/{}/ns/net", self.pid))
    }

    /// Ends it and all that is in its namespace, and reaps it. Says why it had ended by itself, if
    /// it had and told.
    pub fn end(self) -> Option<&'static str> {
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, rustix::process::Signal::KILL);
        let id = rustix::process::WaitId::PidFd(self.pidfd.as_fd());
        let ended = rustix::process::waitid(id, rustix::process::WaitIdOptions::EXITED);
        if let Some(group) = &self.group {
            crate::group::remove(&group.paths());
        }
        match ended.ok()??.exit_status()? as u64 {
            GUARD_NO_PROC => Some("it cannot mount its /proc"),
            GUARD_NO_GENERATION => Some("it cannot mount over /run/mitosis/generation"),
            _ => None,
        }
    }
}

fn await_ready(control: &OwnedFd) -> Result<(), SandboxError> {
    let mut message = [0u8; 16];
    match receive(control, &mut message) {
        Ok(16) if message[..4] == guard_message::READY.to_le_bytes() => Ok(()),
        Ok(n) => Err(SandboxError::NotReady(format!("{n} bytes instead of a message"))),
        Err(e) => Err(SandboxError::NotReady(e.to_string())),
    }
}

/// Never zero: that is what a process has which was never forked.
fn generation() -> Result<u64, SandboxError> {
    loop {
        let mut bytes = [0u8; 8];
        let got = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
        got.map_err(|e| SysError::io("getrandom", "generation number", e))?;
        match u64::from_ne_bytes(bytes) {
            0 => {}
            number => return Ok(number),
        }
    }
}

/// A generation number as its file has it: 16 hexadecimal digits.
pub fn generation_text(generation: u64) -> String {
    format!("{generation:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file that goes with the test that has made it.
    struct Removed(String);

    impl Drop for Removed {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    /// A guard in a user namespace of its own has the ids that are said, its other namespaces belong to that,
    /// and it cannot be looked into from there. Ids that cannot be leave no guard.
    #[test]
    fn a_guard_has_a_user_namespace() {
        use mitosis_sys::userns::{Place, place};
        let me = rustix::process::getpid();
        let pager = rustix::process::pidfd_open(me, PidfdFlags::empty()).expect("pidfd");
        let image = GuardImage::new().expect("image");
        let mut nursery = Nursery::new(&image, pager.as_fd()).expect("nursery");
        let (uids, gids) = ("0 100000 10\n20 200000 1\n".to_owned(), "5 7 1\n".to_owned());
        let users = Users { uids, gids, setgroups: false };
        let guard = Guard::start(&mut nursery, Network::Own, Some(&users), None).expect("guard");
        let read = |name: &str| {
            let path = format!("/proc/{}/{name}", guard.pid);
            let text = std::fs::read_to_string(path).expect("file");
            text.split_whitespace().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(place(guard.pid).expect("namespace"), Place::Below);
        assert_eq!(read("uid_map"), "0 100000 10 20 200000 1");
        assert_eq!((read("gid_map"), read("setgroups")), ("5 7 1".into(), "deny".into()));
        let pid = guard.pid;
        assert_eq!(guard.end(), None);
        assert!(!std::fs::exists(format!("/proc/{pid}")).expect("look"));
        let twice = Users { uids: "0 1 10\n5 30 1\n".into(), ..Users::default() };
        let failed = Guard::start(&mut nursery, Network::Node, Some(&twice), None);
        let said = failed.expect_err("they overlap").to_string();
        assert!(said.contains("uid_map"), "{said}");
        let after = Guard::start(&mut nursery, Network::Node, None, None).expect("another guard");
        assert_eq!(place(after.pid).expect("namespace"), Place::Here);
        assert_eq!(after.end(), None);
    }

    /// Each guard mounts its own number, be the file the node's or one that it makes itself; and a nursery
    /// that was killed is made anew.
    #[test]
    fn guards_mount_their_numbers() {
        let file = "run/mitosis/generation";
        // As a node leaves it.
        std::fs::create_dir_all("/run/mitosis").expect("directory");
        let place = format!("/{file}");
        let made = (!std::fs::exists(&place).expect("look")).then(|| Removed(place.clone()));
        if made.is_some() {
            std::fs::write(&place, "0000000000000000\n").expect("file");
        }
        let me = rustix::process::getpid();
        let pager = rustix::process::pidfd_open(me, PidfdFlags::empty()).expect("pidfd");
        let image = GuardImage::new().expect("image");
        let mut nursery = Nursery::new(&image, pager.as_fd()).expect("nursery");
        let read = |guard: &Guard| {
            let path = format!("/proc/{}/root/{file}", guard.pid);
            (std::fs::read_to_string(&path).expect("number"), std::fs::write(&path, "1").is_err())
        };
        let mut guards = Vec::new();
        let users = Users { uids: "0 100000 10".into(), ..Users::default() };
        for turn in 0..8 {
            if turn == 4 {
                nursery.numbers = None;
                nursery.kill();
            }
            let users = Some(&users).filter(|_| turn % 2 == 1);
            guards.push(Guard::start(&mut nursery, Network::Node, users, None).expect("guard"));
        }
        for guard in &guards {
            let text = format!("{}\n", generation_text(guard.generation));
            assert_eq!(read(guard), (text, true));
        }
        guards.into_iter().for_each(|guard| assert_eq!(guard.end(), None));
    }
}
