//! Which process has to be born of which, so that all of a tree have their parents, sessions and process
//! groups.
//!
//! A session is inherited at birth, and begun only by whoever gets its own pid for its id; so are
//! process groups, but that others can join them. So where the leader is no process of the tree any
//! more, another one takes its pid for as long as the tree is made. And a process that a subreaper has
//! adopted was born of one that has ended: it is born of a temporary process again, whose end lets
//! the same one adopt it (prctl(2), PR_SET_CHILD_SUBREAPER).

use crate::Session;
use std::collections::{BTreeSet, HashMap};

/// A process of a tree.
#[derive(Clone, Copy, Debug)]
pub struct Kin {
    /// Its pid.
    pub pid: i32,
    /// Index of its parent: smaller than its own, but for the root, which is the first.
    pub parent: usize,
    /// Its group and session. The root leads its own.
    pub session: Session,
    /// It has ended.
    pub zombie: bool,
}

/// A process to be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Birth {
    /// Which of the tree it is; `None` for one that ends when all are there.
    pub kin: Option<usize>,
    /// Its pid.
    pub pid: i32,
    /// Index of the birth of the process that makes it: smaller than its own.
    pub parent: usize,
    /// Whose child it is in the end, likewise.
    pub heir: usize,
    /// The process group to join; 0 for the one that it leads or is born in.
    pub group: i32,
    /// It begins a session of its own.
    pub leads_session: bool,
    /// It leads its process group.
    pub leads_group: bool,
    /// It leads one until the others have joined that, and then joins `group`.
    pub leaves: bool,
    /// It is born before its parent begins a session of its own.
    pub before: bool,
    /// Orphans of those that it makes become its own.
    pub adopts: bool,
}

/// Pids for processes that nobody asks for by theirs, of those that are not taken. Those of a new
/// namespace are given from the lowest on, so the highest come first, of those that every machine has.
pub fn spare_pids(taken: impl Fn(i32) -> bool) -> impl Iterator<Item = i32> {
    const HIGHEST: i32 = 32_000;
    (2..=HIGHEST).rev().filter(move |pid| !taken(*pid))
}

/// All that have to be made, in an order in which they can be.
///
/// # Errors
/// Which process cannot be made so, and why.
pub fn births(kin: &[Kin]) -> Result<Vec<Birth>, (usize, String)> {
    let mut family = Family::of(kin);
    for at in 1..kin.len() {
        family.place(at)?;
    }
    family.orphans_reach_their_adopters()?;
    for at in 1..kin.len() {
        family.join(at)?;
    }
    family.groups_stay()?;
    Ok(family.in_order())
}

struct Family<'a> {
    kin: &'a [Kin],
    /// Index of each process of the tree by its pid.
    by_pid: HashMap<i32, usize>,
    /// The processes of the tree, and behind them the temporary ones. Parents are indices in here.
    born: Vec<Birth>,
    /// The session of each.
    sessions: Vec<i32>,
    /// Those that adopt.
    adopters: BTreeSet<usize>,
    /// Who is adopted, after the end of which.
    adopted: Vec<(usize, usize)>,
}

impl<'a> Family<'a> {
    fn of(kin: &'a [Kin]) -> Family<'a> {
        let born = |(at, one): (usize, &Kin)| {
            let leads_session = at == 0 || one.session.session == one.pid;
            Birth {
                kin: Some(at),
                pid: one.pid,
                parent: one.parent,
                heir: one.parent,
                group: 0,
                leads_session,
                leads_group: leads_session || one.session.group == one.pid,
                leaves: false,
                before: false,
                adopts: false,
            }
        };
        Family {
            kin,
            by_pid: kin.iter().enumerate().map(|(at, one)| (one.pid, at)).collect(),
            born: kin.iter().enumerate().map(born).collect(),
            sessions: kin.iter().map(|one| one.session.session).collect(),
            adopters: BTreeSet::new(),
            adopted: Vec::new(),
        }
    }

    /// Finds the process of which `at` is born.
    fn place(&mut self, at: usize) -> Result<(), (usize, String)> {
        let (session, parent) = (self.sessions[at], self.kin[at].parent);
        if self.born[at].leads_session || self.sessions[parent] == session {
            return Ok(());
        }
        // What its parent leads, it did not when this one was born.
        let above = self.kin[parent].parent;
        if parent != 0 && self.born[parent].leads_session && self.sessions[above] == session {
            self.born[at].before = true;
            return Ok(());
        }
        let host = self.host(at, session, parent)?;
        self.born[at].parent = host;
        self.adopters.insert(parent);
        self.adopted.push((at, host));
        Ok(())
    }

    /// A process in `session` that ends, and then `parent` adopts what it has made.
    fn host(&mut self, at: usize, session: i32, parent: usize) -> Result<usize, (usize, String)> {
        match self.by_pid.get(&session).copied() {
            Some(leader) if !self.born[leader].leads_session => {
                Err((at, format!("is in session {session}, whose leader has left it")))
            }
            Some(leader) if self.kin[leader].zombie => Ok(leader),
            Some(leader) => {
                let same =
                    |one: &Birth| one.kin.is_none() && one.parent == leader && !one.leads_group;
                let there = self.born.iter().position(same);
                Ok(there.unwrap_or_else(|| {
                    let pid = self.spare();
                    self.temporary(pid, leader, session)
                }))
            }
            None if session <= 1 => {
                Err((at, format!("is in session {session}, which is none of its tree's")))
            }
            None => {
                let there = self.led_for_now(session).filter(|one| self.born[*one].leads_session);
                let host = there.unwrap_or_else(|| {
                    let host = self.temporary(session, parent, session);
                    (self.born[host].leads_session, self.born[host].leads_group) = (true, true);
                    host
                });
                Ok(host)
            }
        }
    }

    /// The temporary process with that pid.
    fn led_for_now(&self, pid: i32) -> Option<usize> {
        self.born.iter().position(|one| one.kin.is_none() && one.pid == pid)
    }

    fn temporary(&mut self, pid: i32, parent: usize, session: i32) -> usize {
        self.born.push(Birth {
            kin: None,
            pid,
            parent,
            heir: parent,
            group: 0,
            leads_session: false,
            leads_group: false,
            leaves: false,
            before: false,
            adopts: false,
        });
        self.sessions.push(session);
        self.born.len() - 1
    }

    /// An id that no process has or leads anything by.
    fn spare(&self) -> i32 {
        let ids = |one: &Kin| [one.pid, one.session.group, one.session.session];
        let kin = self.kin.iter().flat_map(ids);
        let named: BTreeSet<i32> = kin.chain(self.born.iter().map(|one| one.pid)).collect();
        // There is one: a tree has 64 processes. The kernel refuses what is none.
        spare_pids(|pid| named.contains(&pid)).next().unwrap_or(-1)
    }

    /// The kernel gives orphans to the nearest subreaper.
    fn orphans_reach_their_adopters(&mut self) -> Result<(), (usize, String)> {
        for &(at, host) in &self.adopted {
            let (mut above, wanted) = (self.born[host].parent, self.kin[at].parent);
            // Nobody is born of what is born of itself.
            for _ in 0..self.born.len() {
                if above != 0 && !self.adopters.contains(&above) {
                    above = self.born[above].parent;
                }
            }
            if above != wanted {
                let (session, pid) = (self.sessions[at], self.kin[wanted].pid);
                let why = format!(
                    "is in session {session} and has been adopted by {pid}, which another process \
                     of that tree would have adopted first"
                );
                return Err((at, why));
            }
        }
        for adopter in &self.adopters {
            self.born[*adopter].adopts = true;
        }
        Ok(())
    }

    /// Finds the leader of the process group of `at`.
    fn join(&mut self, at: usize) -> Result<(), (usize, String)> {
        if self.born[at].leads_group {
            return Ok(());
        }
        let (group, session) = (self.kin[at].session.group, self.sessions[at]);
        self.born[at].group = group;
        let leader = match self.by_pid.get(&group).copied() {
            Some(leader) if self.born[leader].leads_group => Some(leader),
            Some(left) if self.sessions[left] == session => {
                self.born[left].leaves = true;
                return Ok(());
            }
            Some(left) => Some(left),
            None => self.led_for_now(group),
        };
        match leader {
            Some(leader) if self.sessions[leader] == session => return Ok(()),
            None if group > 1 => {}
            _ => {
                let why = format!("is in process group {group}, which is none of its session's");
                return Err((at, why));
            }
        }
        // Whoever leads the session makes the leader.
        let above = self.by_pid.get(&session).copied().or_else(|| self.led_for_now(session));
        let Some(above) = above.filter(|above| self.born[*above].leads_session) else {
            return Err((at, format!("is in session {session}, which nobody leads")));
        };
        let leader = self.temporary(group, above, session);
        self.born[leader].leads_group = true;
        Ok(())
    }

    /// Whoever leads a session cannot leave its group (setpgid(2)), and somebody must stay in it.
    fn groups_stay(&self) -> Result<(), (usize, String)> {
        let leaves = |at: &usize| self.born[*at].leaves;
        for left in (0..self.kin.len()).filter(leaves) {
            let pid = self.kin[left].pid;
            let inside = |at: &usize| self.kin[*at].session.group == pid;
            let stays = (0..self.kin.len()).filter(inside).any(|at| !self.born[at].leaves);
            if self.born[left].leads_session || !stays {
                return Err((left, "has left the process group that it leads".into()));
            }
        }
        Ok(())
    }

    /// Each behind the one of which it is born, otherwise in the order of the tree.
    fn in_order(self) -> Vec<Birth> {
        let mut places: Vec<Option<usize>> = vec![None; self.born.len()];
        let mut order: Vec<usize> = Vec::with_capacity(self.born.len());
        for at in 0..self.born.len() {
            let mut line = Vec::new();
            let mut next = at;
            while places[next].is_none() && !line.contains(&next) {
                line.push(next);
                next = self.born[next].parent;
            }
            for one in line.into_iter().rev() {
                places[one] = Some(order.len());
                order.push(one);
            }
        }
        let place = |at: usize| places[at].unwrap_or(0);
        let moved = |at: usize| {
            let one = self.born[at];
            Birth { parent: place(one.parent), heir: place(one.heir), ..one }
        };
        order.into_iter().map(moved).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kin(pid: i32, parent: usize, group: i32, session: i32) -> Kin {
        Kin { pid, parent, session: Session { group, session }, zombie: false }
    }

    fn of(births: &[Birth], pid: i32) -> (usize, Birth) {
        let at = births.iter().position(|one| one.pid == pid).expect("no such process");
        (at, births[at])
    }

    #[test]
    fn a_daemon_is_born_of_one_that_leads_its_session_for_now() {
        let births = births(&[kin(5, 0, 5, 5), kin(9, 0, 7, 7), kin(10, 1, 7, 7)]).expect("births");
        let (leader, temporary) = of(&births, 7);
        assert_eq!((temporary.kin, temporary.parent, temporary.leads_session), (None, 0, true));
        let (_, daemon) = of(&births, 9);
        assert_eq!((daemon.parent, daemon.heir, daemon.group), (leader, 0, 7));
        assert!(births[0].adopts && births.len() == 4);
    }

    #[test]
    fn a_group_whose_leader_has_ended_is_led_for_now() {
        let births = births(&[kin(5, 0, 5, 5), kin(9, 0, 8, 5), kin(10, 0, 8, 5)]).expect("births");
        let (_, temporary) = of(&births, 8);
        assert_eq!((temporary.kin, temporary.parent, temporary.leads_group), (None, 0, true));
        assert!(!temporary.leads_session && !births[0].adopts && births.len() == 4);
    }

    #[test]
    fn an_orphan_of_a_session_that_is_led_goes_to_its_adopter() {
        let births = births(&[kin(5, 0, 5, 5), kin(9, 0, 9, 9), kin(10, 0, 9, 9)]).expect("births");
        let (orphan, leader) = (of(&births, 10).1, of(&births, 9).0);
        assert_eq!((orphan.heir, births[orphan.parent].parent), (0, leader));
        assert_eq!(births[orphan.parent].kin, None);
    }

    #[test]
    fn a_leader_that_has_left_its_group_leaves_it_again() {
        let births = births(&[kin(5, 0, 5, 5), kin(6, 0, 5, 5), kin(7, 0, 6, 5)]).expect("births");
        let (left, stays) = (of(&births, 6).1, of(&births, 7).1);
        assert!(left.leaves && !left.leads_group && !stays.leaves);
        assert_eq!((left.group, stays.group), (5, 6));
    }

    #[test]
    fn what_cannot_be_made_is_refused() {
        // Between the leader and who has adopted is another one that adopts.
        let two =
            [kin(5, 0, 5, 5), kin(6, 0, 5, 5), kin(9, 1, 9, 9), kin(10, 0, 9, 9), kin(11, 1, 9, 9)];
        assert!(births(&two).is_err());
        // Two that have left, each for the group of the other.
        assert!(births(&[kin(5, 0, 5, 5), kin(6, 0, 7, 5), kin(7, 0, 6, 5)]).is_err());
        assert!(births(&[kin(5, 0, 5, 5), kin(6, 0, 5, 1)]).is_err());
    }
}
