//! Asking a node whether it lets others read by RDMA.

use crate::SourceError;
use crate::client::{body, connect, header};
use crate::wire::{self, Header, Kind};
use std::io::Write;
use std::time::{Duration, Instant};

/// `Ok(Ok(device))` when the node at `address` offers RDMA, `Ok(Err(why))` when it does not.
pub(crate) fn ask(address: &str, timeout: Duration) -> Result<Result<String, String>, SourceError> {
    let deadline = Instant::now() + timeout;
    let stream = connect(address, deadline)?;
    let mut out = wire::control(Header::new(Kind::Hello), &wire::Hello { version: wire::VERSION })?;
    out.extend(wire::control(Header::new(Kind::Rdma), &wire::RdmaAsk::Offer)?);
    stream.set_write_timeout(Some(timeout)).map_err(|e| SourceError::io("send", e))?;
    let mut writer = &stream;
    writer.write_all(&out).map_err(|e| SourceError::io("send", e))?;
    for wanted in [Kind::Hello, Kind::RdmaAnswer] {
        let header = header(&stream, deadline)?;
        if header.kind != wanted {
            return Err(SourceError::Protocol(format!("unexpected frame {:?}", header.kind)));
        }
        let bytes = body(&stream, header.length as usize, deadline)?;
        if wanted == Kind::RdmaAnswer {
            return match wire::body(Kind::RdmaAnswer, &bytes)? {
                wire::RdmaSaid::Offer(device) => Ok(Ok(device)),
                wire::RdmaSaid::No(why) => Ok(Err(why)),
                other => Err(SourceError::Protocol(format!("unexpected answer {other:?}"))),
            };
        }
    }
    Err(SourceError::Closed)
}
