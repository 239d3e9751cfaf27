//! The owner's answers about RDMA, on a peer's TCP connection.

use super::Export;
use crate::wire::{self, Header, Kind, RdmaAsk, RdmaPlace, RdmaSaid, WireError};
use crate::{OpenSeed, SeedService};
use mitosis_descriptor::SeedId;
use mitosis_rdma_sys::Queue;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::Arc;

/// Most regions in one answer: what fits the body, whatever the numbers are.
const REGIONS_MAX: usize = wire::ANSWER_BODY_MAX / 32;

/// Queue pairs of one connection, by handle: they end with it.
pub(crate) struct Links {
    /// Who has the connection.
    peer: IpAddr,
    pairs: HashMap<u32, (Queue, Arc<Export>)>,
    /// The seed whose descriptor was last asked for.
    described: Option<(SeedId, Arc<Export>)>,
}

impl Links {
    /// None yet, for the peer at an address.
    pub fn new(peer: IpAddr) -> Links {
        Links { peer, pairs: HashMap::new(), described: None }
    }

    /// Ends the queue pair of a handle.
    pub fn close(&mut self, handle: u32) {
        self.pairs.remove(&handle);
    }

    /// Pages are asked for over TCP by one who could read them by RDMA if they were registered.
    pub fn missed(&self, handle: u32, page: u64, count: u32) {
        if let Some((_, export)) = self.pairs.get(&handle) {
            export.missed(page, count);
        }
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
        // Not only for those who ask first: a queue pair is what opens memory.
        let said = match (ask, service.rdma(self.peer), seed) {
            (_, Err(why), _) => RdmaSaid::No(why),
            (RdmaAsk::Offer, Ok(device), _) => RdmaSaid::Offer(device),
            (RdmaAsk::Connect(end), _, None) if header.a == wire::DESCRIPTOR_HANDLE => {
                match self.described.clone() {
                    Some((_, export)) => {
                        self.connect(header.a, end, export).unwrap_or_else(RdmaSaid::No)
                    }
                    None => RdmaSaid::No("no descriptor was asked for".into()),
                }
            }
            (_, _, None) => RdmaSaid::No("refused by the seed's node".into()),
            (RdmaAsk::Connect(end), _, Some(seed)) => seed
                .rdma()
                .and_then(|export| self.connect(header.a, end, export))
                .unwrap_or_else(RdmaSaid::No),
            (RdmaAsk::Regions { from }, _, Some(_)) => match self.pairs.get(&header.a) {
                Some((_, export)) => match export.regions(from as usize, REGIONS_MAX) {
                    Ok((regions, complete)) => RdmaSaid::Regions { regions, complete },
                    Err(why) => RdmaSaid::No(why),
                },
                None => RdmaSaid::No("not connected".into()),
            },
        };
        wire::control(Header { a: header.a, ..Header::new(Kind::RdmaAnswer) }, &said)
    }

    /// Where the descriptor of a seed, whose capability has been shown, can be read. `None`: nowhere.
    pub fn place(
        &mut self,
        id: SeedId,
        service: &dyn SeedService,
        seed: &dyn OpenSeed,
        descriptor: &[u8],
    ) -> Option<RdmaPlace> {
        service.rdma(self.peer).ok()?;
        let export = seed.rdma().ok()?;
        let (address, rkey, length) = export.descriptor(descriptor).ok()?;
        let same = |known: &(SeedId, Arc<Export>)| known.0 == id && Arc::ptr_eq(&known.1, &export);
        let linked = self.described.as_ref().is_some_and(same)
            && self.pairs.contains_key(&wire::DESCRIPTOR_HANDLE);
        if !linked {
            self.close(wire::DESCRIPTOR_HANDLE);
            self.described = Some((id, export));
        }
        Some(RdmaPlace { address, rkey, length, linked })
    }

    /// A queue pair in the seed's own protection domain: only what is registered there can be read.
    fn connect(
        &mut self,
        handle: u32,
        end: wire::RdmaEnd,
        export: Arc<Export>,
    ) -> Result<RdmaSaid, String> {
        self.close(handle);
        let psn = RandomState::new().hash_one(handle) as u32;
        let queue = Queue::new(&export.pd, &export.completions, psn).map_err(|e| e.to_string())?;
        queue.connect(&end.into()).map_err(|e| e.to_string())?;
        let said = RdmaSaid::Connected(queue.local().into());
        self.pairs.insert(handle, (queue, export));
        Ok(said)
    }
}
