//! The owner's answers about RDMA, on a peer's TCP connection.
//!
//! The connection has one queue pair, for all seeds that the peer has open on it. What it can read through
//! that are the windows which were opened for it.

use super::bell::Bell;
use super::export::{Export, Shut, Who};
use crate::wire::{self, Header, Kind, RdmaAsk, RdmaPlace, RdmaSaid, WireError};
use crate::{OpenSeed, SeedService};
use mitosis_rdma_sys::Opener;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::Arc;

/// Most regions in one answer: what fits the body, whatever the numbers are.
const REGIONS_MAX: usize = wire::ANSWER_BODY_MAX / 32;

/// The queue pair of one connection, and what is read over it: they end with it.
pub(crate) struct Links {
    /// Who has the connection.
    peer: IpAddr,
    link: Option<(Arc<Bell>, Opener)>,
    seeds: HashMap<u32, Reading>,
}

/// A seed with windows for this peer.
struct Reading {
    export: Arc<Export>,
    /// The peer knows that it has ended.
    told: bool,
}

impl Links {
    /// None yet, for the peer at an address.
    pub fn new(peer: IpAddr) -> Links {
        Links { peer, link: None, seeds: HashMap::new() }
    }

    /// What wakes the connection's thread, if there is anything for it.
    pub fn bell(&self) -> Option<&Arc<Bell>> {
        self.link.as_ref().map(|(bell, _)| bell)
    }

    /// Closes the windows of a handle.
    pub fn close(&mut self, handle: u32) {
        let gone = self.seeds.remove(&handle);
        if let (Some(reading), Some((bell, _))) = (gone, &self.link) {
            if handle != wire::DESCRIPTOR_HANDLE {
                bell.answered();
            }
            reading.export.close(&Who { bell: Arc::clone(bell), handle });
        }
    }

    /// Ends the queue pair, with all windows.
    fn unlink(&mut self) {
        if let Some((bell, opener)) = self.link.take() {
            for (handle, reading) in &self.seeds {
                reading.export.close(&Who { bell: Arc::clone(&bell), handle: *handle });
            }
            // No window is bound to it any more.
            drop(opener);
        }
    }

    /// Pages are asked for over TCP by one who could read them by RDMA if they were registered.
    pub fn missed(&self, handle: u32, page: u64, count: u32) {
        if let Some(reading) = self.seeds.get(&handle) {
            reading.export.missed(page, count);
        }
    }

    /// What is to be said when the bell has rung: which seeds end.
    pub fn endings(&mut self) -> Result<Vec<u8>, WireError> {
        let mut out = Vec::new();
        for (handle, reading) in &mut self.seeds {
            if *handle == wire::DESCRIPTOR_HANDLE || reading.told {
                continue;
            }
            let Some(why) = reading.export.ended() else { continue };
            reading.told = true;
            let head = Header { a: *handle, ..Header::new(Kind::RdmaAnswer) };
            out.extend(wire::control(head, &RdmaSaid::Ending(why))?);
        }
        Ok(out)
    }

    /// Answers one question about RDMA; `seed` is what the handle has open.
    pub fn answer(
        &mut self,
        header: &Header,
        body: &[u8],
        service: &dyn SeedService,
        seed: Option<&dyn OpenSeed>,
    ) -> Result<Vec<u8>, WireError> {
        let ask = wire::body(Kind::Rdma, body)?;
        let handle = header.a;
        let known = seed.is_some() || self.seeds.contains_key(&handle);
        // Not only for those who ask first: a window is what opens memory.
        let said = match (ask, service.rdma(self.peer)) {
            (RdmaAsk::Ended, _) => {
                if let Some((bell, _)) = &self.link {
                    bell.answered();
                }
                self.close(handle);
                return Ok(Vec::new());
            }
            (_, Err(why)) => RdmaSaid::No(why),
            (RdmaAsk::Offer, Ok(device)) => RdmaSaid::Offer(device),
            _ if !known => RdmaSaid::No("refused by the seed's node".into()),
            (RdmaAsk::Connect(end), _) => {
                self.connect(handle, end, seed).unwrap_or_else(RdmaSaid::Unlinked)
            }
            (RdmaAsk::Regions { from }, _) => match self.regions(handle, from as usize, seed) {
                Ok(said) => said,
                Err(shut) => self.shut(shut),
            },
            (RdmaAsk::Descriptor, _) => match self.descriptor() {
                Ok((address, rkey)) => {
                    RdmaSaid::Place(RdmaPlace { address, rkey, length: 0, linked: true })
                }
                Err(shut) => self.shut(shut),
            },
        };
        wire::control(Header { a: handle, ..Header::new(Kind::RdmaAnswer) }, &said)
    }

    fn shut(&mut self, shut: Shut) -> RdmaSaid {
        match shut {
            Shut::Seed(why) => RdmaSaid::No(why),
            Shut::Link(why) => {
                self.unlink();
                RdmaSaid::Unlinked(why)
            }
        }
    }

    /// The memory of a seed that the peer has shown the capability of: what it asked for first, or what
    /// has been registered since that was unpinned.
    fn export(&mut self, handle: u32, seed: Option<&dyn OpenSeed>) -> Result<Arc<Export>, Shut> {
        if let Some(reading) = self.seeds.get(&handle) {
            return Ok(Arc::clone(&reading.export));
        }
        let seed = seed.ok_or_else(|| Shut::Seed("refused by the seed's node".into()))?;
        let export = seed.rdma().map_err(Shut::Seed)?;
        self.seeds.insert(handle, Reading { export: Arc::clone(&export), told: false });
        Ok(export)
    }

    fn regions(
        &mut self,
        handle: u32,
        from: usize,
        seed: Option<&dyn OpenSeed>,
    ) -> Result<RdmaSaid, Shut> {
        let export = self.export(handle, seed)?;
        let Some((bell, opener)) = &mut self.link else {
            return Err(Shut::Link("not connected".into()));
        };
        if bell.take_overrun() {
            return Err(Shut::Link("the end of a seed was not answered in time".into()));
        }
        let who = Who { bell: Arc::clone(bell), handle };
        let (regions, complete) = export.regions((&who, opener), from, REGIONS_MAX)?;
        Ok(RdmaSaid::Regions { regions, complete })
    }

    fn descriptor(&mut self) -> Result<(u64, u32), Shut> {
        let handle = wire::DESCRIPTOR_HANDLE;
        let (Some(reading), Some((bell, opener))) = (self.seeds.get(&handle), &mut self.link)
        else {
            return Err(Shut::Link("not connected".into()));
        };
        reading.export.open_descriptor((&Who { bell: Arc::clone(bell), handle }, opener))
    }

    /// Where the descriptor of a seed, whose capability has been shown, can be read. `None`: nowhere.
    pub fn place(
        &mut self,
        service: &dyn SeedService,
        seed: &dyn OpenSeed,
        descriptor: &[u8],
    ) -> Option<RdmaPlace> {
        service.rdma(self.peer).ok()?;
        let export = seed.rdma().ok()?;
        let length = export.descriptor(descriptor).ok()?;
        self.close(wire::DESCRIPTOR_HANDLE);
        self.seeds.insert(wire::DESCRIPTOR_HANDLE, Reading { export, told: false });
        if self.link.is_none() {
            return Some(RdmaPlace { address: 0, rkey: 0, length, linked: false });
        }
        match self.descriptor() {
            Ok((address, rkey)) => Some(RdmaPlace { address, rkey, length, linked: true }),
            Err(shut) => {
                self.shut(shut);
                None
            }
        }
    }

    /// The queue pair, instead of one that there is: its peer has found that broken. The seed that it is
    /// first wanted for begins to be registered meanwhile.
    fn connect(
        &mut self,
        handle: u32,
        end: wire::RdmaEnd,
        seed: Option<&dyn OpenSeed>,
    ) -> Result<RdmaSaid, String> {
        let bell = match self.link.as_ref() {
            Some((bell, _)) => Arc::clone(bell),
            None => Arc::new(Bell::new().map_err(|e| e.to_string())?),
        };
        self.unlink();
        let device = match self.export(handle, seed) {
            Ok(export) => export.device().clone(),
            Err(Shut::Seed(why) | Shut::Link(why)) => return Ok(RdmaSaid::No(why)),
        };
        let psn = RandomState::new().hash_one(handle) as u32;
        let opener = Opener::new(&device, psn).map_err(|e| e.to_string())?;
        opener.connect(&end.into()).map_err(|e| e.to_string())?;
        let said = RdmaSaid::Connected(opener.local().into());
        self.link = Some((bell, opener));
        Ok(said)
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        self.unlink();
    }
}
