//! `bench scale`: many children of one seed alive at once, spread over nodes; what each takes, by part,
//! and whether each answers. Beside it children of fork(2) in the same namespaces.

mod group;
mod limits;
mod memory;

use crate::cluster::{ANSWER_BOUND, Member, Parent, ask, python};
use crate::error::BenchError;
use crate::report::{Figure, Samples, Section, Target};
use group::Group;
use memory::{LINES, Meminfo, Taken, parent, taken};
use mitosis_lab::Lab;
use mitosis_proto::{ChildRow, ChildState, ForkRequest, Hooks, Net, Prepared, Via};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// The source of the parent: its children wait in accept(2).
pub(crate) const IDLE: &str = include_str!("python/idle.py");
const PORT: u16 = 7110;
/// MiB of state that make a parent of 20 MB.
const STATE_MIB: &str = "8";
/// Children that are alive at the end of each step, on all nodes.
const STEPS: [usize; 6] = [100, 500, 1000, 2000, 5000, 10_000];
const STEPS_QUICK: [usize; 3] = [50, 100, 200];
/// Nodes with children.
const HOSTS: usize = 5;
const HOSTS_QUICK: usize = 2;
/// Children of one request.
const BATCH: usize = 20;
/// Processes that are looked at closely.
const SAMPLE: usize = 20;
/// Children of fork(2), children with networks of their own, and guards without any.
const PEERS: usize = 200;
/// Longest wait for guards that were made ahead and not needed to be gone.
pub(crate) const SETTLE: Duration = Duration::from_secs(4);
/// Between two requests: whoever answered the first waits again.
const PAUSE: Duration = Duration::from_millis(1);
/// Answers of which the time is kept.
const ANSWERS_KEPT: usize = 200;

/// KiB of each child, by line of [`LINES`].
type Lines = [f64; LINES.len()];

/// What one step found.
struct Step {
    alive: usize,
    new: usize,
    idle: Lines,
    answered: Lines,
    asked: usize,
    per_second: f64,
}

/// The nodes, and what is known of them before there are children.
struct Bed<'lab> {
    owner: Member<'lab>,
    hosts: Vec<Member<'lab>>,
    /// What is charged for all of them.
    group: Option<Group>,
    /// Daemon and pagers of each host, with the KiB that they had.
    servants: Vec<(usize, u32, bool, f64)>,
}

impl Bed<'_> {
    fn now(&self) -> Result<Meminfo, BenchError> {
        Meminfo::now(self.group.as_ref())
    }
}

/// Runs it; what could not be done says so in the notes and in `failures`.
pub fn run(quick: bool, failures: &mut Vec<BenchError>) -> Result<Section, BenchError> {
    let mut section = Section::new("scale");
    let hosts = if quick { HOSTS_QUICK } else { HOSTS };
    let steps: &[usize] = if quick { &STEPS_QUICK } else { &STEPS };
    let group = Group::enter();
    let lab = Lab::new("scale", hosts + 2)?;
    let mut bed = Bed {
        owner: Member::start(&lab, 0)?,
        hosts: (1..=hosts).map(|n| Member::start(&lab, n)).collect::<Result<_, _>>()?,
        group,
        servants: Vec::new(),
    };
    // Before there is anything else.
    let guard = guards(&bed, &lab, hosts + 1);
    if let Err(error) = guard.and_then(|guard| work(&mut bed, steps, &guard, &mut section)) {
        section.notes.push(format!("it could not be measured: {error}"));
        failures.push(error);
    }
    let group = bed.group;
    for mut member in bed.hosts.into_iter().chain([bed.owner]) {
        if let Err(error) = member.stop() {
            failures.push(error);
        }
    }
    drop(lab);
    drop(group);
    Ok(section)
}

fn work(
    bed: &mut Bed<'_>,
    steps: &[usize],
    guard: &Lines,
    section: &mut Section,
) -> Result<(), BenchError> {
    let parent = python(bed.owner.node, IDLE, PORT, &[STATE_MIB])?;
    ask(bed.owner.node, PORT, b"GET /warm HTTP/1.0\r\n\r\n")?;
    let plain = plain(bed, section)?;
    let seed = bed.owner.prepare(parent.pid)?;
    for host in &bed.hosts {
        warm(host, &seed)?;
    }
    bed.servants = servants(bed)?;
    let others = others(bed, &seed)?;
    let (mut done, mut times) = (Vec::new(), Vec::new());
    for &alive in steps {
        let before = done.last().map_or(0, |step: &Step| step.alive);
        if let Some(bound) = limits::reached(alive - before)? {
            section.notes.push(format!("stopped at {before} children: {bound}"));
            break;
        }
        eprintln!("bench scale: {alive} children");
        done.push(step(bed, &seed, before, alive, &mut times)?);
    }
    report(bed, section, &done, (&plain, guard), &others)?;
    let every = times.len().div_ceil(ANSWERS_KEPT).max(1);
    let kept = times.into_iter().step_by(every).collect();
    section.add(Figure::new("one answer, all children alive", Samples::new("ms", kept)));
    end(bed, &parent)
}

/// What a child of fork(2) takes that waits as the others do, and what it takes after one answer.
fn plain(bed: &Bed<'_>, section: &mut Section) -> Result<(Lines, Lines), BenchError> {
    let node = bed.owner.node;
    let before = bed.now()?;
    ask(node, PORT, format!("GET /fork/{PEERS} HTTP/1.0\r\n\r\n").as_bytes())?;
    std::thread::sleep(Duration::from_secs(1));
    let idle = bed.now()?.each(&before, PEERS);
    // They and their parent answer in turn.
    for _ in 0..=PEERS {
        ask(node, PORT, b"GET /first HTTP/1.0\r\n\r\n")?;
        std::thread::sleep(PAUSE);
    }
    let answered = bed.now()?.each(&before, PEERS);
    // Whoever is asked passes it on, by turn, until the parent has it.
    for _ in 0..=PEERS {
        ask(node, PORT, b"GET /end HTTP/1.0\r\n\r\n")?;
        std::thread::sleep(PAUSE);
    }
    let name = format!("fork() into the same namespaces: memory of each of {PEERS} idle children");
    section.add(Figure::new(name, Samples::new("KiB", vec![charged(&idle)])));
    let name = "fork(): the same after one answer";
    section.add(Figure::new(name, Samples::new("KiB", vec![charged(&answered)])));
    Ok((idle, answered))
}

/// What a guard takes that waits for a child: of a node whose pool is so much larger.
fn guards(bed: &Bed<'_>, lab: &Lab, index: usize) -> Result<Lines, BenchError> {
    const FEW: usize = 4;
    let with = |count: usize| {
        let mut member = Member::start_with(lab, index, &[&format!("--pool={count}")])?;
        std::thread::sleep(SETTLE);
        let memory = bed.now();
        member.stop()?;
        memory
    };
    let few = with(FEW)?;
    Ok(with(FEW + PEERS)?.each(&few, PEERS))
}

/// A template that knows what children touch until they have answered once.
fn warm(host: &Member<'_>, seed: &Prepared) -> Result<(), BenchError> {
    for _ in 0..3 {
        start(host, seed, 1, Net::Node, Hooks::Auto)?;
        ask(host.node, PORT, b"GET /first HTTP/1.0\r\n\r\n")?;
        std::thread::sleep(Duration::from_millis(700));
        host.end_all()?;
    }
    Ok(())
}

fn start(
    host: &Member<'_>,
    seed: &Prepared,
    count: usize,
    net: Net,
    hooks: Hooks,
) -> Result<(), BenchError> {
    let mut client = host.client()?;
    let mut left = count;
    while left > 0 {
        let batch = left.min(BATCH);
        let request = ForkRequest {
            count: batch as u32,
            via: Via::Template,
            net,
            hooks,
            ..ForkRequest::new(&seed.reference)
        };
        client.fork(request).map_err(BenchError::node("fork"))?;
        left -= batch;
    }
    Ok(())
}

/// Daemon and pager of each host, with the private KiB that they have now.
fn servants(bed: &Bed<'_>) -> Result<Vec<(usize, u32, bool, f64)>, BenchError> {
    let mut all = Vec::new();
    for (host, member) in bed.hosts.iter().enumerate() {
        let daemon = member.daemon.pid()?;
        for pid in member.node.pids()? {
            let line = std::fs::read(member.node.proc_dir(pid).join("cmdline")).unwrap_or_default();
            let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
            if pid == daemon || words.get(1).is_some_and(|word| *word == b"pager") {
                all.push((host, pid, pid == daemon, taken(member.node, pid)?.private));
            }
        }
    }
    Ok(all)
}

/// What children take that are asked for in another way than most.
struct Others {
    /// A network namespace, beside all the rest.
    network: f64,
    /// All of a child whose program is called by nobody (`--hooks none`).
    no_hooks: f64,
}

fn others(bed: &Bed<'_>, seed: &Prepared) -> Result<Others, BenchError> {
    let host = &bed.hosts[0];
    let each = |net, hooks| {
        let before = bed.now()?;
        start(host, seed, PEERS, net, hooks)?;
        std::thread::sleep(SETTLE);
        let each = charged(&bed.now()?.each(&before, PEERS));
        host.end_all()?;
        std::thread::sleep(SETTLE);
        Ok::<_, BenchError>(each)
    };
    let usual = each(Net::Node, Hooks::Auto)?;
    let network = each(Net::Own, Hooks::Auto)? - usual;
    Ok(Others { network, no_hooks: each(Net::Node, Hooks::None)? })
}

/// Children until `alive` are there, evenly on all hosts; then each of the new ones answers.
fn step(
    bed: &Bed<'_>,
    seed: &Prepared,
    before: usize,
    alive: usize,
    times: &mut Vec<f64>,
) -> Result<Step, BenchError> {
    let hosts = bed.hosts.len();
    let (new, share) = (alive - before, alive / hosts);
    let memory = bed.now()?;
    let begun = Instant::now();
    for host in &bed.hosts {
        start(host, seed, share - before / hosts, Net::Node, Hooks::Auto)?;
    }
    let per_second = new as f64 / begun.elapsed().as_secs_f64();
    std::thread::sleep(SETTLE);
    let idle = bed.now()?.each(&memory, new);
    let mut asked = 0;
    for host in &bed.hosts {
        asked += answers(host, share, times)?;
    }
    let answered = bed.now()?.each(&memory, new);
    Ok(Step { alive, new, idle, answered, asked, per_second })
}

/// Asks until each that lives has answered: the kernel wakes whoever has waited longest. Gives the
/// number of requests; it is larger than `count` if one that was not waiting yet took another's turn.
fn answers(host: &Member<'_>, count: usize, times: &mut Vec<f64>) -> Result<usize, BenchError> {
    let rows = running(host)?;
    let mut silent: BTreeSet<String> = rows.into_iter().map(|row| row.generation).collect();
    let (alive, mut asked) = (silent.len(), 0);
    while !silent.is_empty() && asked < 2 * count {
        let begun = Instant::now();
        let answer = ask(host.node, PORT, b"GET /first HTTP/1.0\r\n\r\n")?;
        times.push(begun.elapsed().as_secs_f64() * 1000.0);
        asked += 1;
        let text = String::from_utf8_lossy(&answer);
        let generation = text.split_once("\"generation\": \"").and_then(|(_, rest)| {
            let (number, _) = rest.split_once('"')?;
            (text.starts_with("HTTP/1.1 200")).then(|| number.to_owned())
        });
        silent.remove(&generation.ok_or_else(|| BenchError::wrong("answer", &text))?);
        std::thread::sleep(PAUSE);
    }
    if silent.is_empty() && alive == count {
        return Ok(asked);
    }
    let silent = silent.len();
    let text =
        format!("{silent} of {alive} children, want {count}, answered none of {asked} requests");
    Err(BenchError::wrong("answers", text))
}

/// What is charged to the cgroup; without one, what the machine has less.
fn charged(each: &Lines) -> f64 {
    let [everything, .., charged] = *each;
    if charged == 0.0 { everything } else { charged }
}

fn running(host: &Member<'_>) -> Result<Vec<ChildRow>, BenchError> {
    let mut rows = host.children()?;
    rows.retain(|row| row.state == ChildState::Running);
    Ok(rows)
}

/// The figures: each step, and the parts at the last one.
fn report(
    bed: &Bed<'_>,
    section: &mut Section,
    steps: &[Step],
    (plain, guard): (&(Lines, Lines), &Lines),
    others: &Others,
) -> Result<(), BenchError> {
    let Some(last) = steps.last() else { return Ok(()) };
    let (forked, plain, plain_answered) = (&plain.0, charged(&plain.0), charged(&plain.1));
    let kib = |value: f64| Samples::new("KiB", vec![value]);
    for step in steps {
        let Step { alive, new, .. } = step;
        let name = format!("{alive} alive: memory of each of {new} new idle ones");
        section.add(Figure::new(name, kib(charged(&step.idle))).beside("fork()", plain));
        let name = format!("{alive} alive: the same after one answer of each");
        let figure = Figure::new(name, kib(charged(&step.answered)));
        section.add(figure.beside("fork()", plain_answered).promised(Target::RatioMost(1.1)));
    }
    let count = last.alive as f64;
    section.add(Figure::new("children that answered", Samples::new("", vec![count])));
    let asked = Samples::new("", vec![last.asked as f64]);
    section.add(Figure::new("requests until each had", asked));
    let rate = steps.iter().map(|step| step.per_second).collect();
    section.add(Figure::new("children started, one client", Samples::new("1/s", rate)));
    section.add(Figure::new("a network namespace, beside all this", kib(others.network)));
    let name = format!("--hooks none: memory of each of {PEERS} idle children");
    section.add(Figure::new(name, kib(others.no_hooks)).beside("fork()", plain));
    let whole: Lines = std::array::from_fn(|line| {
        let sum: f64 = steps.iter().map(|step| step.idle[line] * step.new as f64).sum();
        sum / count
    });
    let name = format!("each of {count} idle ones: everything that the machine has less");
    let figure = Figure::new(name, kib(whole[0])).beside("fork()", forked[0]);
    section.add(figure.promised(Target::Most(350.0)));
    let floors = [(forked, "each child of fork()"), (guard, "each guard without a child")];
    for (of, who) in [(&whole, "each of them")].into_iter().chain(floors) {
        let rest = of.iter().zip(LINES).skip(usize::from(who == "each of them"));
        for (value, (_, name)) in rest {
            section.add(Figure::new(format!("{who}: {name}"), kib(*value)));
        }
    }
    parts(bed, section, last.alive)
}

/// What single processes take, after all have answered.
fn parts(bed: &Bed<'_>, section: &mut Section, alive: usize) -> Result<(), BenchError> {
    let (mut children, mut guards) = (Vec::new(), Vec::new());
    for host in &bed.hosts {
        let rows = running(host)?;
        let every = (rows.len() * bed.hosts.len()).div_ceil(SAMPLE).max(1);
        for row in rows.iter().step_by(every) {
            let pid = row.pid.unsigned_abs();
            children.push(taken(host.node, pid)?);
            guards.push(taken(host.node, parent(host.node, pid)?)?);
        }
    }
    for (who, all) in [("child, after its answer", children), ("guard", guards)] {
        let mut add = |what: &str, unit, of: fn(&Taken) -> f64| {
            let values = all.iter().map(of).collect();
            section.add(Figure::new(format!("a {who}: {what}"), Samples::new(unit, values)));
        };
        add("pages of its own", "KiB", |one| one.private);
        add("page tables", "KiB", |one| one.tables);
        add("descriptors", "", |one| one.fds);
    }
    for (who, daemon) in [("daemon", true), ("pager", false)] {
        let (mut grown, mut fds) = (0.0, 0.0);
        for (host, pid, _, before) in bed.servants.iter().filter(|one| one.2 == daemon) {
            let now = taken(bed.hosts[*host].node, *pid)?;
            grown += now.private - before;
            fds += now.fds;
        }
        let of_each = |value: f64| vec![value / alive as f64];
        let name = format!("a child's share of its {who}: pages");
        section.add(Figure::new(name, Samples::new("KiB", of_each(grown))));
        let name = format!("a child's share of its {who}: descriptors");
        section.add(Figure::new(name, Samples::new("", of_each(fds))));
    }
    Ok(())
}

/// The parent has noticed nothing; its children end.
fn end(bed: &Bed<'_>, parent: &Parent) -> Result<(), BenchError> {
    let answer = ask(bed.owner.node, parent.port, b"GET /last HTTP/1.0\r\n\r\n")?;
    if !answer.starts_with(b"HTTP/1.1 200") {
        return Err(BenchError::wrong("parent", "it does not answer any more"));
    }
    for host in &bed.hosts {
        let mut client = host.client()?;
        for row in running(host)? {
            client.kill(row.pid, 9).map_err(BenchError::node("kill"))?;
        }
    }
    let until = Instant::now() + 6 * ANSWER_BOUND;
    for host in &bed.hosts {
        while !running(host)?.is_empty() {
            if Instant::now() > until {
                return Err(BenchError::wrong("end", "children do not end"));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    Ok(())
}
