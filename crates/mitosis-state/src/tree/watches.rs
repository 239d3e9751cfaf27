//! Who registers what in an epoll instance: a member that has both the instance and the file. Where there
//! is none, since whoever added the file has closed the instance, the later of those who make the two
//! gets the other one for as long as that takes.

use super::{Description, Gifts, Held, Share, free_number};
use crate::kinds::epoll::{self, Watch};
use crate::kinds::gift;
use crate::{Group, OpenFd, StateError};
use mitosis_sys::kcmp;
use std::collections::HashMap;

/// Where a member has a description that it only borrows: its number, by member and description.
type Borrowed = HashMap<(usize, usize), u32>;

/// Divides the registrations of all instances. `made` says which member makes each description, and at
/// which number.
///
/// # Errors
/// kcmp(2), with the member that it is about.
pub(super) fn divide(
    members: &[Held],
    descriptions: &[Description],
    made: &[(usize, u32)],
    shares: &mut [Share],
    gifts: &mut Gifts,
) -> Result<(), (i32, StateError)> {
    let mut borrowed = Borrowed::new();
    for (instance, description) in descriptions.iter().enumerate() {
        let (member, at) = description.holders[0];
        let (pid, group) = (members[member].pid, &members[member].groups[at]);
        if !epoll::is_instance(group) {
            continue;
        }
        for (watch, nth) in epoll::registrations(group).map_err(|e| (pid, e))? {
            let found = watched(members, descriptions, (pid, group.first()), (watch.fd, nth));
            let found = found.map_err(|e| (pid, group.refused(format!("an epoll: {e}"))))?;
            let Some(file) = found else { continue };
            let who = registrar(descriptions, made, instance, file);
            let mut number = |one: usize| {
                let held = descriptions[one].holders.iter().find(|(member, _)| *member == who);
                match held {
                    Some(&(_, at)) => members[who].groups[at].first(),
                    None if made[one].0 == who => made[one].1,
                    None => *borrowed.entry((who, one)).or_insert_with(|| {
                        borrow(members, &descriptions[one], made[one], who, shares, gifts)
                    }),
                }
            };
            let (epoll, file) = (number(instance), number(file));
            shares[who].watches.entry(epoll).or_default().push(Watch { file, ..watch });
        }
    }
    for share in shares {
        let at = |number: u32| share.groups.iter().position(|group| group.first() == number);
        for (number, watches) in &share.watches {
            let Some(at) = at(*number).filter(|at| share.gets.contains_key(at)) else { continue };
            gift::watch(&mut share.gets, at, watches.clone());
        }
    }
    Ok(())
}

/// The description that a registration is of; `None` if no member holds it.
fn watched(
    members: &[Held],
    descriptions: &[Description],
    instance: (i32, u32),
    (target, nth): (u32, u32),
) -> Result<Option<usize>, mitosis_sys::SysError> {
    let groups = |one: &Description| one.holders.clone().into_iter();
    let named = |one: &usize| {
        let mut groups = groups(&descriptions[*one]).map(|(m, at)| &members[m].groups[at]);
        groups.any(|group| group.fds.iter().any(|fd| fd.number == target))
    };
    // Most likely under the number under which it was added.
    let (likely, others): (Vec<usize>, Vec<usize>) = (0..descriptions.len()).partition(named);
    for candidate in likely.into_iter().chain(others) {
        let (member, at) = descriptions[candidate].holders[0];
        let file = (members[member].pid, members[member].groups[at].first());
        if kcmp::watches_file(instance, (target, nth), file)? {
            return Ok(Some(candidate));
        }
    }
    Ok(None)
}

/// Which member registers.
fn registrar(
    descriptions: &[Description],
    made: &[(usize, u32)],
    instance: usize,
    file: usize,
) -> usize {
    let holds = |one: usize, member: usize| {
        made[one].0 == member || descriptions[one].holders.iter().any(|(m, _)| *m == member)
    };
    let latest = made[instance].0.max(made[file].0);
    let both = |member: &usize| holds(instance, *member) && holds(file, *member);
    let last = descriptions[instance].holders.iter().map(|(m, _)| *m).max().unwrap_or(latest);
    (0..=last.max(latest)).find(both).unwrap_or(latest)
}

/// Lets a member have what an earlier one makes: at a number of which it knows nothing.
fn borrow(
    members: &[Held],
    description: &Description,
    (maker, theirs): (usize, u32),
    who: usize,
    shares: &mut [Share],
    gifts: &mut Gifts,
) -> u32 {
    let (first, at) = description.holders[0];
    let lent = &members[first].groups[at];
    let (number, place) = (free_number(&shares[who].groups), shares[who].groups.len());
    let fds = vec![OpenFd { number, cloexec: true }];
    let group = Group { fds, holder: Some((members[first].pid, lent.first())), ..lent.clone() };
    shares[who].gets.insert(place, gift::file(&group, maker as u32, Vec::new()));
    shares[who].groups.push(group);
    shares[who].temporary.push(number);
    gifts.insert((maker, who, place), theirs);
    number
}
