//! The datapath of one node and of two, without daemons: what a virtual address costs beside a direct connection, what
//! the way between nodes costs beside the kernel's own VXLAN and a bridge, and what a change of one endpoint costs.
//!
//! Client and server are threads of this program, so its own processor time is all there is, whatever else the machine
//! does meanwhile.

mod load;
mod world;

use std::{net::Ipv4Addr, path::Path, time::Duration};

use anyhow::Result;
use shoal_network::Vip;

use crate::stats::{Series, Unit};
use load::{Kind, OneProcessor, Server};
use world::World;

pub(super) const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 5);
/// Servers on the client's node and on the other one.
pub(super) const HERE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 6);
pub(super) const THERE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 7);
const VIP_HERE: Ipv4Addr = Ipv4Addr::new(10, 0, 200, 1);
const VIP_THERE: Ipv4Addr = Ipv4Addr::new(10, 0, 200, 2);
/// The server on the other node by a bridge and a VXLAN interface that nothing of ours touches.
pub(super) const PLAIN: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 7);
const MANY: u32 = 10_000;
const CHANGES: usize = 100;

/// Ours, and what it is beside, by the peer's name.
pub(crate) type Compared = (&'static str, Vec<Series>, Vec<Series>);

/// Everything, in about a minute; `quick` in a third of it.
pub(crate) fn measure(dir: &Path, quick: bool) -> Result<Vec<Compared>> {
    let (rounds, span) = if quick { (3, 200) } else { (9, 400) };
    let span = Duration::from_millis(span);
    let _one = OneProcessor::begin()?;
    let mut world = World::new(dir)?;
    world.apply(vips(0, HERE))?;
    let servers = [
        Server::start(&world.here)?,
        Server::start(&world.there)?,
        Server::start(&world.plain[1])?,
    ];
    let pair =
        |world: &World, what: &str, ways: [Way<'_>; 2]| in_turns(world, what, ways, (rounds, span));
    let client = |addr| Way::new(None, addr);
    let mut found = Vec::new();
    let [ours, direct] = pair(&world, "on one node", [client(VIP_HERE), client(HERE)])?;
    found.push(("direct", ours, direct));
    let [ours, direct] = pair(&world, "across nodes", [client(VIP_THERE), client(THERE)])?;
    found.push(("direct", ours, direct));
    let plain = Way::new(Some(&world.plain[0]), PLAIN);
    let [ours, plain] = pair(&world, "to the other node", [client(THERE), plain])?;
    found.push(("VXLAN and a bridge", ours, plain));
    world.apply(vips(MANY, HERE))?;
    let what = format!("on one node of {MANY} services");
    let [ours, direct] = pair(&world, &what, [client(VIP_HERE), client(HERE)])?;
    found.push(("direct", ours, direct));
    found.push(("direct", changes(&mut world)?.into(), Vec::new()));
    let on = [&world.here, &world.there, &world.plain[1]];
    servers
        .into_iter()
        .zip(on)
        .try_for_each(|(server, on)| server.end(on))?;
    world.end()?;
    Ok(found)
}

/// The servers' virtual addresses, of which the first leads to `first`, and so many others.
fn vips(others: u32, first: Ipv4Addr) -> Vec<Vip> {
    let other = |n: u32| Vip {
        addr: (u32::from(Ipv4Addr::new(10, 0, 100, 0)) + n).into(),
        backends: vec![HERE, THERE, CLIENT],
    };
    let vip = |addr, backend| Vip {
        addr,
        backends: vec![backend],
    };
    let servers = [vip(VIP_HERE, first), vip(VIP_THERE, THERE)];
    servers.into_iter().chain((0..others).map(other)).collect()
}

/// An address, and where it is asked from; `None` is the client's container.
struct Way<'a> {
    from: Option<&'a world::Namespace>,
    to: Ipv4Addr,
    series: Vec<Series>,
}

impl<'a> Way<'a> {
    fn new(from: Option<&'a world::Namespace>, to: Ipv4Addr) -> Self {
        let series = Vec::new();
        Self { from, to, series }
    }
}

/// Every kind of load by both ways, in turns.
fn in_turns(
    world: &World,
    what: &str,
    mut ways: [Way<'_>; 2],
    (rounds, span): (usize, Duration),
) -> Result<[Vec<Series>; 2]> {
    for kind in Kind::ALL {
        for way in &mut ways {
            way.series.push(kind.series(what));
        }
        for round in 0..=rounds {
            for at in [round % 2, (round + 1) % 2] {
                let way = &mut ways[at];
                let from = way.from.unwrap_or(&world.client);
                let sample = kind.run(from, way.to, span)?;
                // The first finds neighbours and fills caches.
                if let Some(series) = way.series.last_mut().filter(|_| round > 0) {
                    series.samples.push(sample);
                }
            }
        }
    }
    Ok(ways.map(|way| way.series))
}

/// The time for one endpoint that comes and another that goes, with all the others there: comparing what is wanted with
/// what is known, and the kernel's part alone.
fn changes(world: &mut World) -> Result<[Series; 2]> {
    let series = |whose: &str| {
        let case = format!("{whose} time for a changed endpoint, {MANY} services");
        Series::new(case, Unit::Micros)
    };
    let mut both = [series("processor's"), series("kernel's")];
    for _ in 0..20 {
        let states: Vec<_> = (0..CHANGES)
            .map(|n| world::states(vips(MANY, if n % 2 == 0 { THERE } else { HERE })).remove(0))
            .collect();
        let before = [load::spent()?, load::spent_by_kernel()?];
        for state in states {
            world.apply_one(0, state)?;
        }
        let after = [load::spent()?, load::spent_by_kernel()?];
        let count = f64::from(u32::try_from(CHANGES)?);
        for ((series, before), after) in both.iter_mut().zip(before).zip(after) {
            let each = after.saturating_sub(before).as_secs_f64() * 1e6 / count;
            series.samples.push(each);
        }
    }
    Ok(both)
}
