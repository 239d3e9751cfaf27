//! A child that does anything with its memory, while it is filled in the background or not, sees at
//! every page what it would see had all pages been there from the start.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use mitosis_sys::uffd::testing::{Order, hash_page};
use proptest::prelude::*;

const PAGES: u64 = 80;
const REMOTE: u64 = 64;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Page {
    Unmapped,
    Zero,
    Seed(u64),
    Written(Option<u64>, u64),
}

#[derive(Clone, Debug)]
enum Step {
    Look(u64, u64),
    LookInFork(u64, u64),
    Write(u64, u64),
    Drop(u64, u64),
    Unmap(u64, u64),
    Move(u64, u64),
    Exec,
    Independent,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let page = 0..PAGES;
    let step = prop_oneof![
        6 => (0..2 * PAGES, 1..12u64).prop_map(|(a, n)| Step::Look(a, n)),
        2 => (0..2 * PAGES, 1..12u64).prop_map(|(a, n)| Step::LookInFork(a, n)),
        2 => (page.clone(), 1..100u64).prop_map(|(a, v)| Step::Write(a, v)),
        3 => (page.clone(), 1..12u64).prop_map(|(a, n)| Step::Drop(a, n)),
        2 => (page.clone(), 1..6u64).prop_map(|(a, n)| Step::Unmap(a, n)),
        3 => (0..2 * PAGES, 0..2 * PAGES).prop_map(|(a, b)| Step::Move(a, b)),
        1 => Just(Step::Exec),
        1 => Just(Step::Independent),
    ];
    prop::collection::vec(step, 1..50)
}

fn bytes(page: Page) -> Vec<u8> {
    let mut out = vec![0; 4096];
    match page {
        Page::Unmapped | Page::Zero | Page::Written(None, _) => {}
        Page::Seed(vpn) | Page::Written(Some(vpn), _) => fill_page(vpn, &mut out),
    }
    if let Page::Written(_, value) = page {
        out[..8].copy_from_slice(&value.to_ne_bytes());
    }
    out
}

fn hash(pages: &[Page]) -> u64 {
    pages.iter().fold(0, |hash, page| hash_page(hash, &bytes(*page)))
}

struct World {
    child: TestChild,
    model: Vec<Page>,
}

impl World {
    /// The longest mapped part of `[first, first + count)` from its beginning.
    fn mapped(&self, first: u64, count: u64) -> &[Page] {
        let end = (first + count).min(2 * PAGES);
        let part = &self.model[first as usize..end as usize];
        let cut = part.iter().position(|page| *page == Page::Unmapped).unwrap_or(part.len());
        &part[..cut]
    }

    fn apply(&mut self, rig: &Rig, step: &Step) {
        match *step {
            Step::Look(a, n) | Step::LookInFork(a, n) => {
                let part = self.mapped(a, n);
                if !part.is_empty() {
                    let forked = matches!(step, Step::LookInFork(..));
                    let order = if forked { Order::ForkHash } else { Order::Hash };
                    let got = self.child.order(order, [a, part.len() as u64, 0, 0]);
                    assert_eq!(got, hash(part), "{step:?}: {part:?}");
                }
            }
            Step::Write(a, value) => {
                let page = &mut self.model[a as usize];
                *page = match *page {
                    Page::Unmapped => return,
                    Page::Zero => Page::Written(None, value),
                    Page::Seed(vpn) => Page::Written(Some(vpn), value),
                    Page::Written(below, _) => Page::Written(below, value),
                };
                self.child.order(Order::Write, [a, value, 0, 0]);
            }
            Step::Drop(a, n) => {
                let n = self.mapped(a, n).len() as u64;
                if n > 0 {
                    assert_eq!(self.child.order(Order::Drop, [a, n, 0, 0]), 0);
                    self.model[a as usize..(a + n) as usize].fill(Page::Zero);
                }
            }
            Step::Unmap(a, n) => {
                let n = self.mapped(a, n).len() as u64;
                if n > 0 {
                    assert_eq!(self.child.order(Order::Unmap, [a, n, 0, 0]), 0);
                    self.model[a as usize..(a + n) as usize].fill(Page::Unmapped);
                }
            }
            // One page: more may lie in several mappings, which the kernel does not move.
            Step::Move(a, b) => {
                if a != b && self.model[a as usize] != Page::Unmapped {
                    assert_eq!(self.child.order(Order::Move, [a, 1, b, 1]), 0);
                    self.model[b as usize] = self.model[a as usize];
                    self.model[a as usize] = Page::Unmapped;
                }
            }
            Step::Exec => assert_eq!(self.child.order(Order::ForkExec, [0; 4]), 0),
            Step::Independent => rig.client.make_independent(self.child.id).unwrap(),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 60,
        max_shrink_iters: 200,
        ..ProptestConfig::default()
    })]

    #[test]
    fn memory_is_as_if_it_had_always_been_there(steps in steps(), eager in any::<bool>()) {
        let (server, rig) = (Server::start(), Rig::start());
        let wanted = Wanted { pages: PAGES, remote: REMOTE, eager, ..Wanted::default() };
        let child = child(&rig, server.owner(), wanted);
        let base = child.base();
        let page = |p| match p {
            p if p < REMOTE => Page::Seed(base + p),
            p if p < PAGES => Page::Zero,
            _ => Page::Unmapped,
        };
        let mut world = World { child, model: (0..2 * PAGES).map(page).collect() };
        for step in &steps {
            world.apply(&rig, step);
        }
        for first in 0..2 * PAGES {
            world.apply(&rig, &Step::Look(first, 1));
        }
        let _ = rig.client.make_independent(world.child.id);
        rig.until(world.child.id, "independent", |s| s.independent && s.reason.is_none());
    }
}
