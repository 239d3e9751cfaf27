//! `demo` and `bench`: flags in, status out.

use super::Done;
use crate::args::{Bench, Demo};

fn status(code: i32) -> u8 {
    u8::try_from(code).unwrap_or(1)
}

/// `mitosis demo`.
pub fn demo(args: &Demo) -> Done {
    Ok(status(mitosis_bench::demo(mitosis_bench::DemoArgs {
        nodes: args.nodes as usize,
        children: args.children as usize,
        json: args.output.json(),
    })))
}

/// `mitosis bench`.
pub fn bench(args: Bench) -> Done {
    Ok(status(mitosis_bench::bench(mitosis_bench::BenchArgs {
        names: args.names,
        quick: args.quick,
        large: args.large,
        only: args.only,
        json: args.output.json(),
        plot: args.plot,
    })))
}
