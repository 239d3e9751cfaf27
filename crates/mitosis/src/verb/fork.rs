//! `fork`: children of a seed.

use super::Done;
use crate::args::Fork;
use crate::error::CliError;
use crate::{output, reference, socket};
use mitosis_proto::{
    Attached, Client, ClientError, ConnectionError, Exited, ForkRequest, ForkedChild,
};
use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH};
use signal_hook::iterator::Signals;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

/// What passes through to the children. SIGSTOP and SIGKILL cannot.
const PASSED: [i32; 8] = [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGCONT, SIGWINCH];
/// How long a daemon may be away during a restart before its children's fate counts as unknown.
const RESTART_MAX: Duration = Duration::from_secs(30);

/// `mitosis fork`.
pub fn run(args: &Fork) -> Done {
    let request = ForkRequest {
        reference: reference::parse(&args.reference)?.reveal(),
        count: args.count,
        attach: !args.detach,
        independent: args.independent,
        new_pid: args.new_pid,
        hostname: args.hostname.clone(),
        net: args.net.into(),
        paging: args.paging.into(),
        via: args.via.into(),
        transport: args.transport.into(),
        hooks: args.hooks.into(),
    };
    let path = socket::path(&args.socket)?;
    let mut client = Client::connect(&path)?;
    if args.detach {
        let forked = client.fork(request)?;
        return report(args, &forked.children, true);
    }
    // Before the children exist, so that no signal is lost between.
    let signals = Signals::new(PASSED)
        .map_err(|e| CliError::Failed(format!("cannot watch for signals: {e}")))?;
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    let attached =
        client.fork_attached(request, [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()])?;
    report(args, &attached.children, false)?;
    pass_signals(signals, &path, attached.children.iter().map(|child| child.pid).collect());
    wait_all(attached, &path)
}

fn report(args: &Fork, children: &[ForkedChild], pids: bool) -> Done {
    if args.output.json() {
        output::json(&serde_json::json!({ "children": children }))?;
    } else if pids {
        for child in children {
            output::line(child.pid)?;
        }
    }
    Ok(0)
}

/// Forwards signals on connections of their own; ends with the process.
fn pass_signals(mut signals: Signals, path: &Path, pids: Vec<i32>) {
    let path = path.to_owned();
    std::thread::spawn(move || {
        for signal in signals.forever() {
            for pid in &pids {
                // A child that has ended, or a daemon being restarted, has nobody to signal.
                let _ = Client::connect(&path).and_then(|mut client| client.kill(*pid, signal));
            }
        }
    });
}

/// The exit status of the first child that failed, or zero.
fn wait_all(mut attached: Attached, path: &Path) -> Done {
    let mut left: Vec<i32> = attached.children.iter().map(|child| child.pid).collect();
    let mut status = 0;
    let mut note = |end: &Exited| {
        if let Some(reason) = &end.reason {
            eprintln!("mitosis: child {}: {reason}", end.pid);
        }
        if status == 0 {
            status = u8::try_from(end.exit).unwrap_or(1);
        }
    };
    while !left.is_empty() {
        match attached.wait() {
            Ok(end) => {
                left.retain(|pid| *pid != end.pid);
                note(&end);
            }
            Err(ClientError::Connection(ConnectionError::Closed | ConnectionError::Socket(_))) => {
                break;
            }
            Err(error) => return Err(error.into()),
        }
    }
    // The daemon is being restarted, which kills no child: ask the new one.
    for pid in left {
        note(&wait_again(path, pid)?);
    }
    Ok(status)
}

fn wait_again(path: &Path, pid: i32) -> Result<Exited, CliError> {
    let deadline = Instant::now() + RESTART_MAX;
    loop {
        match Client::connect(path).and_then(|mut client| client.wait(pid)) {
            Ok(end) => return Ok(end),
            Err(error @ ClientError::Node { .. }) => return Err(error.into()),
            Err(error) if Instant::now() > deadline => return Err(error.into()),
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}
