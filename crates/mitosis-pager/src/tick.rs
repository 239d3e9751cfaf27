//! What must happen though nothing happens: deadlines, signs of life, sweeps.

use crate::child::Via;
use crate::message::ChildId;
use crate::pager::{Pager, ReadInFlight};
use crate::space::{Outcome, Role};
use mitosis_transport::{Handle, SourceError};
use rustix::process::Signal;
use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

/// How often address spaces are asked whether they still exist: exec tells nobody.
const SWEEP: Duration = Duration::from_millis(250);
/// How long a child must touch nothing new until its touches are told.
const REST: Duration = Duration::from_millis(100);
/// Said of a peer that broke nothing and answers nothing.
const SILENT: &str = "no answer";

impl Pager {
    pub(crate) fn tick(&mut self) {
        let now = Instant::now();
        if now < self.next_tick {
            return;
        }
        self.tick_peers(now);
        self.tick_reads(now);
        self.tick_learned(now);
        self.tick_spaces();
        if now >= self.next_sweep {
            self.sweep(now);
            self.cache.sweep(now);
            self.next_sweep = now + SWEEP;
        }
        self.tick_linger(now);
        self.next_tick = now + self.pace();
    }

    fn tick_peers(&mut self, now: Instant) {
        let timeout = self.config.page_timeout;
        let ids: Vec<u64> = self.peers.keys().copied().collect();
        for id in ids {
            let Some(peer) = self.peers.get_mut(&id) else { continue };
            if let Some(reason) = peer.lost(timeout, now) {
                for child in peer.users() {
                    self.kill(child, reason.clone());
                }
                continue;
            }
            if peer.idle(now) {
                self.peers.remove(&id);
                continue;
            }
            if peer.stuck(timeout, now) {
                let silent = std::io::Error::new(std::io::ErrorKind::TimedOut, SILENT);
                self.broken(id, &SourceError::Io { what: "receive", cause: silent });
                continue;
            }
            peer.ping(self.config.ping_interval, now);
            self.connect(id);
        }
    }

    /// Tells the owners what children touched, once these have come to rest.
    fn tick_learned(&mut self, now: Instant) {
        let rested = |at: Instant| now.duration_since(at) > REST;
        let children = self.children.values().filter(|child| child.touched_at.is_some_and(rested));
        let ids: Vec<ChildId> = children.map(|child| child.id).collect();
        for id in ids {
            self.tell_learned(id);
        }
    }

    /// Tells the owners what a child touched.
    pub(crate) fn tell_learned(&mut self, id: ChildId) {
        let Some(child) = self.children.get_mut(&id) else { return };
        child.touched_at = None;
        let mut told: BTreeMap<(u64, Handle), Vec<u64>> = BTreeMap::new();
        // What was fetched beside one touch is often passed by the next.
        let mut known = HashSet::new();
        for (via, page) in child.touched.drain(..) {
            if let Via::Peer(peer, handle) = via
                && known.insert((via, page))
            {
                told.entry((peer, handle)).or_default().push(page);
            }
        }
        for ((peer, handle), pages) in told {
            let room = self.trail_room();
            if let Some(peer) = self.peers.get_mut(&peer) {
                peer.learn(handle, id, pages, room);
            }
        }
    }

    /// No touch waits longer than the page timeout, whatever its owner's node does meanwhile. A read that
    /// nobody waits for is given up then.
    fn tick_reads(&mut self, now: Instant) {
        let timeout = self.config.page_timeout;
        let late = |read: &ReadInFlight| now.duration_since(read.progress) > timeout;
        let late = self.reads.iter().filter(|(_, read)| late(read));
        let living = late.filter(|(_, read)| self.spaces.contains_key(&read.space));
        let (waited, idle): (Vec<u64>, Vec<u64>) =
            living.map(|(tag, _)| *tag).partition(|tag| self.is_waited_for(*tag));
        for tag in idle {
            if let Some(read) = self.reads.remove(&tag) {
                self.gone(tag, &read);
            }
        }
        for tag in waited {
            let Some(ReadInFlight { child, via, .. }) = self.reads.get(&tag) else { continue };
            let (child, via) = (*child, *via);
            let ms = timeout.as_millis();
            let reason = match via {
                Via::Local(_) => format!("a page of this node not read within {ms} ms"),
                Via::Peer(peer, _) => match self.peers.get(&peer) {
                    Some(peer) if peer.source.is_some() && peer.trouble.is_none() => {
                        format!("page source {}: no page within {ms} ms", peer.address)
                    }
                    Some(peer) => {
                        let trouble = peer.trouble.as_deref().unwrap_or(SILENT);
                        let address = peer.address;
                        format!("page source {address} lost: {trouble}; no page within {ms} ms")
                    }
                    None => format!("page source lost; no page within {ms} ms"),
                },
            };
            self.kill(child, reason);
        }
        // Reads of the dead are forgotten when their time is over, not before: late answers
        // must not be taken for a breach of the protocol.
        let over = |read: &ReadInFlight| {
            !self.spaces.contains_key(&read.space) && now.duration_since(read.progress) > timeout
        };
        let tags: Vec<u64> =
            self.reads.iter().filter(|(_, read)| over(read)).map(|(tag, _)| *tag).collect();
        for tag in tags {
            if let Some(read) = self.reads.remove(&tag) {
                self.gone(tag, &read);
            }
        }
    }

    fn tick_spaces(&mut self) {
        let keys: Vec<u64> = self
            .spaces
            .iter()
            .filter(|(_, space)| space.untidy || !space.doubts.is_empty())
            .map(|(key, _)| *key)
            .collect();
        for key in keys {
            self.drain(key);
            let Some(space) = self.spaces.get_mut(&key) else { continue };
            let child = space.child;
            if std::mem::take(&mut space.untidy) {
                space.tidy(0, u64::MAX);
            }
            let outcome = space.confirm();
            self.outcome(key, outcome);
            self.review.insert(child);
        }
        for child in self.children.values_mut() {
            child.flush_guard();
        }
    }

    /// Finds address spaces that are gone and closes what is no longer needed.
    fn sweep(&mut self, now: Instant) {
        let gone: Vec<u64> = self
            .spaces
            .iter()
            .filter(|(_, space)| space.closing.is_some_and(|at| at <= now) || !space.alive())
            .map(|(key, _)| *key)
            .collect();
        for key in gone {
            let closing = self.spaces.get(&key).is_some_and(|space| space.closing.is_some());
            if closing {
                if let Some(space) = self.spaces.get_mut(&key) {
                    // Its slot was given back when it began to close.
                    space.role = Role::Fork(u32::MAX);
                }
            }
            self.outcome(key, Outcome::Gone);
        }
        let (max, keep) = (self.config.ended_max, self.config.ended_for);
        self.children
            .retain(|_, child| child.ended.is_none_or(|at| now.duration_since(at) <= keep));
        let mut ended: Vec<(Instant, ChildId)> =
            self.children.values().filter_map(|c| Some((c.ended?, c.id))).collect();
        if ended.len() > max {
            ended.sort();
            for (_, id) in ended.iter().take(ended.len() - max) {
                self.children.remove(id);
            }
        }
    }

    /// Without a daemon nobody can see or end the children: they do not outlive it for ever.
    fn tick_linger(&mut self, now: Instant) {
        if !self.clients.is_empty() {
            self.last_client = now;
        } else if self.shutdown.is_none()
            && now.duration_since(self.last_client) > self.config.linger
        {
            self.shut_down("no daemon came back");
            for pidfd in self.shadows.values() {
                let _ = rustix::process::pidfd_send_signal(pidfd, Signal::KILL);
            }
        }
    }
}
