//! The queue pair that all seeds of a source share: how it comes and goes, and what that means for each.

use super::super::reading::{Due, Link, Mode, RETRY, RETRY_REFUSED, Reading};
use super::RdmaSource;
use crate::wire::{self, RdmaAsk, RdmaSaid};
use crate::{Handle, PageSource, SourceError};
use mitosis_rdma_sys::Queue;
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

impl RdmaSource {
    /// Asks for the regions of a seed that are not known, if the owner was not asked already.
    pub(super) fn regions(&mut self, handle: Handle) {
        let Some(seed) = self.seeds.get_mut(&handle).filter(|seed| seed.mode == Mode::On) else {
            return;
        };
        if matches!(self.link, Link::Up(..))
            && let Some(from) = seed.regions.ask()
        {
            self.ask(handle, &RdmaAsk::Regions { from });
        }
    }

    /// Asks for the queue pair, if there is a seed to be read over it.
    pub(super) fn connect_link(&mut self) {
        let on = |(handle, seed): (&Handle, &Reading)| (seed.mode == Mode::On).then_some(*handle);
        let Some(handle) = self.seeds.iter().find_map(on) else { return };
        let psn = RandomState::new().hash_one(handle.0) as u32;
        match Queue::new(&self.verbs.device, &self.verbs.completions, psn) {
            Ok(queue) => {
                self.ask(handle, &RdmaAsk::Connect(queue.local().into()));
                self.link = Link::Asked(queue, handle, Instant::now());
            }
            Err(error) => self.unlinked(&error.to_string(), RETRY_REFUSED),
        }
    }

    /// A seed is not read by RDMA any more.
    fn off(&mut self, handle: Handle, why: String, mode: Mode) {
        let Some(seed) = self.seeds.get_mut(&handle) else { return };
        match seed.mode {
            Mode::On => {
                seed.mode = mode;
                self.reach.push((handle, 0, Duration::ZERO));
                self.notes.push((handle, why));
                let tags = self.take_back(handle);
                self.over_tcp(tags);
            }
            // The owner waits for the word, though nothing is on its way any more.
            Mode::Off => seed.mode = mode,
            Mode::Ending | Mode::Closing => return,
        }
        self.settle(handle);
    }

    /// Of a seed's READs, those that were not posted yet, and will not be; what is on its way may land.
    pub(super) fn take_back(&mut self, handle: Handle) -> Vec<u64> {
        let waits = |tag: &u64| self.flights.get(tag).is_some_and(|f| f.read.handle == handle);
        let mut tags: Vec<u64> = self.waiting.iter().copied().filter(waits).collect();
        let posted = &mut self.posted;
        let before = self.batch.len();
        self.batch.retain(|read| {
            let mine = posted.get(&read.id).is_some_and(|posted| posted.0 == handle);
            if mine {
                tags.extend(posted.remove(&read.id).and_then(|posted| posted.1));
            }
            !mine
        });
        if let Some(seed) = self.seeds.get_mut(&handle) {
            seed.flying -= before - self.batch.len();
        }
        tags
    }

    /// Nothing of a seed is on its way: what the owner waits for is said.
    pub(super) fn settle(&mut self, handle: Handle) {
        match self.seeds.get_mut(&handle).map_or(Due::Nothing, Reading::due) {
            Due::Nothing => {}
            Due::Ended => self.ask(handle, &RdmaAsk::Ended),
            Due::Close => {
                self.seeds.remove(&handle);
                self.tcp.close(handle);
            }
        }
    }

    /// The owner has answered, or told that a seed ends.
    pub(super) fn said(&mut self, handle: Handle, said: RdmaSaid) -> Result<(), SourceError> {
        match said {
            RdmaSaid::Connected(end) => self.connected(&end),
            RdmaSaid::Regions { regions, complete } => {
                let Link::Up(_, took) = &self.link else { return Ok(()) };
                let seed = self.seeds.get_mut(&handle).filter(|seed| seed.mode == Mode::On);
                let Some(seed) = seed else { return Ok(()) };
                let any = !regions.is_empty();
                if !seed.regions.answer(regions) {
                    return Err(SourceError::Protocol("RDMA regions that overlap".into()));
                }
                seed.complete = complete;
                self.reach.push((handle, seed.regions.pages(), *took));
                if any && !complete {
                    self.regions(handle);
                }
            }
            RdmaSaid::No(why) => {
                self.off(handle, why, Mode::Off);
                if matches!(&self.link, Link::Asked(_, by, _) if *by == handle) {
                    // Another seed may have it made.
                    self.link = Link::Down(0);
                }
            }
            RdmaSaid::Ending(why) => self.off(handle, why, Mode::Ending),
            RdmaSaid::Unlinked(why) => match &self.link {
                Link::Up(..) => self.unlinked(&why, RETRY),
                Link::Asked(_, by, _) if *by == handle => self.unlinked(&why, RETRY_REFUSED),
                // What was asked for over a queue pair that is gone.
                Link::Asked(..) | Link::Down(_) | Link::Idle => {}
            },
            // Not asked for over this connection.
            RdmaSaid::Offer(_) | RdmaSaid::Place(_) => {}
        }
        Ok(())
    }

    fn connected(&mut self, end: &wire::RdmaEnd) {
        let (queue, since) = match std::mem::replace(&mut self.link, Link::Idle) {
            Link::Asked(queue, _, since) => (queue, since),
            // An answer to a question of before a queue pair broke.
            other => {
                self.link = other;
                return;
            }
        };
        if let Err(error) = queue.connect(&(*end).into()) {
            drop(queue);
            self.unlinked(&error.to_string(), RETRY_REFUSED);
            return;
        }
        self.link = Link::Up(queue, since.elapsed());
        for handle in self.handles() {
            self.regions(handle);
        }
    }

    fn handles(&self) -> Vec<Handle> {
        let mut handles: Vec<Handle> = self.seeds.keys().copied().collect();
        handles.sort_unstable();
        handles
    }

    /// The queue pair is broken, or was not made: what it was to bring is asked for over TCP, for all
    /// seeds, and it is made again after some pings.
    pub(super) fn unlinked(&mut self, why: &str, retry: u32) {
        self.link = Link::Down(retry);
        self.batch.clear();
        self.posted.clear();
        for handle in self.handles() {
            let Some(seed) = self.seeds.get_mut(&handle) else { continue };
            seed.unlinked();
            if seed.mode == Mode::On {
                self.reach.push((handle, 0, Duration::ZERO));
                self.notes.push((handle, why.to_owned()));
            }
            self.settle(handle);
        }
        let mine = self.flights.iter().filter(|(_, flight)| !flight.tcp);
        let tags = mine.map(|(tag, _)| *tag).collect();
        self.over_tcp(tags);
    }

    /// What is due with each ping: a broken queue pair again, further regions, a look at the owner's
    /// memory.
    pub(super) fn tend(&mut self) {
        match &mut self.link {
            Link::Idle | Link::Down(0) => self.connect_link(),
            Link::Down(pings) => *pings -= 1,
            Link::Asked(..) | Link::Up(..) => {}
        }
        if !matches!(self.link, Link::Up(..)) {
            return;
        }
        let mut place = None;
        for handle in self.handles() {
            let Some(seed) = self.seeds.get_mut(&handle).filter(|s| s.mode == Mode::On) else {
                continue;
            };
            let any = seed.regions.any().filter(|_| seed.complete);
            place = place.or(any.map(|any| (handle, any)));
            if !seed.complete || std::mem::take(&mut seed.missed) {
                self.regions(handle);
            }
        }
        let probing = self.posted.values().any(|(_, tag)| tag.is_none());
        if let Some((handle, place)) = place.filter(|_| !probing) {
            // Where there is no room, there are READs that tell the same.
            self.enqueue((handle, None), place, 1, 8, 0);
        }
    }
}
