//! A real process is captured and a real child made of it, with the smallest pager there can be:
//! a thread that copies single pages out of the shadow.

use mitosis_capture::{NoInheritance, Options, Seeded, prepare};
use mitosis_descriptor::{MappedFile, Vpn};
use mitosis_restore::{Maker, NodeFacts, ProvenFiles, Provided, Request, StartFds, plan, start};
use mitosis_sandbox::{Guard, Network, Pool, PoolConfig};
use mitosis_sys::uffd::{Event, Uffd};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType,
};
use std::fs::File;
use std::io::{BufRead, BufReader, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

struct All(bool);
impl ProvenFiles for All {
    fn proven(&self, _: &MappedFile) -> bool {
        self.0
    }
}

struct Ended(Child);
impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn receive_uffd(socket: &OwnedFd) -> Option<Uffd> {
    let mut byte = [0u8; 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut iov = [IoSliceMut::new(&mut byte)];
    rustix::net::recvmsg(socket, &mut iov, &mut control, RecvFlags::CMSG_CLOEXEC).ok()?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut fds) = message {
            return Uffd::from_fd(fds.next()?).ok();
        }
    }
    None
}

/// Serves every missing page until the child is gone.
fn serve(
    socket: OwnedFd,
    mem: File,
    files: Vec<(u64, u64, u64, File)>,
    index: mitosis_descriptor::PageIndex,
) {
    let Some(uffd) = receive_uffd(&socket) else { return };
    let mut events = Vec::new();
    loop {
        let mut polled = [rustix::event::PollFd::new(&socket, rustix::event::PollFlags::IN)];
        let tick = rustix::event::Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
        let _ = rustix::event::poll(&mut polled, Some(&tick));
        events.clear();
        if uffd.read_events(&mut events).is_err() {
            return;
        }
        for event in &events {
            let Event::Fault { addr, .. } = event else { continue };
            let at = addr & !4095;
            let owned = index.within(Vpn::of(at), Vpn(Vpn::of(at).0 + 1)).next().is_some();
            if !owned {
                uffd.zeropage(at, 4096);
                continue;
            }
            let mut page = [0u8; 4096];
            let file = files.iter().find(|f| (f.0..f.1).contains(&at));
            match file {
                Some((start, _, offset, file)) => {
                    let mut done = 0;
                    while done < 4096 {
                        let n = file.read_at(&mut page[done..], at - start + offset + done as u64);
                        match n.expect("file page") {
                            0 => break,
                            n => done += n,
                        }
                    }
                }
                None => mem.read_exact_at(&mut page, at).expect("shadow page"),
            }
            uffd.copy(at, &page, true);
        }
    }
}

struct Fixture {
    child: mitosis_restore::Started,
    guard: Guard,
    _pool: Pool,
    _relay: Ended,
    to_child: Option<std::process::ChildStdin>,
    from_child: BufReader<File>,
    seeded: Seeded,
}

fn fork(parent: i32, proven: bool, request: &Request, node: &NodeFacts) -> Fixture {
    let options = Options {
        node: "a".into(),
        stop_timeout: Duration::from_secs(2),
        resident: None,
        functions: Vec::new(),
        privileged: false,
        content_max: 16 << 20,
    };
    let seeded = prepare(parent, &options, &mut NoInheritance).expect("prepare");
    let d = &seeded.descriptor;
    let plan = plan(d, node, request, &All(proven)).expect("plan");
    let me = rustix::process::getpid();
    let pidfd =
        rustix::process::pidfd_open(me, rustix::process::PidfdFlags::empty()).expect("pidfd");
    let pool =
        Pool::new(PoolConfig { node_net: 1, own_net: 0, groups: None }, pidfd).expect("pool");
    let guard = pool.take(Network::Node).expect("guard");
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .expect("socketpair");
    // The child's stdin is a pipe from here, its stdout a pipe to here.
    let relay = Command::new("/bin/cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut relay = Ended(relay.expect("cat"));
    let to_child = relay.0.stdin.take();
    let child_in = relay.0.stdout.take().expect("stdout");
    let (from_child, child_out) = rustix::pipe::pipe().expect("pipe");
    let child_in = OwnedFd::from(child_in);
    let provided = plan
        .provided
        .iter()
        .map(|wanted| match wanted {
            Provided::Stdio(0) => child_in.try_clone().expect("dup"),
            Provided::Stdio(_) => child_out.try_clone().expect("dup"),
            Provided::MappedFile(path) | Provided::Executable(path) => {
                File::open(path).expect("open").into()
            }
            Provided::Listener { spec, .. } => spec.listen().expect("listen"),
            Provided::Filled
            | Provided::TimeNamespace
            | Provided::UserNamespace
            | Provided::Member(_)
            | Provided::Terminal(_) => {
                panic!("none was asked for")
            }
        })
        .collect();
    let files = d
        .vmas
        .iter()
        .filter_map(|v| match v.backing {
            mitosis_descriptor::Backing::File { file, offset } if !proven => {
                let file = seeded.files[file as usize].as_ref().expect("file").try_clone();
                Some((v.start, v.end, offset, file.expect("dup")))
            }
            _ => None,
        })
        // Dirty pages of a file mapping come from the shadow.
        .collect::<Vec<_>>();
    let mem = seeded.shadow.mem.try_clone().expect("dup");
    let index = plan.index.clone();
    let own = seeded.descriptor.pages.clone();
    let files = files.into_iter().collect::<Vec<_>>();
    std::thread::spawn(move || {
        let clean = files
            .into_iter()
            .flat_map(|(start, end, offset, file)| {
                let mut out = Vec::new();
                let mut at = start;
                for run in own.within(Vpn::of(start), Vpn::of(end)) {
                    if at < run.start.addr() {
                        out.push((
                            at,
                            run.start.addr(),
                            offset + at - start,
                            file.try_clone().expect("dup"),
                        ));
                    }
                    at = run.end().addr();
                }
                if at < end {
                    out.push((at, end, offset + at - start, file.try_clone().expect("dup")));
                }
                out
            })
            .collect();
        serve(ours, mem, clean, index);
    });
    let fds = StartFds { pager: theirs, provided, cgroup: None };
    let child = match start(&plan, guard.control.as_fd(), Maker::Guard, fds, |_| true) {
        Ok(child) => child,
        Err(e) => panic!("start: {e}\n{plan}"),
    };
    println!("freeze {} us {:?}; child {:?}", seeded.freeze_us, seeded.phases, child.phases);
    Fixture {
        child,
        guard,
        _pool: pool,
        _relay: relay,
        to_child,
        from_child: BufReader::new(File::from(from_child)),
        seeded,
    }
}

fn facts() -> NodeFacts {
    NodeFacts::read().expect("facts")
}

fn vdso_of(pid: i32) -> u64 {
    let ranges = mitosis_sys::procfs::ranges(pid).expect("maps");
    ranges.iter().find(|range| range.name == "[vdso]").expect("vdso").start
}

/// A parent that spends its time in the vdso, and answers for each line it reads how its clocks and
/// the system calls for them agree. Its child has that vdso as memory and calls this node's.
#[test]
fn a_child_reads_clocks_through_the_vdso_of_another_kernel() {
    let program = std::path::PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("clocks");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clocks.c");
    let mut built = Command::new("gcc");
    built.args(["-O1", "-pthread", "-o"]).arg(&program).arg(source);
    assert!(built.status().expect("gcc").success());
    let image = mitosis_sys::procfs::vdso(std::process::id() as i32).expect("vdso");
    let all = facts().vdso_functions;
    // As a kernel that has them all, as one that lacks some, and as one without a vdso.
    for keep in [all.len(), 1, 0] {
        let mut parent = Ended(
            Command::new(&program)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .expect("clocks"),
        );
        let mut out = BufReader::new(parent.0.stdout.take().expect("stdout"));
        let mut line = String::new();
        out.read_line(&mut line).expect("ready");
        assert_eq!(line, "ready\n");
        let mut node = facts();
        node.vdso_crc = !node.vdso_crc;
        node.vdso_functions.truncate(keep);
        let request = Request { vdso: Some(image.clone().into()), ..Request::default() };
        let mut fixture = fork(parent.0.id() as i32, true, &request, &node);
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", fixture.child.pid));
        let maps = maps.expect("maps");
        assert_ne!(vdso_of(fixture.child.pid), vdso_of(parent.0.id() as i32), "{maps}");
        let mut to_child = fixture.to_child.take().expect("pipe");
        for _ in 0..3 {
            to_child.write_all(b"x\n").expect("write");
            let mut line = String::new();
            fixture.from_child.read_line(&mut line).expect("read");
            assert_eq!(line, "right\n", "{keep} functions\n{maps}");
        }
        fixture.guard.end();
        fixture.seeded.shadow.end();
    }
}

#[test]
fn a_child_goes_on_where_the_parent_was() {
    for proven in [true, false] {
        let mut parent = Ended(
            Command::new("/usr/bin/python3")
                .args(["-u", "-c", SCRIPT])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .expect("python3"),
        );
        let mut out = BufReader::new(parent.0.stdout.take().expect("stdout"));
        let mut line = String::new();
        out.read_line(&mut line).expect("ready");
        assert_eq!(line, "ready\n");
        std::thread::sleep(Duration::from_millis(20));
        let mut fixture = fork(parent.0.id() as i32, proven, &Request::default(), &facts());
        let answer = |to: &mut dyn Write, from: &mut dyn BufRead| {
            to.write_all(b"x\n").expect("write");
            let mut line = String::new();
            from.read_line(&mut line).expect("read");
            line
        };
        let mut to_child = fixture.to_child.take().expect("pipe");
        let child = answer(&mut to_child, &mut fixture.from_child);
        let mut to_parent = parent.0.stdin.take().expect("stdin");
        let theirs = answer(&mut to_parent, &mut out);
        assert_eq!(child, theirs, "proven: {proven}");
        assert!(child.starts_with("499999500000 "), "{child}");
        fixture.guard.end();
        fixture.seeded.shadow.end();
        assert!(fixture.child.pid > 0);
    }
}

const SCRIPT: &str = "
import sys, os, threading
data = list(range(1000000))
stop = threading.Event()
t = threading.Thread(target=stop.wait, daemon=True)
t.start()
print('ready')
for line in sys.stdin:
    print(sum(data), os.getpid(), threading.active_count(), hash('mitosis'))
";
